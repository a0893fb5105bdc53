"""Let what prompts bring pass through staging, so that decode keeps its working set."""

from moesim.simulator.policies.base import CachePolicy, RunInfo, View
from moesim.simulator.policies.guards import StagedGuard
from moesim.simulator.terms import Verdict

__all__ = ["PromptsPass"]


class PromptsPass(StagedGuard):
    """In steps with prompt tokens nothing is evicted: misses fill free room or pass.

    A prompt demands nearly every expert of a layer once, and an LRU would give up for them what
    the answers under way use at every token. Where every step has prompt tokens, as under load,
    the cache stays as it is.

    Args:
        staging: Slots set apart for what passes; none takes the top-k of one layer.
    """

    paper = "scan resistance, as in 2Q (VLDB'94) and ARC (FAST'03), where the scans are prompts"

    def __init__(self, run: RunInfo, inner: CachePolicy, *, staging: int | None = None) -> None:
        super().__init__(run, inner, staging)

    def admit(self, expert: int, view: View) -> Verdict:
        """Return what the policy says in decode, and in a prompt while there is free room."""
        if not self.may_keep(expert):
            return Verdict.TRANSIENT
        has_room = view.residency.free_bytes(self.run.layer(expert)) >= self.run.size(expert)
        if view.is_decode or has_room:
            return self.inner.admit(expert, view)
        return Verdict.TRANSIENT
