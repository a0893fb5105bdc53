"""The README's first minute prints what it says."""

import contextlib
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from moesim.simulator.cli import main

NUMBERS = {17: "Seventeen", 18: "Eighteen", 19: "Nineteen", 20: "Twenty"}


def test_the_first_table_is_what_the_command_prints(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The console block of the README holds a command and exactly what it prints."""
    text = (repository / "README.md").read_text()
    found = re.search(r"```console\n\$ (.*?)\n(.*?)```", text, re.DOTALL)
    assert found is not None
    command, promised = found.groups()
    monkeypatch.chdir(repository)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with contextlib.suppress(SystemExit):
        main()
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert printed == promised.splitlines(), "\n".join(printed)


def test_every_command_and_law_is_in_it(repository: Path) -> None:
    """Whoever reads it learns of each command, and how many laws there are."""
    text = (repository / "README.md").read_text()
    commands = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["entry-points"]
    missing = {name for name in commands["moesim.commands"] if f"moesim {name}" not in text}
    assert missing == set()
    laws = len(list((repository / "tests" / "laws").glob("test_law_*.py")))
    assert f"{NUMBERS[laws]} invariants" in text
