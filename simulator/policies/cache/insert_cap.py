"""Let only a few of a layer's misses into the cache; the others pass through staging."""

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import CachePolicy, RunInfo, View
from moesim.simulator.policies.guards import StagedGuard
from moesim.simulator.terms import Verdict

__all__ = ["InsertCap"]


class InsertCap(StagedGuard):
    """At most ``limit`` insertions between one router and the next, prefetches included.

    What the guarded policy itself sends through staging does not count. Staging is taken from the
    policy's room, unless it has some of its own.

    Args:
        limit: Insertions for each layer of each step.
        staging: Slots set apart for the others; none takes the top-k of one layer.
    """

    paper = "llama.cpp pull request 27861 (--moe-expert-cache-inserts, 2 by default)"

    def __init__(
        self, run: RunInfo, inner: CachePolicy, *, limit: int = 2, staging: int | None = None
    ) -> None:
        super().__init__(run, inner, staging)
        if limit < 0:
            raise InputError(f"cache policy insert_cap: option limit={limit}: expected at least 0")
        self._limit = limit
        self._event = -1
        self._inserted = 0

    def admit(self, expert: int, view: View) -> Verdict:
        """Return what the policy says while the event's insertions last."""
        if view.event != self._event:
            self._event, self._inserted = view.event, 0
        if not self.may_keep(expert) or self._inserted >= self._limit:
            return Verdict.TRANSIENT
        verdict = self.inner.admit(expert, view)
        self._inserted += verdict is Verdict.KEEP
        return verdict
