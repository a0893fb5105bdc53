"""Refuses an output that cannot be written before the work, not after it."""

from pathlib import Path


def check_targets(*targets: Path | None) -> None:
    """Check that files can be put where they are asked for.

    Raises:
        InputError: There is no such folder, or the target is one.
    """
    from moesim.simulator.errors import InputError

    for target in filter(None, targets):
        if not target.absolute().parent.is_dir():
            raise InputError(f"{target}: there is no folder {target.parent}; make it first")
        if target.is_dir():
            raise InputError(f"{target}: is a folder; name a file")
