"""Plain tables for people, on stdout."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 100


def console() -> Console:
    """Return a console on stdout; as wide as the terminal, or 100 columns in a pipe."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=WIDTH)


def print_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under a title."""
    table = Table(*heads, title=title, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_fields(title: str, fields: Mapping[str, Any]) -> None:
    """Print names and values under a title."""
    table = Table(
        "", "", title=title, title_justify="left", box=None, show_header=False, pad_edge=False
    )
    for name, value in fields.items():
        table.add_row(name, _plain(value))
    console().print(table)


def _plain(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_plain(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return "\n".join(_plain(item) for item in value) or "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)
