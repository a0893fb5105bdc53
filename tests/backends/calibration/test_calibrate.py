"""A calibration from end to end on this CPU, on sizes small enough for a test."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moesim.backends.calibrate_command import calibrate as command
from moesim.backends.calibration import run
from moesim.backends.calibration.cuda_bench import CudaBench
from moesim.backends.calibration.files import write_machine, write_runtime
from moesim.backends.calibration.run import Calibration, calibrate
from moesim.backends.calibration.scale import (
    DensePoint,
    DenseShape,
    ExpertPoint,
    ExpertShape,
    Scale,
)
from moesim.backends.calibration.threads_bench import ThreadsBench
from moesim.hardware_profiles import check, load_runtime
from moesim.hardware_profiles.errors import ProfileError
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import InputError, UnavailableError
from moesim.simulator.models.cost_shape import CostShape

_DENSE = DenseShape(64, 2, 1, 32, 8)
_EXPERT = ExpertShape(64, 64)
SMALL = Scale(
    copy_bytes=(4_096, 65_536, 1_048_576),
    held_copy_bytes=(16_384,),
    long_copy_bytes=262_144,
    pauses_s=(0.001, 0.002),
    cold_bytes=1_000_000,
    product_width=128,
    read_bytes=1_048_576,
    head=(64, 256),
    dense=(DensePoint(_DENSE, 16, 1), DensePoint(_DENSE, 64, 2)),
    held_dense=(DensePoint(_DENSE, 32, 1),),
    experts=(ExpertPoint(_EXPERT, 1, 1), ExpertPoint(_EXPERT, 2, 1)),
    held_experts=(ExpertPoint(_EXPERT, 2, 2),),
    cpu_expert=_EXPERT,
)


@pytest.fixture(scope="module")
def found() -> Calibration:
    """Return one small calibration of this machine."""
    return calibrate(
        ThreadsBench(SMALL), name="small", seconds=0.0, command="a test", systems=["on-demand"]
    )


def figures(node: Any, sources: dict[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Return every figure of a profile with its source."""
    if isinstance(node, dict):
        return [figure for child in node.values() for figure in figures(child, sources)]
    return [(node[0], sources[node[1]])] if isinstance(node, list) else []


def test_the_profile_is_valid(found: Calibration, tmp_path: Path) -> None:
    """What is written passes the check that any profile must pass."""
    path = tmp_path / "small.yaml"
    write_machine(found.machine, path)
    profile = check(path)
    assert profile.name == "small"
    assert profile.fingerprint is not None
    assert [path] == list(tmp_path.iterdir())


def test_the_runtime_is_valid_and_knows_the_system(found: Calibration, tmp_path: Path) -> None:
    """The runtime file loads, with a row for each system whose decisions were timed."""
    path = tmp_path / "mine.yaml"
    write_runtime(found.runtime, path)
    runtime = load_runtime(path)
    assert list(runtime.decisions.systems) == ["on-demand"]
    row = runtime.decisions.systems["on-demand"]
    assert row.base.value + row.per_expert.value + row.per_command.value > 0


def test_every_figure_says_how_it_is_known(found: Calibration) -> None:
    """All but what has no meaning on a CPU is measured, with command, samples and spread."""
    for tree in (found.machine, found.runtime):
        sections = {key: part for key, part in tree.items() if key != "sources"}
        weak = {
            source["source"]
            for _, source in figures(sections, tree["sources"])
            if source["evidence"] != "measured"
        }
        assert weak <= {
            "half of the RAM stands for VRAM",
            "the narrowest connection that carries the fastest copy; none was reported",
            "activations of a small model",
        }


def test_points_held_out_are_reported_and_not_fitted(found: Calibration) -> None:
    """Each held-out point has a prediction and a measurement of its own."""
    names = {point["point"] for point in found.record()["held_out"]}
    assert {point.name for point in (*SMALL.held_dense, *SMALL.held_experts)} <= names
    assert "copy h2d 16KiB" in names
    json.dumps(found.record())


