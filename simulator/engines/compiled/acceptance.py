"""What the compiled engine takes; all else is refused by name, with the engine that does it."""

from collections.abc import Mapping
from importlib.util import find_spec

from moesim.simulator.engines.compiled.layout import BELADY, FIFO, LCP, LFRU, LFU, LRU, PASSING
from moesim.simulator.errors import CapabilityError, UnavailableError
from moesim.simulator.policies.base import Policy
from moesim.simulator.policies.cache.belady import Belady
from moesim.simulator.policies.cache.fifo import FirstInFirstOut
from moesim.simulator.policies.cache.lcp import LeastCachePriority
from moesim.simulator.policies.cache.lfru import LeastFrequentRecentlyUsed
from moesim.simulator.policies.cache.lfu import LeastFrequentlyUsed
from moesim.simulator.policies.cache.lru import LeastRecentlyUsed
from moesim.simulator.policies.cache.static import Static
from moesim.simulator.policies.cache.transient import Transient
from moesim.simulator.policies.prefetch.next_gate import NextGate
from moesim.simulator.policies.prefetch.none import NoPrefetch
from moesim.simulator.policies.prefetch.oracle import Oracle
from moesim.simulator.policies.prefetch.transition_table import TransitionTable
from moesim.simulator.policies.schedule.on_demand import OnDemand
from moesim.simulator.policies.schedule.resident_first import ResidentFirst
from moesim.simulator.registry import Axis, PolicySpec

CACHES: Mapping[type[Policy], int] = {
    LeastRecentlyUsed: LRU,
    FirstInFirstOut: FIFO,
    LeastFrequentlyUsed: LFU,
    LeastFrequentRecentlyUsed: LFRU,
    Belady: BELADY,
    LeastCachePriority: LCP,
    Static: PASSING,
    Transient: PASSING,
}

TAKEN: Mapping[Axis, tuple[type[Policy], ...]] = {
    "cache": tuple(CACHES),
    "prefetch": (NoPrefetch, NextGate, TransitionTable, Oracle),
    "schedule": (ResidentFirst, OnDemand),
}

ONLY_VALUES: Mapping[type[Policy], Mapping[str, object]] = {
    LeastFrequentlyUsed: {"decay": 1.0},
    Belady: {"admit": "forced"},
    NextGate: {"take": "only_missing"},
}
"""Options of policies that are taken at this value alone."""


def check_policies(policies: Mapping[Axis, PolicySpec]) -> None:
    """Check that the engine has been written for a run's policies.

    Raises:
        CapabilityError: It has not; the message names policy or option.
    """
    for axis, spec in policies.items():
        if spec.cls not in TAKEN[axis] or spec.inner is not None:
            names = ", ".join(cls.__module__.rpartition(".")[2] for cls in TAKEN[axis])
            raise CapabilityError(
                f"engine compiled has no {axis} policy {spec.text} (it has {names}); "
                "use --engine clock, which takes any"
            )
        for option, only in ONLY_VALUES.get(spec.cls, {}).items():
            if spec.options.get(option, only) != only:
                raise CapabilityError(
                    f"engine compiled takes {axis} policy {spec.text} with {option}={only} alone; "
                    "use --engine clock, which takes any"
                )


def check_installed() -> None:
    """Check that numba is there.

    Raises:
        UnavailableError: It is not.
    """
    if find_spec("numba") is None:
        raise UnavailableError(
            "engine compiled needs numba; run: pip install 'moesim[fast]', or use --engine clock"
        )
