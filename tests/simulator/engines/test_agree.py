"""The clock and SimPy give one answer: every time, count and byte, whatever is run.

Both carry out one host program, so what could part them is how time passes and in which order what
is simultaneous is seen; durations of a few ns force such ties. `test_engine_against_reference.py`
holds both against a second derivation of the times. Runs are set up from files, as by ``moesim
simulate``, so that a counterexample is a command that shows it.
"""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moesim.hardware_profiles import HardwareProfile, RuntimeProfile
from moesim.hardware_profiles.round_numbers import round_machine, round_runtime
from moesim.simulator import registry, systems
from moesim.simulator.engines.clock import ClockEngine
from moesim.simulator.errors import BudgetError, CapabilityError
from moesim.simulator.memory import MemorySpec
from moesim.simulator.registry import Axis, PolicySpec
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import ENGINES, Prepared, prepare
from moesim.simulator.testing import engine, sample_spec, tiny_trace
from moesim.traces import RoutingTrace, load, write

SAMPLES = Path(__file__).resolve().parents[3] / "traces" / "samples"
SAMPLE_REQUESTS = 1
AXES: tuple[Axis, ...] = ("cache", "prefetch", "schedule")
POLICIES = {axis: [sample_spec(axis, name) for name in registry.names(axis)] for axis in AXES}
# One request at a time is the same to all that form batches; see serving/ for many.
POLICIES["schedule"] = [
    spec for spec in POLICIES["schedule"] if spec.inner is None or spec.text.startswith("fcfs")
]


def outcome(run: Prepared, name: str) -> dict[str, object]:
    """Return all that a run on an engine decided and measured, by what it is."""
    controller = run.controller(keep_log=True)
    served = engine(run, controller, name=name)
    timings = served.run()
    controller.close()
    return {
        "token ends": [request.token_ends_ns for request in timings.requests],
        "counts": controller.counts,
        "timings": timings,
        "log": controller.log,
        "spans": served.spans,
    }


def assert_agree(run: Prepared, command: str) -> None:
    """Assert that the engines agree on a run, which a command replays."""
    reference = outcome(run, "simpy")
    actual = outcome(run, "clock")
    assert reference["token ends"]
    for what, expected in reference.items():
        assert expected == actual[what], f"{what} differ:\n" + "\n".join(
            f"{command} --engine {name}" for name in ENGINES
        )


class Folder:
    """Trace, machine and runtime as files, and the runs that read them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "machines").mkdir()
        (path / "runtimes").mkdir()

    def put(self, name: str, trace: RoutingTrace) -> None:
        """Write a trace that says what its weights weigh, so that no model need be named."""
        sizes = {"expert_bytes": (100,) * trace.layers, "dense_bytes": (50,) * trace.layers}
        write(replace(trace, header=trace.header.model_copy(update=sizes)), self.path / name)

    def put_machine(self, **options: Any) -> None:
        """Write a machine of round numbers; see `round_machine`."""
        with patch.object(HardwareProfile, "from_tree", side_effect=lambda tree: tree):
            tree = round_machine(**options)
        (self.path / "machines" / "round.yaml").write_text(as_yaml(tree))

    def put_runtime(self, window: str, place: str, **options: Any) -> None:
        """Write a runtime of round numbers; see `round_runtime`."""
        with patch.object(RuntimeProfile, "from_tree", side_effect=lambda tree: tree):
            tree: Any = round_runtime(**options)
        tree["copying"]["window"] = window
        tree["decisions"]["place"] = place
        (self.path / "runtimes" / "round.yaml").write_text(as_yaml(tree))

    def prepare(self, slots: int, seed: int) -> Prepared:
        """Return a run of what lies here, without policies.

        Those are given parsed: finding them reads the metadata of all installed packages.
        """
        return prepare(
            RunSpec(
                trace=load(self.path / "trace.npz"),
                trace_name="trace.npz",
                hardware=str(self.path / "machines" / "round.yaml"),
                runtime=str(self.path / "runtimes" / "round.yaml"),
                policies={},
                memory=MemorySpec(slots=str(slots)),
                profile_trace=load(self.path / "profile.npz"),
                seed=seed,
            )
        )

    def command(self, run: Prepared) -> str:
        """Return the command that replays a run."""
        spec = run.spec
        words = ["moesim", "simulate", str(self.path / "trace.npz"), "--hardware", spec.hardware]
        words += ["--runtime", spec.runtime, "--profile-trace", str(self.path / "profile.npz")]
        words += ["--slots", str(spec.memory.slots), "--seed", str(spec.seed)]
        words += [word for axis in AXES for word in (f"--{axis}", run.policies[axis].text)]
        return shlex.join(words)


def as_yaml(tree: object) -> str:
    """Return a tree as YAML without references, which profiles do not allow."""
    dumper = type("Plain", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    return yaml.dump(tree, Dumper=dumper)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Return a folder with two tiny traces, a machine and a runtime; pytest keeps it a while."""
    made = Folder(tmp_path_factory.mktemp("engines"))
    made.put("trace.npz", tiny_trace(layers=2, decode_tokens=4))
    made.put("profile.npz", tiny_trace(layers=2, seed=1))
    made.put_machine(link_latency_ns=7)
    made.put_runtime("150B", "host")
    return made


