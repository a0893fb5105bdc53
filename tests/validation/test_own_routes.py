"""Systems tried on the model's own routes: one that breaks keeps none of the others from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("torch", reason="it runs a real model")

import torch

from moesim.backends.controllers import Deciding
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import OutOfMemoryError
from moesim.simulator.messages import Ask
from moesim.traces import RoutingTrace
from moesim.validation import own_routes
from moesim.validation.beside import Calibration, Check
from moesim.validation.cells import choose_system
from moesim.validation.commands import validate
from moesim.validation.evidence_files import CALIBRATION, read, read_checks, read_folder
from moesim.validation.own_routes import Trying, try_systems
from moesim.validation.subject import Subject

app = typer.Typer()
app.command()(validate)


@pytest.fixture
def trying(tiny_subject: Subject, trace_of: Callable[..., RoutingTrace]) -> Trying:
    """Return a tiny model, and figures of round numbers."""
    trace = trace_of()
    costs = CostModel.for_tests(layers=trace.layers, experts=trace.experts, top_k=trace.top_k)
    return Trying(tiny_subject, costs, trace, trace)


def test_an_ask_is_answered_by_a_fresh_controller(
    trying: Trying, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MoEpic asks after the first prompt; what it says in arrays is compared by content."""
    logs: list[Any] = []
    first_difference = own_routes.first_difference

    def noted(log: Any, controller: Any) -> str | None:
        logs.append(log)
        return first_difference(log, controller)

    monkeypatch.setattr(own_routes, "first_difference", noted)
    [check], executed = try_systems(trying, [choose_system("moepic")], folder, lambda _: None)
    [log] = logs
    assert [type(c) for _, _, answer in log for c in answer].count(Ask) == 1
    assert check.passed
    assert [*executed] == ["moepic"]


def break_system(monkeypatch: pytest.MonkeyPatch, system: str, error: Exception) -> None:
    """Let one system's trial end in an error."""
    whole = own_routes._decided

    def decided(subject: Subject, deciding: Deciding, done: Any) -> Any:
        if deciding.system == system:
            raise error
        return whole(subject, deciding, done)

    monkeypatch.setattr(own_routes, "_decided", decided)


def test_one_that_breaks_has_failed_and_the_others_go_on(
    trying: Trying, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went wrong is kept beside the others; tried again it passes, and that is kept."""
    said: list[str] = []
    choices = [choose_system(system) for system in ("lru", "on-demand")]
    with monkeypatch.context() as patch:
        break_system(patch, "lru", ValueError("truth value of an array\nis ambiguous"))
        checks, executed = try_systems(trying, choices, folder, said.append)
    assert [check.passed for check in checks] == [False, True]
    assert [*executed] == ["on-demand"]
    assert said[0] == "lru: own routes, ValueError: truth value of an array, FAILED"
    assert read_checks(folder) == checks

    checks, executed = try_systems(trying, choices, folder, said.append)
    assert all(check.passed for check in checks)
    assert {check.fault for check in read_checks(folder)} == {None}


@pytest.mark.parametrize(
    "error", [OutOfMemoryError("full"), torch.OutOfMemoryError("full"), KeyboardInterrupt()]
)
def test_what_no_other_system_would_survive_ends_all(
    trying: Trying, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    """Memory that is used up and ctrl-C are nobody's own; who passed before is kept."""
    break_system(monkeypatch, "on-demand", error)
    choices = [choose_system(system) for system in ("lru", "on-demand")]
    with pytest.raises(type(error)):
        try_systems(trying, choices, folder, lambda _: None)
    assert [check.system for check in read_checks(folder)] == ["lru"]


def test_a_broken_check_is_not_taken_for_one_of_this_code() -> None:
    """The same commit tries it again."""
    none: Any = None
    trying = Trying(none, none, none, none, commit="abc", charged=("lru",))
    check = Check.broken("lru", "it broke", timing_free=True, commit="abc")
    assert not trying.knows(check)
    assert not check.passed


def test_the_command_names_who_broke_and_executes_the_others(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exit code is that of a failure, its evidence has the other's cells alone."""
    folder = tmp_path / "evidence"
    break_system(monkeypatch, "lru", ValueError("it broke"))
    words = [*options[: options.index("--system")], "--system", "lru,on-demand"]
    words += [*options[options.index("--system") + 2 :], "-o", str(folder)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 1
    assert "ValueError: it broke" in result.stdout
    assert {one.prediction.cell.system for one in read_folder(folder)} == {"on-demand"}
    again = CliRunner().invoke(app, ["--check", str(folder)], catch_exceptions=False)
    assert again.exit_code == 1
    assert "FAILED" in again.stdout


def test_figures_outlive_what_breaks_after_them(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command goes on with them, and takes anchors then."""
    folder = tmp_path / "evidence"
    words = [*options, "-o", str(folder)]
    with monkeypatch.context() as patch:
        break_system(patch, "on-demand", OutOfMemoryError("full"))
        with pytest.raises(OutOfMemoryError, match="full"):
            CliRunner().invoke(app, words, catch_exceptions=False)
    kept = read(folder / CALIBRATION, Calibration)
    assert kept.anchors_ns == {}
    figures = {path: path.read_bytes() for path in folder.glob("*.yaml")}
    assert len(figures) == 2

    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "going on with the figures of the folder" in result.stderr
    assert "figures of this machine: taken" not in result.stderr
    assert {path: path.read_bytes() for path in figures} == figures
    whole = read(folder / CALIBRATION, Calibration)
    assert whole.fit_traces == kept.fit_traces
    assert whole.anchors_ns
    [one] = read_folder(folder)
    assert one.provenance.anchors_ns == whole.anchors_ns
