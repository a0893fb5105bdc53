"""The GPU as a machine: one short validation of a shape; without a GPU, one line."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="it runs a real model")

from moesim.simulator.errors import CapabilityError, UnavailableError  # noqa: E402 - after the skip
from moesim.traces import RoutingTrace, write  # noqa: E402
from moesim.validation import cuda, session  # noqa: E402
from moesim.validation.commands import validate  # noqa: E402
from moesim.validation.evidence_files import read_checks, read_folder  # noqa: E402

app = typer.Typer()
app.command()(validate)


@pytest.fixture
def options(
    tmp_path: Path, trace_of: Callable[..., RoutingTrace], write_shape: Callable[..., Path]
) -> list[str]:
    """Return the options of a short validation of a shape with figures of a known machine."""
    heads = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 64, "qk_norm": "head"}
    shape = write_shape(hidden=256, expert_width=128, attention=heads)
    trace = tmp_path / "routes.npz"
    write(trace_of(requests=3), trace)
    model = ["--model", shape, "--weights", "random", "--trace", trace]
    cell = ["--warm", 2, "--tokens", 20, "--repeats", 1, "--slots", "50%"]
    figures = ["--hardware", "h100-sxm", "--runtime", "moesim-graph"]
    return [str(word) for word in [*model, *cell, *figures]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("backend", ["cuda", "cuda-eager"])
def test_a_shape_on_a_gpu(tmp_path: Path, options: list[str], backend: str) -> None:
    """Decisions are those predicted, own routes give the resident logits, anchors are four."""
    folder = tmp_path / "evidence"
    words = ["--backend", backend, "--system", "on-demand,lru", *options, "-o", str(folder)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    assert [check.passed for check in read_checks(folder)] == [True, True]
    for one in read_folder(folder):
        assert one.judged.decisions_right
        assert one.executions[0].anchors_after_ns.keys() == one.provenance.anchors_ns.keys()
        assert len(one.provenance.anchors_ns) == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("backend", ["cuda", "cuda-eager"])
def test_without_a_gpu_it_says_so(options: list[str], backend: str) -> None:
    """It ends before a model is made."""
    result = CliRunner().invoke(app, ["--backend", backend, *options])
    assert isinstance(result.exception, UnavailableError)
    assert str(result.exception) == "device cuda: this machine has 0 GPUs; cpu runs anywhere"


@pytest.fixture
def rig_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], cuda.CudaRig]:
    """Return a function that makes a rig where nothing is measured."""

    def calibrate(_bench: object, *, name: str, **_options: object) -> SimpleNamespace:
        return SimpleNamespace(machine={"name": name}, runtime={"name": name, "title": "t"})

    monkeypatch.setattr(cuda, "gpu", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(cuda, "CudaBench", object)
    monkeypatch.setattr(cuda.calibration, "calibrate", calibrate)
    return cuda.CudaRig


def test_profiles_measured_in_a_session_are_called_as_their_files(
    rig_of: Callable[[str], cuda.CudaRig],
) -> None:
    """Going on, the session reads them by these names."""
    rig, nothing = rig_of("cuda"), cast("Any", None)
    trees = rig.measure(None, nothing, None)
    assert [*trees] == [*rig.figures] == [tree["name"] for tree in trees.values()]
    assert trees[rig.figures[1]]["title"] == "t"


@pytest.mark.parametrize(("minutes", "seconds"), [(None, 150), (60, 150), (9, 108), (1, 12)])
def test_a_calibration_takes_a_share_of_the_minutes(
    rig_of: Callable[[str], cuda.CudaRig],
    monkeypatch: pytest.MonkeyPatch,
    minutes: float | None,
    seconds: float,
) -> None:
    """The cells need the most; without a limit it takes what a calibration takes."""
    given = []

    def calibrate(_bench: object, *, name: str, seconds: float, **_options: object) -> Any:
        given.append(seconds)
        return SimpleNamespace(machine={"name": name}, runtime={})

    rig = rig_of("cuda")
    monkeypatch.setattr(cuda.calibration, "calibrate", calibrate)
    rig.measure(None, cast("Any", None), minutes)
    assert given == [seconds]


def test_figures_are_measured_before_the_model_takes_its_memory(
    monkeypatch: pytest.MonkeyPatch, rig_of: Callable[[str], cuda.CudaRig]
) -> None:
    """A calibration makes models of its own; both at once need not fit."""
    done = []
    rig: Any = rig_of("cuda")
    rig.fingerprint = dict

    def measure(*_arguments: object) -> None:
        done.append("measured")
        raise CapabilityError("enough")

    rig.measure, rig.open = measure, lambda *_arguments: done.append("opened")
    monkeypatch.setattr(session, "_rig", lambda _backend: rig)
    with pytest.raises(CapabilityError, match="enough"):
        CliRunner().invoke(app, ["--backend", "cuda"], catch_exceptions=False)
    assert done == ["measured"]


@pytest.mark.parametrize(("backend", "mode"), [("cuda", None), ("cuda-eager", "hf-eager")])
def test_each_backend_calibrates_its_own_software(
    rig_of: Callable[[str], cuda.CudaRig],
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    mode: str | None,
) -> None:
    """Graphs or transformers' own modules; the profiles are called after the backend."""
    asked = {}

    def calibrate(_bench: object, **options: Any) -> Any:
        asked.update(options)
        return SimpleNamespace(machine={"name": "m"}, runtime={"name": "r"})

    monkeypatch.setattr(cuda.calibration, "calibrate", calibrate)
    monkeypatch.setattr(cuda, "CudaBench", lambda: None)
    monkeypatch.setattr(cuda._cuda, "empty_cache", lambda: None)
    trees = rig_of(backend).measure(None, cast("Any", None), 5.0)
    assert (asked["mode"], asked["seconds"]) == (mode, 60)
    assert trees == {
        "calibrated": {"name": "m"},
        f"calibrated-{backend}": {"name": f"calibrated-{backend}"},
    }


def test_what_a_calibration_replays_is_fitted_on(rig_of: Callable[[str], cuda.CudaRig]) -> None:
    """One request of the sample, whatever trace is to be tested."""
    fitted = rig_of("cuda").fitted_on(cast("Any", None))
    assert (fitted.requests, fitted.layers, fitted.experts) == (1, 16, 64)
