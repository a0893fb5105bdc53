"""``moesim trace``: look at a trace, convert it, check it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.simulator.commands.options import Mapping

if TYPE_CHECKING:
    from moesim.traces import RoutingTrace

trace = typer.Typer(no_args_is_help=True, help="Look at routing traces, convert them, check them.")

Given = Annotated[
    Path, typer.Argument(help="A trace: a file or folder of any format that moesim reads.")
]


@trace.command()
def info(
    given: Given,
    mapping: Mapping = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a trace holds: model, evidence, tasks, signals, and how its routing behaves."""
    import json

    from moesim.simulator.tables import print_fields
    from moesim.traces import describe

    found = describe(_load(given, mapping))
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_fields(f"trace {given.name}", found)


@trace.command()
def convert(
    given: Given,
    out: Annotated[
        Path, typer.Argument(help="Where to: .safetensors (memory-mapped) or .npz (compressed).")
    ],
    mapping: Mapping = None,
) -> None:
    """Read a trace of any format and write it in moesim's own."""
    from moesim.traces import write

    found = _load(given, mapping)
    write(found, out)
    typer.echo(
        f"{out}: {found.tokens} tokens, {found.layers} layers x {found.experts} experts", err=True
    )


@trace.command()
def annotate(
    given: Given,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The trace to write: .safetensors or .npz.")
    ],
    sensitivity: Annotated[
        Path,
        typer.Option(
            "--sensitivity",
            help="Profile of python -m moesim.backends.sensitivity; its flags become the signal "
            "sensitivity_RL, by task, which --cache periodic:sensitivity=sensitivity_RL reads.",
        ),
    ],
    threshold: Annotated[
        float | None,
        typer.Option(
            help="A layer matters where the profile's agreement is below this; default as profiled."
        ),
    ] = None,
    mapping: Mapping = None,
) -> None:
    """Add a signal that was computed elsewhere to a trace."""
    from moesim.simulator.commands.outputs import check_targets
    from moesim.traces import write
    from moesim.traces.sensitivity import read_flags, with_sensitivity

    check_targets(output)
    flags = read_flags(sensitivity, threshold)
    found = with_sensitivity(_load(given, mapping), flags, given.name)
    found.validate(output.name)
    write(found, output)
    typer.echo(f"{output}: {found.requests} requests with sensitivity_RL", err=True)


@trace.command()
def chunk(
    given: Given,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; new.")],
    rows: Annotated[
        int, typer.Option(min=1, help="Rows of a chunk at most; requests stay whole.")
    ] = 262_144,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Draw its requests again and again until there are so many rows: a synthetic "
            "trace for benchmarks.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    ids_alone: Annotated[
        bool, typer.Option("--ids-only", help="Leave gates and signals out.")
    ] = False,
    mapping: Mapping = None,
) -> None:
    """Write a trace as a folder of chunks, which replays in constant memory however long it is.

    moesim trace chunk TRACE -o FOLDER

    moesim trace chunk TRACE -o FOLDER --tokens 20000000 --ids-only
    """
    from moesim.traces.chunks import cut, write_chunks
    from moesim.traces.redrawn import ids_only, redrawn

    found = _load(given, mapping)
    if ids_alone:
        found = ids_only(found)
    if tokens is None:
        pieces = cut(found, rows)
    else:
        pieces = redrawn(found, tokens=tokens, seed=seed, rows=rows)
    write_chunks(pieces, output)
    written = _load(output, None)
    typer.echo(f"{output}: {written.tokens} tokens of {written.requests} requests", err=True)


@trace.command()
def validate(given: Given, mapping: Mapping = None) -> None:
    """Check every array and row of a trace; the first fault is one line and exit code 1."""
    found = _load(given, mapping)
    if found.known is not None:
        from moesim.traces.chunks import check_whole

        check_whole(found, given)
    typer.echo(f"{given.name}: valid, {found.tokens} tokens of {found.requests} requests")


@trace.command()
def formats() -> None:
    """List the formats that moesim reads."""
    from moesim.simulator.tables import print_table
    from moesim.traces.readers import formats as known

    print_table("formats", ("name", "what it is"), known().items())


def _load(given: Path, mapping: str | None) -> "RoutingTrace":
    from moesim.traces import load, parse_mapping

    return load(given, mapping=parse_mapping(mapping) if mapping else None)
