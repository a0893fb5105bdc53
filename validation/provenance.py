"""What evidence says of where it comes from: the command and the commit of the code."""

import subprocess
import sys
from pathlib import Path


def command_given() -> str:
    """Return the command line, without the folders of this machine."""
    return " ".join(["moesim", *(without_folder(word) for word in sys.argv[1:])])


def without_folder(word: str) -> str:
    """Return a word of a command line; of an absolute path, its name alone."""
    return Path(word).name if Path(word).is_absolute() else word


def commit_of(told: str | None) -> str:
    """Return the commit of the checkout that runs.

    Args:
        told: What it is, of a copy that was brought to a machine without its history; None asks
            git, and where git knows nothing it is ``unknown``.
    """
    if told is not None:
        return told
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(  # noqa: S603  a fixed command
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
