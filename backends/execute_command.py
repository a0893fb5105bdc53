"""``moesim execute``: generate with a real model whose experts are offloaded."""

from pathlib import Path
from typing import Annotated

import typer

from moesim.backends.needing_torch import needing_torch
from moesim.backends.options import Layers, PinnedPool, Weights
from moesim.simulator.commands.options import (
    SERVING,
    Arrivals,
    Batching,
    Cache,
    Chunk,
    ExpertBudget,
    Gpus,
    Kv,
    KvReserve,
    MaxWaiting,
    PeerCache,
    PeerPolicy,
    Placement,
    PolicyModule,
    Prefetch,
    ProfileTrace,
    Schedule,
    SloOption,
    Slots,
    SystemName,
    Vram,
)

Model = Annotated[
    str,
    typer.Argument(
        help="A transformers MoE model: a folder, or an id of the hub (owner/name); with --weights "
        "random also a shape, such as olmoe."
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts", help='One prompt a line, or JSON Lines {"prompt": ..., "task": ...}.'
    ),
]
Routes = Annotated[
    Path | None,
    typer.Option(
        "--routes", help="Serve this trace: its requests, its routes in place of the model's own."
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        help="cpu: memory copies and products on threads. cuda: an NVIDIA GPU, decode in graphs "
        "and our kernels. cuda-eager: an NVIDIA GPU, transformers' own modules; several times "
        "slower.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, help="Cores that one product may use; default half of them, for copies need some."
    ),
]
MaxBatch = Annotated[
    int | None,
    typer.Option(
        "--max-batch",
        min=1,
        help="Requests that run together; without --arrivals all come at once, in their order.",
        rich_help_panel=SERVING,
    ),
]
Requests = Annotated[
    int | None,
    typer.Option("--requests", min=1, help="How many arrive.", rich_help_panel=SERVING),
]
NewTokens = Annotated[int, typer.Option(min=1, help="Tokens to generate for each prompt.")]
MaxPrompts = Annotated[int | None, typer.Option(min=1, help="Take only the first N.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the most probable token.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the sampling and of the policies.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on after the end-of-text token.")]
Horizons = Annotated[int, typer.Option(min=1, help="How many layers ahead policies may look.")]
Hardware = Annotated[
    str | None,
    typer.Option("--hardware", help="Machine profile, for policies that ask how long things take."),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the routes served, as a trace.")
]
JsonOut = Annotated[
    str | None, typer.Option("--json", help="Write texts and figures as JSON; - is stdout.")
]


def execute(
    model: Model,
    prompts: Prompts = None,
    routes: Routes = None,
    weights: Weights = "checkpoint",
    layers: Layers = None,
    pinned_pool: PinnedPool = None,
    system: SystemName = None,
    cache: Cache = None,
    prefetch: Prefetch = None,
    schedule: Schedule = None,
    policy_module: PolicyModule = None,
    vram: Vram = None,
    expert_budget: ExpertBudget = None,
    slots: Slots = None,
    peer_cache: PeerCache = None,
    peer_policy: PeerPolicy = None,
    gpus: Gpus = 1,
    placement: Placement = "round_robin",
    backend: Backend = "cpu",
    threads: Threads = None,
    arrivals: Arrivals = None,
    requests: Requests = None,
    batching: Batching = None,
    max_batch: MaxBatch = None,
    chunk: Chunk = None,
    slo: SloOption = None,
    max_waiting: MaxWaiting = None,
    kv: Kv = None,
    kv_reserve: KvReserve = None,
    new_tokens: NewTokens = 128,
    max_prompts: MaxPrompts = None,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    ignore_eos: IgnoreEos = False,
    horizons: Horizons = 2,
    hardware: Hardware = None,
    profile_trace: ProfileTrace = None,
    output: Output = None,
    json_out: JsonOut = None,
) -> None:
    """Generate with a model whose experts do not all fit: the text, TTFT and TPOT, hits and misses.

    moesim execute MODEL --prompts prompts.txt --system mixtral-offloading --slots 25%

    moesim execute MODEL --prompts prompts.txt --max-batch 8 --chunk 512 --vram 12GiB

    moesim execute MODEL --prompts prompts.txt --arrivals poisson:rate=2,requests=50 --slots 25%

    moesim execute MODEL --prompts prompts.txt --slots 25% --peer-cache 20GiB --backend cuda

    moesim execute olmoe --weights random --routes TRACE --backend cuda --slots 25%
    """
    from moesim.backends.sources import Source  # noqa: PLC0415  light at import
    from moesim.backends.wishes import Wishes, check_wishes  # noqa: PLC0415  light at import
    from moesim.simulator.tiers.plan import TierSpec  # noqa: PLC0415  light at import

    wishes = Wishes(
        source=Source(model, weights, layers, pinned_pool),
        prompts=prompts,
        routes=routes,
        system=system,
        axes=(cache, prefetch, schedule),
        policy_modules=tuple(policy_module or ()),
        memory=(vram, expert_budget, slots),
        lent=TierSpec(peer_cache=peer_cache, peer_policy=peer_policy),
        gpus=gpus,
        placement=placement,
        backend=backend,
        threads=threads,
        arrivals=arrivals,
        requests=requests,
        batching=batching,
        max_batch=max_batch,
        chunk=chunk,
        slo=tuple(slo or ()),
        max_waiting=max_waiting,
        kv=kv,
        kv_reserve=kv_reserve,
        new_tokens=new_tokens,
        max_prompts=max_prompts,
        temperature=temperature,
        seed=seed,
        ignore_eos=ignore_eos,
        horizons=horizons,
        hardware=hardware,
        profile_trace=profile_trace,
        output=output,
        json_out=json_out,
    )
    check_wishes(wishes)
    with needing_torch("executing"):
        from moesim.backends.serving import serve  # noqa: PLC0415  torch only when it runs
    serve(wishes)
