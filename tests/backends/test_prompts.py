"""Prompts files: what is read, and one line for each kind of mistake."""

from pathlib import Path

import pytest

from moesim.backends.prompts import Prompt, read_prompts
from moesim.simulator.errors import InputError


def test_a_text_file_has_one_prompt_a_line(tmp_path: Path) -> None:
    """Blank lines are skipped and spaces kept."""
    path = tmp_path / "prompts.txt"
    path.write_text("first\n\n  second \n", encoding="utf-8")
    assert [Prompt("first"), Prompt("  second ")] == read_prompts(path)


def test_json_lines_carry_tasks(tmp_path: Path) -> None:
    """Prompt and task are read, and a prompt may hold a newline."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a\\nb", "task": "code"}\n{"prompt": "c"}\n', encoding="utf-8")
    assert [Prompt("a\nb", "code"), Prompt("c")] == read_prompts(path)


def test_only_so_many_are_read(tmp_path: Path) -> None:
    """What follows the last prompt wanted is not looked at."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\nnot json\n', encoding="utf-8")
    assert [Prompt("a")] == read_prompts(path, most=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no prompt; write one a line"),
        (b"\n \n", "no prompt; write one a line"),
        (b"caf\xe9\n", "not UTF-8"),
        (b'{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON"),
        (b'{"prompt": "a"}\n["b"]\n', 'line 2: no text under "prompt"'),
        (b'{"text": "a"}\n', 'line 1: no text under "prompt"'),
        (b'{"prompt": 7}\n', 'line 1: no text under "prompt"'),
        (b'{"prompt": "a", "tsk": "b"}\n', "line 1: unknown key 'tsk'; there are"),
        (b'{"prompt": "", "task": "b"}\n', "line 1: prompt and task must be texts"),
        (b'{"prompt": "a", "task": 3}\n', "line 1: prompt and task must be texts"),
    ],
)
def test_a_bad_file_gets_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    """The message names the file, the line and what is wrong, in one line."""
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing file is the user's mistake, not a traceback."""
    with pytest.raises(InputError, match=r"nowhere\.txt: No such file"):
        read_prompts(tmp_path / "nowhere.txt")
