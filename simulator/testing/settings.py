"""How a policy under test is run: beside which companions, and by whom."""

from collections.abc import Mapping

from moesim.simulator.registry import Axis, PolicySpec
from moesim.simulator.runs import Prepared
from moesim.simulator.testing.adversary import seeded
from moesim.simulator.testing.companions import KEEP_AT_RANDOM, SPLIT_AT_RANDOM, WISH_AT_RANDOM
from moesim.simulator.testing.small_runs import AnyPolicy, adversarial, decisions, small_run
from moesim.traces import RoutingTrace

PLAIN: Mapping[Axis, AnyPolicy] = {
    "cache": "lru",
    "prefetch": "none",
    "schedule": "resident_first",
}
BAD: Mapping[Axis, PolicySpec] = {
    "cache": KEEP_AT_RANDOM,
    "prefetch": WISH_AT_RANDOM,
    "schedule": SPLIT_AT_RANDOM,
}


def run_beside(
    spec: PolicySpec, trace: RoutingTrace, setting: Mapping[Axis, AnyPolicy], slots: int, seed: int
) -> Prepared:
    """Return a run of the policy with the companions of a setting on the other axes."""
    chosen = {**setting, spec.axis: spec}
    return small_run(
        trace,
        cache=chosen["cache"],
        prefetch=chosen["prefetch"],
        schedule=chosen["schedule"],
        slots=slots,
        window_bytes=1 if seed % 2 else None,  # prefetches one by one, or as many as fit
        seed=seed,
    )


def driven(run: Prepared, seed: int) -> list[tuple[object, ...]]:
    """Return what is decided under the adversarial driver, whose witness checks laws 1 to 6."""
    driver = adversarial(run, seeded(seed))
    driver.run()
    return decisions(driver.commands)
