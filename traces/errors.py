"""What is wrong with a trace is the fault of a file, and one line names it."""

from typing import NoReturn


class TraceError(ValueError):
    """A trace cannot be used; one line says which file, array, row and value, and what would do."""


def blame(name: str, place: str, problem: str, way_out: str) -> NoReturn:
    """Raise the one line: file, array or key with its row, what is wrong there, what would do."""
    raise TraceError(f"{name}: {place}: {problem}; {way_out}")
