"""What evidence says of where it comes from: the command and the commit of the code."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

UNKNOWN, DIRTY = "unknown", "-dirty"


def command_given() -> str:
    """Return the command line, without the folders of this machine."""
    return " ".join(["moesim", *(without_folder(word) for word in sys.argv[1:])])


def made_by(commit: str | None, packages: Sequence[str]) -> dict[str, Any]:
    """Return what a script's figures say of their making; its machine is for the script to tell.

    Args:
        commit: See `commit_of`.
        packages: Whose versions matter.
    """
    return {
        "command": " ".join(["python", *(without_folder(word) for word in sys.argv)]),
        "commit": commit_of(commit),
        "versions": {name: version(name) for name in packages},
    }


def without_folder(word: str) -> str:
    """Return a word of a command line; of an absolute path, its name alone."""
    return Path(word).name if Path(word).is_absolute() else word


def commit_of(told: str | None) -> str:
    """Return the commit of the checkout that runs.

    Args:
        told: What it is, of a copy that was brought to a machine without its history; None asks
            git, and where git knows nothing it is `UNKNOWN`.
    """
    if told is not None:
        return told
    command = ["git", "describe", "--always", f"--dirty={DIRTY}", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(  # noqa: S603  a fixed command
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return done.stdout.strip()


def is_commit(text: str) -> bool:
    """Return whether a commit says all of the code: it is known, and nothing was changed after."""
    return text != UNKNOWN and not text.endswith(DIRTY)
