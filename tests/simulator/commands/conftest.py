"""Runs the command line inside the test's own process."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from moesim.simulator.cli import main


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a function that runs ``moesim`` with arguments and returns code, stdout and stderr."""

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["moesim", *(str(word) for word in words)])
        monkeypatch.setenv("COLUMNS", "100")
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def sample(repository: Path) -> Path:
    """Return the recorded trace that ships."""
    return repository / "traces" / "samples" / "reference-12x32.npz"


@pytest.fixture
def simulate(cli: Cli, sample: Path) -> Cli:
    """Return a function that simulates the sample at a tight budget and the cost of a big model."""

    def run(*words: object) -> Outcome:
        fixed = ("--hardware", "rtx4090", "--cost-of", "mixtral-8x7b", "--format", "int4")
        return cli("simulate", sample, *fixed, "--requests", 3, *words)

    return run
