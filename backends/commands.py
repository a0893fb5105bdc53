"""``moesim record``: run a real MoE model and write down its routes."""

import math
from pathlib import Path
from typing import Annotated

import typer

from moesim.backends.needing_torch import needing_torch

Model = Annotated[
    str,
    typer.Argument(help="A transformers MoE model: a folder, or an id of the hub (owner/name)."),
]
Prompts = Annotated[
    Path,
    typer.Option(
        "--prompts", help='One prompt a line, or JSON Lines {"prompt": ..., "task": ...}.'
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="The trace to write: .safetensors, or .npz (packed).")
]
NewTokens = Annotated[int, typer.Option(min=1, help="Tokens to generate for each prompt.")]
MaxPrompts = Annotated[int | None, typer.Option(min=1, help="Take only the first N prompts.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the most probable token.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the sampling, at a temperature above 0.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on after the end-of-text token.")]
Signals = Annotated[
    str,
    typer.Option(
        help="Comma-separated: router_logits, router_probs, router_top, look_in, look_out, hidden,"
        " embedding, prompt_embedding, token; or none. hidden is large: give it a fit split, a few"
        " prompts of its own."
    ),
]
Horizons = Annotated[
    int, typer.Option(min=1, help="How many layers ahead look_in and look_out reach.")
]
Batch = Annotated[int, typer.Option(min=1, help="Prompts that run together, padded to one length.")]
Name = Annotated[str | None, typer.Option(help="What the trace calls the model.")]
Licence = Annotated[str | None, typer.Option(help="Licence of texts and model, for the header.")]
Source = Annotated[str | None, typer.Option(help="Where the texts come from, for the header.")]
SystemName = Annotated[
    str | None,
    typer.Option(
        "--system",
        help="Record what this lossy system makes of the routes (closed loop): the trace is bound "
        "to system, budget and order of prompts, and has router_probs and token.",
    ),
]
Vram = Annotated[
    str | None, typer.Option("--vram", help="With --system: VRAM for everything, such as 12GiB.")
]
ExpertBudget = Annotated[
    str | None, typer.Option("--expert-budget", help="With --system: VRAM for experts alone.")
]
Slots = Annotated[
    str | None, typer.Option("--slots", help="With --system: experts, or a share such as 25%.")
]
ProfileTrace = Annotated[
    Path | None,
    typer.Option("--profile-trace", help="With --system: for policies profiled offline."),
]


def record(
    model: Model,
    prompts: Prompts,
    output: Output,
    new_tokens: NewTokens = 128,
    max_prompts: MaxPrompts = None,
    device: Device = "auto",
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    ignore_eos: IgnoreEos = False,
    signals: Signals = "router_probs,look_in,token",
    horizons: Horizons = 3,
    batch: Batch = 1,
    name: Name = None,
    licence: Licence = None,
    source: Source = None,
    system: SystemName = None,
    vram: Vram = None,
    expert_budget: ExpertBudget = None,
    slots: Slots = None,
    profile_trace: ProfileTrace = None,
) -> None:
    """Run a MoE model on prompts and write its routing trace.

    Every token's experts, gates and the chosen signals, of prompt and generation, taken by hooks
    on the routers of any transformers MoE. On a CPU the model runs in float32, and the same
    command writes the same routes again. A recording that was stopped goes on when the same command
    is given again.
    """
    from moesim.backends.prompts import read_prompts
    from moesim.backends.signals import choose_signals
    from moesim.simulator.errors import InputError
    from moesim.simulator.progress import progress
    from moesim.traces.store import SUFFIXES, read

    chosen = choose_signals([] if signals == "none" else signals.split(","))
    texts = read_prompts(prompts, max_prompts)
    if output.suffix not in SUFFIXES or not output.parent.is_dir():
        raise InputError(f"{output}: give a file in an existing folder that ends in {SUFFIXES}")
    if not math.isfinite(temperature):
        raise InputError(f"--temperature {temperature}: give a finite number, 0 or above")
    memory = (vram, expert_budget, slots)
    if system is None and any([*memory, profile_trace]):
        raise InputError(
            "--vram, --expert-budget, --slots and --profile-trace belong to a recording under a "
            "system; name it with --system"
        )
    with needing_torch("recording"):
        from moesim.backends.generation import Request, Sampling
        from moesim.backends.loading import choose_device, load_checkpoint
        from moesim.backends.pieces import record_in_pieces
        from moesim.backends.recorder import Origin, Recording
    place = choose_device(device)
    if system is not None:
        from moesim.backends.closed_loop import ClosedRecording, record_closed

        closed = ClosedRecording(
            model=model,
            device=place,
            texts=texts,
            sampling=Sampling(
                new_tokens=new_tokens, temperature=temperature, seed=seed, ignore_eos=ignore_eos
            ),
            system=system,
            memory=memory,
            profile_trace=profile_trace,
            said={"licence": licence, "source": source, **({"model": name} if name else {})},
        )
        trace = record_closed(closed, output)
        typer.echo(f"{output}: {trace.requests} requests, {trace.tokens} tokens", err=True)
        return
    checkpoint = load_checkpoint(model, place)
    requests = [
        Request(prompt=checkpoint.tokenizer(text.text).input_ids, task=text.task) for text in texts
    ]
    recording = Recording(
        model=checkpoint.model,
        requests=requests,
        sampling=Sampling(
            new_tokens=new_tokens, temperature=temperature, seed=seed, ignore_eos=ignore_eos
        ),
        origin=Origin(
            model=name or checkpoint.name,
            revision=checkpoint.revision,
            bytes_per_parameter=checkpoint.bytes_per_parameter,
            tokenizer_hash=checkpoint.tokenizer_hash,
            licence=licence,
            source=source,
        ),
        signals=chosen,
        horizons=horizons,
        batch=batch,
    )
    most_tokens = sum(len(request.prompt) + new_tokens - 1 for request in requests)
    with progress("recording", most_tokens, "tokens") as advance:
        record_in_pieces(recording, output, advance)
    trace = read(output)
    typer.echo(f"{output}: {trace.requests} requests, {trace.tokens} tokens", err=True)
