"""The README's first minute prints what it says."""

import contextlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from moesim.simulator.cli import main


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
