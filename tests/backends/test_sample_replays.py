"""The recorded sample with every signal replays under every policy that reads one."""

from pathlib import Path
from typing import get_args

import pytest

from moesim.simulator import registry
from moesim.simulator.engines.counts import count
from moesim.simulator.registry import Axis
from moesim.simulator.run_spec import GRANTS
from moesim.simulator.testing import sample_spec, small_run
from moesim.traces import RoutingTrace, load

SAMPLES = Path(__file__).resolve().parents[2] / "traces" / "samples"
AXES: tuple[Axis, ...] = get_args(Axis)
READERS = [
    (axis, name)
    for axis in AXES
    for name in registry.names(axis)
    if registry.find(axis, name).needs - GRANTS
]
SLOTS = 60


@pytest.fixture(scope="module")
def signals() -> RoutingTrace:
    """Return the sample that holds every signal a policy may read."""
    return load(SAMPLES / "reference-12x32-signals.npz")


def test_there_are_policies_that_read_signals() -> None:
    """The listing finds some on the axis of caches and on that of prefetch."""
    assert {"cache", "prefetch"} <= {axis for axis, _ in READERS}


@pytest.mark.parametrize(("axis", "name"), READERS)
def test_a_policy_that_reads_a_signal_replays_the_sample(
    signals: RoutingTrace, axis: Axis, name: str
) -> None:
    """Whatever it may need is in the sample; with another part as profile, all demands are met."""
    needs = registry.find(axis, name).needs - GRANTS - {"gates"}
    assert needs <= set(signals.signals)
    spec = sample_spec(axis, name)
    served, profile = signals.select_requests([0, 3]), signals.select_requests([1, 2, 4])
    run = small_run(served, **{axis: spec}, slots=SLOTS, profile_trace=profile)
    controller = run.controller()
    count(controller, run.workload(), budget_bytes=run.memory.expert_bytes)
    controller.residency.check()
    found = controller.counts
    assert found.demands == found.hits + found.late_hits + found.partial_hits + found.misses
    assert found.demands >= served.layers * served.top_k * int(served.step_T.max() + 1)


def test_it_has_more_signals_of_the_same_requests(signals: RoutingTrace) -> None:
    """Its routes are the first rows of the sample without most signals; it is under 1.5 MiB."""
    assert (SAMPLES / "reference-12x32-signals.npz").stat().st_size <= 1.5 * 2**20
    sample = load(SAMPLES / "reference-12x32.npz")
    assert sample.header.revision == signals.header.revision
    assert signals.signals["look_in_TLHM"].shape[2] == 3
    assert len(set(signals.task_R)) == signals.requests
    for number in range(signals.requests):
        routes_TLK = signals.expert_TLK[signals.request_T == number]
        longer_TLK = sample.expert_TLK[sample.request_T == number]
        assert (routes_TLK == longer_TLK[: len(routes_TLK)]).all()
