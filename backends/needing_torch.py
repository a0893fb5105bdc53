"""What a command says where torch is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

OURS = frozenset({"torch", "transformers"})


@contextmanager
def needing_torch(doing: str) -> Iterator[None]:
    """Import what needs torch inside; a missing package becomes one line and exit code 3.

    Args:
        doing: What needs it: "recording".

    Raises:
        UnavailableError: torch or transformers is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in OURS:
            raise
        from moesim.simulator.errors import UnavailableError  # noqa: PLC0415  commands stay light

        raise UnavailableError(
            f"{doing} needs {error.name}; install it with: pip install 'moesim[torch]'"
        ) from error
