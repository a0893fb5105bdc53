"""The options of ``moesim validate`` and ``moesim explain``."""

from pathlib import Path
from typing import Annotated

import typer

Backend = Annotated[
    str, typer.Option("--backend", help="What executes: cpu (threads), cuda (graphs), cuda-eager.")
]
Check = Annotated[
    Path | None,
    typer.Option(
        "--check",
        help="Judge the evidence of this folder, or of all folders in it, again; execute nothing.",
    ),
]
More = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[DIR]...", help="With --check: more folders.", show_default=False),
]
JsonOut = Annotated[
    Path | None,
    typer.Option("--json", help="Write cells, verdict, signs, choice and inside as JSON."),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A transformers MoE model; with --weights random also a shape, such as olmoe. "
        "Default: the reference model.",
    ),
]
Trace = Annotated[
    Path | None, typer.Option("--trace", help="What is served. Default: the sample of that model.")
]
System = Annotated[
    str | None,
    typer.Option(
        "--system", help="Comma-separated: systems, or cache+prefetch+schedule. Default: three."
    ),
]
Vram = Annotated[
    str | None,
    typer.Option("--vram", help="Comma-separated: VRAM for everything, such as 12GiB."),
]
Slots = Annotated[
    str | None,
    typer.Option(
        "--slots",
        help="Comma-separated: room for experts, numbers or shares. 25%,50% without --vram.",
    ),
]
Hardware = Annotated[
    str | None,
    typer.Option("--hardware", help="Machine profile; without one figures are measured."),
]
Runtime = Annotated[
    str | None, typer.Option("--runtime", help="Runtime profile that goes with --hardware.")
]
Routing = Annotated[
    str,
    typer.Option("--routing", help="forced: the trace's routes; own: the model's, on its tokens."),
]
MaxBatch = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated: serve up to N requests together; without --arrivals all come at "
        "once."
    ),
]
Chunk = Annotated[
    int | None,
    typer.Option(min=1, help="Take at most N prompt tokens a step. Default: prompts whole."),
]
Repeats = Annotated[int, typer.Option(min=1, help="Executions of each cell; 5 make a claim.")]
Warm = Annotated[
    int | None, typer.Option(min=0, help="Decode tokens that are not counted. 20; 10 on a CPU.")
]
Tokens = Annotated[
    int | None, typer.Option(min=2, help="Decode tokens that are. 100; 50 on a CPU.")
]
Minutes = Annotated[
    float | None, typer.Option(min=0.0, help="Begin no cells that would not end within them.")
]
Prompt = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated: tokens of each prompt, cut or stitched from those recorded."
    ),
]
ProfileTrace = Annotated[
    Path | None,
    typer.Option(
        "--profile-trace",
        help="What systems look at that are profiled offline. Default: the other requests of the "
        "trace.",
    ),
]
Arrivals = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated: who comes when, as in moesim simulate, such as "
        "poisson:rate=4,requests=60,prompt=200,output=64; with --max-batch."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Of arrivals, and of what is drawn for them.")]
Intervene = Annotated[
    str | None,
    typer.Option(
        "--intervene",
        help="Comma-separated: change one figure without calibrating again, and the machine with "
        "it: link=0.5, copies=8, cpu_threads=4 or pageable; none leaves it as it is.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for evidence; goes on with what it has."),
]
Commit = Annotated[
    str | None,
    typer.Option("--commit", help="Of the code, in a copy that came without its history."),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="Predicted against measured, as .png, .svg or .pdf.")
]
Evidence = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that moesim validate wrote.")]
CellName = Annotated[
    str | None, typer.Option("--cell", help="One cell alone, by the beginning of its file's name.")
]
Timeline = Annotated[
    Path | None,
    typer.Option("--timeline", help="Draw one token of the cell, both ways, into a file."),
]
