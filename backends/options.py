"""The options that say which model is opened, of every command that opens one."""

from typing import Annotated

import typer

Weights = Annotated[
    str,
    typer.Option(
        "--weights",
        help="checkpoint: the model's own. random: of its dimensions, served a trace's routes.",
    ),
]
Layers = Annotated[
    int | None, typer.Option(min=1, help="Keep the first N MoE layers; random weights only.")
]
ExpertFormat = Annotated[
    str | None,
    typer.Option("--format", help="Write the experts alone in fp8 or int4; random weights only."),
]
PinnedPool = Annotated[
    str | None,
    typer.Option(
        "--pinned-pool",
        help="Host memory that all experts share, such as 8GiB; random weights only.",
    ),
]
