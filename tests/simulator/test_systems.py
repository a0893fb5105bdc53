"""Named bundles of policies."""

from pathlib import Path

import pytest

from moesim.hardware_profiles import load_runtime
from moesim.simulator import registry, systems
from moesim.simulator.engines.counts import count
from moesim.simulator.errors import InputError, UnknownNameError
from moesim.simulator.testing import small_run, tiny_trace

MINIMAL = """
schema: 1
name: mine
description: as simple as can be
paper: none
cache: lru
prefetch: none
schedule: on_demand
"""


@pytest.mark.parametrize("name", systems.names())
def test_every_system_is_complete_and_honest(name: str) -> None:
    """It names its source, and says where it departs from it."""
    system = systems.load(name)
    assert system.name == name
    assert system.departures
    if system.runtime is not None:
        assert load_runtime(system.runtime).name == system.runtime


@pytest.mark.parametrize("name", systems.names())
def test_every_system_serves_a_trace(name: str) -> None:
    """Its three policies run together, and only a system with a predictor needs a signal."""
    system = systems.load(name)
    run = small_run(
        tiny_trace(),
        cache=system.cache,
        prefetch=system.prefetch,
        schedule=system.schedule,
        slots=15,
        window_bytes=10**9,
    )
    controller = run.controller()
    count(controller, run.workload(), budget_bytes=run.memory.expert_bytes)
    controller.residency.check()
    counts = controller.counts
    judged = counts.hits + counts.late_hits + counts.partial_hits + counts.misses
    assert judged == counts.demands


def test_what_the_systems_are() -> None:
    """The four of the literature are there, each with its defining policy."""
    caches = {name: systems.load(name).cache for name in systems.names()}
    assert caches["mixtral-offloading"] == "lru:scope=per_layer"
    assert caches["moe-infinity-oss"] == "lfu:count=in_cache,scope=global"
    assert caches["on-demand"] == "transient"
    assert systems.load("accelerate-like").prefetch == "layer_streaming:step=1"


def test_accelerate_copies_whole_layers_every_time() -> None:
    """After the first step each one moves all experts of the layers that do not reside.

    Room for five layers of six experts is three resident ones and staging for two; one of the four
    layers is left, of which six experts move at each of the 18 steps, whatever is demanded.
    """
    trace = tiny_trace(layers=4)
    system = systems.load("accelerate-like")
    run = small_run(
        trace,
        cache=system.cache,
        prefetch=system.prefetch,
        schedule=system.schedule,
        slots=30,
        window_bytes=10**9,
    )
    controller = run.controller()
    count(controller, run.workload(), budget_bytes=run.memory.expert_bytes)
    counts = controller.counts
    assert counts.bytes_initial == 18_000_000
    assert counts.bytes_total == 6_000_000 * counts.steps
    assert counts.misses == 0


def test_a_system_of_ones_own_is_a_file(tmp_path: Path) -> None:
    """A YAML file with a spec for each axis is enough."""
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    assert systems.load(path).schedule == "on_demand"


def test_an_unknown_system_lists_the_known_ones() -> None:
    """The nearest name comes first."""
    with pytest.raises(UnknownNameError, match="did you mean 'mixtral-offloading'"):
        systems.load("mixtral-ofloading")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("cache: lru", "cache: lruu"), "cache: no cache policy 'lruu'; did you mean 'lru'?"),
        (("cache: lru", "cache: lru:size=3"), "cache: no option of cache policy lru 'size'"),
        (("prefetch: none", "prefetsh: none"), "prefetsh: unknown key; did you mean 'prefetch'?"),
        (("cache: lru", "cache: lru\nruntime: vllm"), "runtime: no runtime"),
        (("schema: 1", "schema: 2"), "schema"),
        (("name: mine", "name: yours"), "name: expected 'mine' as the file is called"),
        (("cache: lru", ""), "cache: missing; this key is needed"),
    ],
)
def test_a_faulty_file_is_named_with_its_key(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    """The error gives file, key, value and the way out."""
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL.replace(*change))
    with pytest.raises(InputError) as caught:
        systems.load(path)
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The path stands in the message."""
    with pytest.raises(InputError, match="no such file"):
        systems.load(tmp_path / "absent.yaml")


def test_specs_of_systems_name_built_in_policies() -> None:
    """No system depends on a plug-in."""
    for name in systems.names():
        system = systems.load(name)
        for axis in registry.AXES:
            assert registry.parse(axis, getattr(system, axis)).cls.__module__.startswith("moesim.")
