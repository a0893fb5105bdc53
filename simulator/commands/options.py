"""The options that several commands share, grouped as ``--help`` shows them."""

from pathlib import Path
from typing import Annotated

import typer

POLICIES = "What decides"
MEMORY = "How much memory (one of these; all of the machine if left out)"
TIERS = "Where experts lie that are not in VRAM (all in RAM, if it holds them)"
COSTS = "What things cost"
SERVING = "Who is served (one recorded request after another if left out)"
OUTPUT = "What is written"

Trace = Annotated[
    Path, typer.Argument(help="Routing trace: a file or folder of any format that moesim reads.")
]
Mapping = Annotated[
    str | None,
    typer.Option(
        "--map", help="For any CSV or JSONL: token=COLUMN,layer=COLUMN,experts=COLUMN[,...]."
    ),
]
Hardware = Annotated[
    str,
    typer.Option(
        "--hardware",
        help="Machine: a name of `moesim profile list`, or a YAML file.",
        rich_help_panel=COSTS,
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        help="Serving software: a runtime profile; the system's own, else moesim-graph.",
        rich_help_panel=COSTS,
    ),
]
SystemName = Annotated[
    str | None,
    typer.Option(
        "--system",
        help="Named bundle of policies; single ones override it.",
        rich_help_panel=POLICIES,
    ),
]
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache",
        help="What stays in VRAM: NAME[:option=value,...]. Default lru.",
        rich_help_panel=POLICIES,
    ),
]
Prefetch = Annotated[
    str | None,
    typer.Option(
        "--prefetch", help="What is copied ahead. Default none.", rich_help_panel=POLICIES
    ),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        help="Where experts run, in which order. Default resident_first.",
        rich_help_panel=POLICIES,
    ),
]
PolicyModule = Annotated[
    list[str] | None,
    typer.Option(
        "--policy-module",
        help="A policy that is not ours: file.py:Class or module:Class[:options].",
        rich_help_panel=POLICIES,
    ),
]
Vram = Annotated[
    str | None,
    typer.Option(
        "--vram",
        help="VRAM of each GPU for everything, such as 12GiB. Default: all.",
        rich_help_panel=MEMORY,
    ),
]
Gpus = Annotated[
    int,
    typer.Option(
        "--gpus",
        min=1,
        help="GPUs of the machine that serve, with attention on the first and experts on all; "
        "--slots and --expert-budget are for all together.",
        rich_help_panel=COSTS,
    ),
]
Placement = Annotated[
    str,
    typer.Option(
        "--placement",
        help="How experts are spread over GPUs: round_robin, by_load or by_coactivation (these "
        "count --profile-trace), or by_layer, which places whole layers.",
        rich_help_panel=POLICIES,
    ),
]
SharedDram = Annotated[
    bool,
    typer.Option(
        "--shared-dram",
        help="Let copies, CPU experts and reads from NVMe share the host's DRAM. Default: each has "
        "it to itself.",
        rich_help_panel=COSTS,
    ),
]
ExpertBudget = Annotated[
    str | None,
    typer.Option(
        "--expert-budget", help="VRAM for experts alone, such as 4000MiB.", rich_help_panel=MEMORY
    ),
]
Slots = Annotated[
    str | None,
    typer.Option(
        "--slots",
        help="Room for experts: a number, or a share such as 25%.",
        rich_help_panel=MEMORY,
    ),
]
Ram = Annotated[
    str | None,
    typer.Option(
        "--ram",
        help="RAM for experts, such as 28GiB; NVMe has the rest. Default: all but an eighth, 4 GiB "
        "at most.",
        rich_help_panel=TIERS,
    ),
]
HostCache = Annotated[
    str | None,
    typer.Option(
        "--host-cache",
        help="What stays in RAM, where it cannot hold all: a cache policy. Default lru.",
        rich_help_panel=TIERS,
    ),
]
HostExclusive = Annotated[
    bool,
    typer.Option(
        "--host-exclusive",
        help="RAM gives up what VRAM gets, and takes what leaves VRAM.",
        rich_help_panel=TIERS,
    ),
]
HostEmpty = Annotated[
    bool,
    typer.Option(
        "--host-empty",
        help="Begin with empty RAM, not with what loading the model left there.",
        rich_help_panel=TIERS,
    ),
]
PeerCache = Annotated[
    str | None,
    typer.Option(
        "--peer-cache",
        help="VRAM that another GPU lends, such as 20GiB; copied from sooner than from RAM.",
        rich_help_panel=TIERS,
    ),
]
PeerPolicy = Annotated[
    str | None,
    typer.Option(
        "--peer-policy",
        help="What lies there: lru (default) and the like take what leaves VRAM, static is fixed.",
        rich_help_panel=TIERS,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The trace's model: a known shape or its config.json.",
        rich_help_panel=COSTS,
    ),
]
WeightsFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Format of the weights: bf16, fp8, int4 and the like, mxfp4 (experts alone).",
        rich_help_panel=COSTS,
    ),
]
CostOf = Annotated[
    str | None,
    typer.Option(
        "--cost-of", help="Charge another model's costs; results say so.", rich_help_panel=COSTS
    ),
]
ProfileTrace = Annotated[
    Path | None,
    typer.Option(
        "--profile-trace",
        help="Another trace, for policies profiled offline.",
        rich_help_panel=POLICIES,
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        help="Simulator: clock; simpy, the slower reference; or compiled, for built-in policies on "
        "long traces and in sweeps (needs numba, the extra 'fast'; its first run compiles for half "
        "a minute).",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the policies' random streams.")]
AskTimes = Annotated[
    list[str] | None,
    typer.Option(
        "--ask",
        help="How long what a policy asks for takes: NAME=TIME, such as predict_use=380ms.",
    ),
]
Requests = Annotated[
    int | None,
    typer.Option("--requests", min=1, help="Replay the first N requests, or let N arrive."),
]
FirstRequests = Annotated[
    int | None, typer.Option("--requests", min=1, help="Replay the first N requests.")
]
Arrivals = Annotated[
    str | None,
    typer.Option(
        "--arrivals",
        help="poisson:rate=2, gamma:rate=2,cv=3, users:users=8,think=1 or file:LOG; all but file "
        "take prompt=N,output=N or lengths=LOG, all take mix=TASK:WEIGHT/TASK:WEIGHT. Their "
        "routing is drawn from the trace.",
        rich_help_panel=SERVING,
    ),
]
Batching = Annotated[
    str | None,
    typer.Option(
        "--batching",
        help="Which requests join: fcfs (default), shortest_first, slo_first, task_aware.",
        rich_help_panel=SERVING,
    ),
]
MaxBatch = Annotated[
    int | None,
    typer.Option("--max-batch", min=1, help="Requests that run together.", rich_help_panel=SERVING),
]
Chunk = Annotated[
    int | None,
    typer.Option(
        "--chunk",
        min=1,
        help="Prompt tokens of a step at most; prompts are taken whole if left out.",
        rich_help_panel=SERVING,
    ),
]
SloOption = Annotated[
    list[str] | None,
    typer.Option(
        "--slo",
        help="[TASK:]ttft=MS,tpot=MS,e2e=MS: what is promised; repeated.",
        rich_help_panel=SERVING,
    ),
]
MaxWaiting = Annotated[
    int | None,
    typer.Option(
        "--max-waiting",
        min=1,
        help="Refuse requests while so many wait.",
        rich_help_panel=SERVING,
    ),
]
Kv = Annotated[
    str | None,
    typer.Option(
        "--kv",
        help="VRAM for KV caches, such as 4GiB. Default: what the largest requests need together.",
        rich_help_panel=SERVING,
    ),
]
KvReserve = Annotated[
    str | None,
    typer.Option(
        "--kv-reserve",
        help="What a request reserves: whole (default), or prompt, which may end out of memory.",
        rich_help_panel=SERVING,
    ),
]
JsonOut = Annotated[
    str | None,
    typer.Option("--json", help="Write the result as JSON; - is stdout.", rich_help_panel=OUTPUT),
]
CsvOut = Annotated[
    Path | None,
    typer.Option("--csv", help="Append the result as a row of this CSV.", rich_help_panel=OUTPUT),
]
Timeline = Annotated[
    Path | None,
    typer.Option(
        "--timeline",
        help="Write every job for ui.perfetto.dev; .gz is compressed.",
        rich_help_panel=OUTPUT,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", help="Draw the run: .png, .svg or .pdf.", rich_help_panel=OUTPUT),
]
Dark = Annotated[
    bool, typer.Option("--dark", help="Draw on a dark ground.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print no table.", rich_help_panel=OUTPUT)
]