@pytest.mark.parametrize("cache", POLICIES["cache"], ids=lambda spec: spec.text)
def test_the_engines_agree_on_every_choice_of_policies(folder: Folder, cache: PolicySpec) -> None:
    """Every built-in prefetch x schedule beside a cache gives equal figures, logs and spans."""
    pairs = [(p, s) for p in POLICIES["prefetch"] for s in POLICIES["schedule"]]
    agreed = 0
    run = folder.prepare(slots=10, seed=0)
    for prefetch, schedule in pairs:
        run.policies = {"cache": cache, "prefetch": prefetch, "schedule": schedule}
        try:
            run.controller()
        except BudgetError:
            continue  # a cache that sets staging apart, or a prefetcher of whole layers
        assert_agree(run, folder.command(run))
        agreed += 1
    assert agreed > len(pairs) // 2


durations = st.integers(0, 3)


@given(st.data())
def test_the_engines_agree_whatever_ties(folder: Folder, data: st.DataObject) -> None:
    """Any policies with durations of few ns, which force ties, give equal figures and logs."""
    draw = data.draw
    policies = {axis: draw(st.sampled_from(POLICIES[axis]), label=axis) for axis in AXES}
    folder.put_machine(
        memory_bytes_per_s=10**12,
        flop_per_s=10**15,
        link_bytes_per_s=10**11 // draw(st.integers(1, 12)),
        link_latency_ns=draw(durations),
        first_copy_extra_ns=draw(durations),
        pause_threshold_ns=draw(st.integers(1, 20)),
        slow_down_ppm=draw(st.sampled_from([0, 500_000, 1_000_000])),
        cpu_bytes_per_s=10**11,
        cpu_flop_per_s=10**15,
    )
    folder.put_runtime(
        draw(st.sampled_from(["1B", "150B", "16MiB"])),
        draw(st.sampled_from(["host", "device"])),
        blocking=draw(st.booleans()) and draw(st.booleans()),
        copy_issue_ns=draw(durations),
        launch_layer_ns=draw(durations),
        launch_run_ns=draw(durations),
        router_wait_ns=draw(durations),
        poll_ns=draw(durations),
        dense_fixed_ns=draw(durations),
        expert_fixed_ns=draw(durations),
        expert_after_copy_ns=draw(durations),
        copy_start_ns=draw(durations),
        expert_while_copying_ns=draw(durations),
        head_fixed_ns=draw(durations),
        hand_over_ns=draw(durations),
        notice_ns=draw(durations),
        decision_ns=(draw(durations), draw(st.integers(0, 1)), draw(st.integers(0, 1))),
    )
    run = folder.prepare(draw(st.integers(8, 12)), draw(st.integers(0, 9)))
    run.policies = policies
    try:
        run.controller()
    except BudgetError:
        return
    assert_agree(run, folder.command(run))


SAMPLE_NAMES = sorted(path.name for path in SAMPLES.glob("*.npz"))


@pytest.mark.parametrize("sample", SAMPLE_NAMES)
def test_the_engines_agree_on_every_sample(sample: str) -> None:
    """Each recorded sample's first request gives equal rows and token ends, but for the name."""
    assert_rows_agree(sample, {"cache": "lru", "prefetch": "none", "schedule": "resident_first"})


@pytest.mark.slow
@pytest.mark.parametrize("sample", SAMPLE_NAMES)
@pytest.mark.parametrize("system", systems.names())
def test_the_engines_agree_on_every_sample_under_every_system(sample: str, system: str) -> None:
    """Each sample's first request under each system gives equal rows, but for the name."""
    bundle = systems.load(system)
    assert_rows_agree(
        sample,
        {"cache": bundle.cache, "prefetch": bundle.prefetch, "schedule": bundle.schedule},
    )


def assert_rows_agree(sample: str, policies: Mapping[Axis, str]) -> None:
    """Assert that the engines give equal rows for a sample's first request, or refuse it alike."""
    recorded = load(SAMPLES / sample).head(requests=SAMPLE_REQUESTS)
    cost_of = None if sample.startswith("twin-") else "mixtral-8x7b"
    spec = RunSpec(
        trace=recorded,
        trace_name=sample,
        hardware="rtx4090",
        policies=policies,
        memory=MemorySpec(slots="50%"),
        weights_format="int4",
        cost_of=cost_of,
        profile_trace=recorded,
    )
    expected, actual = (row(replace(spec, engine=name)) for name in ("simpy", "clock"))
    assert expected == actual
    if isinstance(expected, str):
        pytest.skip(expected)


def row(spec: RunSpec) -> dict[str, Any] | str:
    """Return the row of a run without its engine, with all token ends; or why it is refused."""
    try:
        result = prepare(spec).replay()
    except CapabilityError as error:
        return str(error)
    assert result.row["engine"] == spec.engine
    ends = [request.token_ends_ns for request in result.timings.requests]
    return {**result.row, "token_ends": ends, "engine": "", "run_id": ""}


def test_a_disagreement_is_named_as_a_command(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that runs late is caught, and the message says how to see it."""
    monkeypatch.setattr(
        ClockEngine, "_pass", lambda self, ns: setattr(self, "now_ns", self.now_ns + ns + 1)
    )
    run = folder.prepare(slots=10, seed=0)
    run.policies = {axis: POLICIES[axis][0] for axis in AXES}
    with pytest.raises(AssertionError, match="moesim simulate .* --engine clock"):
        assert_agree(run, folder.command(run))
