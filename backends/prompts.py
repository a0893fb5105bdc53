"""What a recording is fed with: one prompt a line, or JSON Lines with prompt and task."""

import json
from dataclasses import dataclass
from pathlib import Path

from moesim.simulator.errors import InputError

KEYS = {"prompt", "task"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to continue and the label of its task; the label may be empty."""

    text: str
    task: str = ""


def read_prompts(path: Path, most: int | None = None) -> list[Prompt]:
    """Read a prompts file; one that starts with a brace is JSON Lines. Blank lines are skipped.

    Args:
        path: UTF-8 text. A JSON line is ``{"prompt": "...", "task": "..."}``, the task optional.
        most: Read only so many prompts.

    Raises:
        InputError: The file can't be read or holds no prompt, or a line is not as it should be.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"{path}: {reason}; give a text file with one prompt a line") from error
    as_json = content.lstrip().startswith("{")
    prompts: list[Prompt] = []
    for number, line in enumerate(content.split("\n"), start=1):
        if most is not None and len(prompts) >= most:
            break
        if line.strip():
            prompts.append(_from_json(path, number, line) if as_json else Prompt(line.rstrip("\r")))
    if not prompts:
        raise InputError(f"{path}: no prompt; write one a line")
    return prompts


def _from_json(path: Path, number: int, line: str) -> Prompt:
    place = f"{path}: line {number}"
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{place}: not JSON ({error.msg} at column {error.colno}); every line must be an object"
        ) from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise InputError(
            f'{place}: no text under "prompt"; write {{"prompt": "...", "task": "..."}}'
        )
    unknown = sorted(entry.keys() - KEYS)
    if unknown:
        raise InputError(f"{place}: unknown key {unknown[0]!r}; there are {sorted(KEYS)}")
    if not entry["prompt"] or not isinstance(entry.get("task", ""), str):
        raise InputError(f"{place}: prompt and task must be texts, the prompt not empty")
    return Prompt(entry["prompt"], entry.get("task", ""))
