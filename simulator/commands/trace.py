"""``moesim trace``: look at a trace, convert it, check it."""

from pathlib import Path
from typing import Annotated

import typer

trace = typer.Typer(no_args_is_help=True, help="Look at routing traces, convert them, check them.")

Given = Annotated[
    Path, typer.Argument(help="A trace: a file or folder of any format that moesim reads.")
]
Mapping = Annotated[
    str | None,
    typer.Option(
        "--map", help="For any CSV or JSONL: token=COLUMN,layer=COLUMN,experts=COLUMN[,...]."
    ),
]


@trace.command()
def info(
    given: Given,
    mapping: Mapping = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a trace holds: model, evidence, tasks, signals, and how its routing behaves."""
    import json

    from moesim.simulator.report import print_fields
    from moesim.traces import describe, load

    found = describe(load(given, mapping=parse_map(mapping)))
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
    from moesim.traces import load, write

    found = load(given, mapping=parse_map(mapping))
    write(found, out)
    typer.echo(
        f"{out}: {found.tokens} tokens, {found.layers} layers x {found.experts} experts", err=True
    )


@trace.command()
def validate(given: Given, mapping: Mapping = None) -> None:
    """Check every array and row of a trace; the first fault is one line and exit code 1."""
    from moesim.traces import load

    found = load(given, mapping=parse_map(mapping))
    typer.echo(f"{given.name}: valid, {found.tokens} tokens of {found.requests} requests")


@trace.command()
def formats() -> None:
    """List the formats that moesim reads."""
    from moesim.simulator.report import print_table
    from moesim.traces.readers import formats as known

    print_table("formats", ("name", "what it is"), known())


def parse_map(text: str | None) -> dict[str, str] | None:
    """Return ``role=column`` pairs, or None if no mapping was given."""
    if text is None:
        return None
    from moesim.simulator.errors import InputError

    pairs = {}
    for item in text.split(","):
        role, equals, column = item.partition("=")
        if not equals or not column:
            raise InputError(f"--map {text}: '{item}' is not ROLE=COLUMN")
        pairs[role.strip()] = column.strip()
    return pairs
