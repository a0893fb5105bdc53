"""Copy nothing ahead."""

from moesim.simulator.policies.base import PrefetchPolicy

__all__ = ["NoPrefetch"]


class NoPrefetch(PrefetchPolicy):
    """No prefetch: every expert is copied when it is demanded and absent."""

    does = frozenset()
    timing_free = True
