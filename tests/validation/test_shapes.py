"""Shapes are validated as models are: on the routes of a trace of their own topology."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("torch", reason="it runs a real model")

from moesim.backends.controllers import Deciding
from moesim.hardware_profiles import load
from moesim.hardware_profiles.schema import Fingerprint
from moesim.simulator.errors import InputError
from moesim.traces import RoutingTrace
from moesim.validation import figures
from moesim.validation.beside import Calibration
from moesim.validation.cells import choose_system
from moesim.validation.commands import validate
from moesim.validation.deciding import DecisionCosts
from moesim.validation.evidence_files import CALIBRATION, read, read_folder
from moesim.validation.routes import check_topology, held_out
from moesim.validation.subject import HORIZONS, horizons_of

app = typer.Typer()
app.command()(validate)
NOTHING = DecisionCosts({}, {})


def test_a_shape_is_predicted_and_executed(tmp_path: Path, options: list[str]) -> None:
    """Decisions are those predicted; the evidence says what runs and that experts share memory."""
    folder = tmp_path / "evidence"
    result = CliRunner().invoke(app, [*options, "-o", str(folder)], catch_exceptions=False)
    (one,) = read_folder(folder)
    assert result.exit_code == 0
    assert "not checked, nothing here holds every expert at once" in result.stderr
    assert one.prediction.cell.model == "tiny-3-layers random weights"
    assert one.judged.decisions_right
    assert [execution.decisions.differing for execution in one.executions] == [0, 0]
    assert one.provenance.machine["experts"] == "589824 bytes share 196608 of the host"


def test_a_trace_of_another_topology_is_refused(options: list[str]) -> None:
    """Both topologies are named."""
    options[options.index("--layers") + 1] = "2"
    with pytest.raises(
        InputError, match="has 3 layers x 8 experts top-2, tiny-2-layers random weights 2 "
    ):
        CliRunner().invoke(app, options, catch_exceptions=False)


def test_topologies_are_layers_experts_and_top_k(trace_of: Callable[..., RoutingTrace]) -> None:
    """The same number of layers and experts with another top-k is another topology."""
    with pytest.raises(InputError, match="top-2, model 3 layers x 8 experts top-3"):
        check_topology((3, 8, 3), "model", trace_of(), Path("routes.npz"))
    check_topology((3, 8, 2), "model", trace_of(), Path("routes.npz"))


def test_what_was_fitted_on_is_not_tested(trace_of: Callable[..., RoutingTrace]) -> None:
    """The first requests are taken, but for the fitted one; where too few are left, it is said."""
    trace = trace_of(requests=3)
    assert held_out(trace, trace.select_requests([0]), 40) == [1, 2]
    with pytest.raises(InputError, match="60 decode tokens that nothing was fitted on, 61 are"):
        held_out(trace, trace.select_requests([2]), 61)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"gpu": "other"}, "another machine (other, C): what follows is a claim"),
        ({"host": "other"}, "another host of the same parts, or before this one was started again"),
        ({"host": None}, "another host of the same parts, or before this one was started again"),
    ],
)
def test_a_calibrated_profile_names_what_it_was_fitted_on(
    tmp_path: Path,
    trace_of: Callable[..., RoutingTrace],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str | None],
    said: str | None,
) -> None:
    """A profile with a fingerprint was fitted; one of another host is said to be that."""
    here = {"gpu": "G", "driver": "D", "cpu": "C", "pcie": "P", "host": "H"}
    made_on = Fingerprint(**here | change)  # type: ignore[arg-type]  None is of an old profile
    profile = load("h100-sxm").model_copy(update={"fingerprint": made_on})
    monkeypatch.setattr(figures, "load_hardware", lambda _name: profile)
    rig: Any = SimpleNamespace(fingerprint=lambda: here, anchors=lambda _subject: {"loop": 1})
    wishes: Any = SimpleNamespace(hardware="h100-sxm", runtime="moesim-graph")
    subject: Any = None
    fitted, lines = trace_of(requests=1), list[str]()
    taken = figures.take_figures(wishes, rig, None, fitted, tmp_path, None, lines.append)
    found = figures.keep_calibration(taken, NOTHING, rig, subject, tmp_path)
    assert found.fit_traces == (fitted.content_hash(),)
    assert taken.is_of_here is (said is None)
    assert [line for line in lines if said is None or said not in line] == []
    assert len(lines) == (said is not None)
    assert found == read(tmp_path / CALIBRATION, Calibration)


@pytest.mark.parametrize(
    ("system", "horizons"),
    [("lru+next_gate:horizon=1", 1), ("lru+next_gate:horizon=2", 2), ("lru", HORIZONS)],
)
def test_a_model_looks_as_far_ahead_as_its_policy(system: str, horizons: int) -> None:
    """Looking further would take time that the system does not need."""
    deciding = Deciding(policies=choose_system(system).policies, budget_bytes=1)
    assert horizons_of(deciding) == horizons