def test_a_faulty_figure_leaves_no_file(found: Calibration, tmp_path: Path) -> None:
    """A profile that cannot be is refused before anything is written."""
    broken = {**found.machine, "gpu": {**found.machine["gpu"], "vram": ["0B", "sizes"]}}
    with pytest.raises(ProfileError, match=r"gpu\.vram"):
        write_machine(broken, tmp_path / "broken.yaml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_cuda_is_refused(tmp_path: Path) -> None:
    """``--backend cuda`` without a GPU is one line, and writes nothing."""
    with pytest.raises(UnavailableError, match="this machine has 0 GPUs; cpu runs"):
        command(tmp_path / "x.yaml", backend="cuda")
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused_before_minutes_are_spent(tmp_path: Path) -> None:
    """A name that no profile can have, or a backend that is none, names value and way out."""
    with pytest.raises(InputError, match="the file's name is the profile's"):
        command(tmp_path / "My GPU.yaml", backend="cpu")
    with pytest.raises(InputError, match="--backend tpu: expected cuda or cpu"):
        command(tmp_path / "x.yaml", backend="tpu")
    with pytest.raises(InputError, match="existing folder"):
        command(tmp_path / "none" / "x.yaml", backend="cpu")


def test_the_profile_can_be_simulated(found: Calibration, tmp_path: Path) -> None:
    """Machine and runtime as written serve a cost model: every kind of time is above 0."""
    write_machine(found.machine, tmp_path / "small.yaml")
    write_runtime(found.runtime, tmp_path / "mine.yaml")
    shape = CostShape.from_bytes([1_000_000], [100_000], experts=8, top_k=2)
    costs = CostModel(check(tmp_path / "small.yaml"), load_runtime(tmp_path / "mine.yaml"), shape)
    assert costs.copy_ns(1_000_000) > 0
    assert costs.experts_gpu_ns(0, [1, 1]) > costs.experts_gpu_ns(0, [1])
    assert costs.expert_cpu_ns(0, 1, while_copying=True) >= costs.expert_cpu_ns(0, 1)
    assert costs.decision_ns("on-demand", 2, 3) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_is_calibrated(tmp_path: Path) -> None:
    """On a GPU the same run gives a valid profile of it."""
    done = calibrate(CudaBench(), name="gpu", seconds=10.0, command="a test")
    write_machine(done.machine, tmp_path / "gpu.yaml")
    assert torch.cuda.get_device_name() == check(tmp_path / "gpu.yaml").gpu.name


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"cache": "lru"}, "--cache lru: tells what an engine's log was made with"),
        ({"slots": "25%"}, "--slots 25%: tells what an engine's log was made with"),
        ({"log_columns": "time=t"}, "--log-columns time=t: tells what"),
        ({"minutes": 1.0}, "--minutes 1.0: is of measuring this machine"),
        ({"backend": "cpu"}, "--backend cpu: is of measuring this machine"),
    ],
)
def test_an_option_of_the_other_way_is_refused(
    options: dict[str, Any], line: str, tmp_path: Path
) -> None:
    """Measuring takes no options of a log, a log none of measuring; each is named."""
    of_log = {"backend", "minutes"} & options.keys()
    log = {"from_log": tmp_path / "a.csv", "trace": tmp_path / "t.npz"} if of_log else {}
    with pytest.raises(InputError) as told:
        command(tmp_path / "x.yaml", **options, **log)
    assert str(told.value).startswith(line)


class Failing(ThreadsBench):
    """A bench whose software fails at its first probe, and which says what is closed."""

    def __init__(self) -> None:
        super().__init__(SMALL)
        self.closed: list[str] = []

    def software(self) -> Any:
        """Return software that cannot be measured."""

        def fail() -> list[Any]:
            raise ZeroDivisionError

        return SimpleNamespace(probes=fail, close=lambda: self.closed.append("software"))

    def close(self) -> None:
        """Say so."""
        self.closed.append("bench")
        super().close()


def test_a_failed_probe_leaves_nothing_open() -> None:
    """What holds the device is closed before the bench, whatever failed."""
    bench = Failing()
    with pytest.raises(ZeroDivisionError):
        calibrate(bench, name="small", seconds=0.0, command="a test", systems=["on-demand"])
    assert bench.closed == ["software", "bench"]


def test_a_bench_is_closed_where_its_workers_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failure before the first probe closes the bench too."""
    monkeypatch.setattr(run.works, "Weights", lambda *_: 1 // 0)
    bench = Failing()
    with pytest.raises(ZeroDivisionError):
        calibrate(bench, name="small", seconds=0.0, command="a test", systems=["on-demand"])
    assert bench.closed == ["bench"]


def test_copies_beside_have_ended_though_a_probe_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is waited for after a probe that raises, so that the next has it alone."""
    waited = []
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(1))
    bench: Any = object.__new__(CudaBench)
    bench.scale, bench._up, bench._enqueue = SMALL, None, lambda *_: None
    with pytest.raises(ZeroDivisionError), bench.copies_beside():
        raise ZeroDivisionError
    assert waited == [1]
