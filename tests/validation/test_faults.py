"""What goes wrong in the middle ends in one line and a code; what was executed is kept."""

import _thread
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="it executes")

from moesim.backends import store
from moesim.backends.drivers.threads import ThreadsDriver
from moesim.simulator.cli import main
from moesim.simulator.errors import OutOfMemoryError
from moesim.validation.evidence_files import read_folder

KEPT = "every execution that ended is kept in"


@pytest.fixture
def command(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], int]:
    """Return what runs ``moesim validate`` on a tiny shape and gives the exit code."""
    words = ["moesim", "validate", *options, "-o", str(tmp_path / "evidence")]

    def run() -> int:
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0)

    return run


def harm(
    monkeypatch: pytest.MonkeyPatch, folder: Path, fault: Callable[[], None], executions: int
) -> None:
    """Let a copy end in a fault once so many executions are kept."""
    whole = ThreadsDriver.copy_bytes

    def copy_bytes(self: ThreadsDriver, *stretch: Any) -> None:
        partials = "".join(path.read_text() for path in folder.glob("*.partial.json"))
        if partials.count('"attempts"') >= executions:
            monkeypatch.setattr(ThreadsDriver, "copy_bytes", whole)
            fault()
        whole(self, *stretch)

    monkeypatch.setattr(ThreadsDriver, "copy_bytes", copy_bytes)


def break_link() -> None:
    """Fail as a copy does."""
    raise RuntimeError("the link is down")


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (break_link, 1, "failed: the link is down"),
        (_thread.interrupt_main, 130, ""),
    ],
)
def test_executions_are_kept_and_not_done_again(
    command: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: Callable[[], None],
    code: int,
    said: str,
) -> None:
    """A copy that fails and ctrl-C end the second execution; the same command does that alone."""
    folder = tmp_path / "evidence"
    harm(monkeypatch, folder, fault, 1)

    assert command() == code

    told = capsys.readouterr().err
    assert KEPT in told
    assert said in told
    assert "Traceback" not in told
    [partial] = folder.glob("*.partial.json")
    first = partial.read_text()

    assert command() in (0, 1)

    again = capsys.readouterr().err
    assert "going on with the figures of the folder" in again
    assert "1 of 2" not in again
    assert "2 of 2" in again
    [one] = read_folder(folder)
    assert not partial.exists()
    assert len(one.executions) == 2
    assert one.executions[0].model_dump_json()[:200].replace(" ", "") in first.replace(" ", "")


def test_memory_that_cannot_be_had_is_one_line(
    command: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where the host has no room for the experts nothing is executed and nothing left behind."""

    def refuse(nbytes: int, *, pin: bool) -> None:
        del pin
        raise OutOfMemoryError(f"{nbytes} bytes of host memory cannot be page-locked")

    monkeypatch.setattr(store, "make_room", refuse)
    assert command() == 1
    told = capsys.readouterr().err
    assert told.splitlines()[-1].endswith("bytes of host memory cannot be page-locked")
    assert [*(tmp_path / "evidence").iterdir()] == []
