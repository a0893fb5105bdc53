"""Serve the request whose first token is due first."""

from moesim.simulator.policies.base import Request, View
from moesim.simulator.policies.batching import Batching, Rank
from moesim.simulator.terms import FOREVER_NS

__all__ = ["SloFirst"]


class SloFirst(Batching):
    """Earliest deadline first: arrival plus promised time to first token; the unpromised last.

    Those whose deadline has passed come after those who can still meet theirs.

    Args:
        max_batch: Requests that run together at most.
        chunk: Prompt tokens of one step at most, over all requests; none takes prompts whole, one
            a step.
        kv: ``fixed`` leaves experts and KV caches the room they began with; ``elastic`` lets KV
            caches take slots of experts and gives them back.
        keep: With elastic KV caches, the share of their slots that experts keep at least.
    """

    paper = "eMoE (arXiv 2503.06823) section 3.5: stringency is how soon the first token is due"

    def rank(self, request: Request, view: View) -> Rank:
        """Return whether it is too late, then the deadline."""
        promised_ns = request.slo.ttft_ns
        due_ns = FOREVER_NS if promised_ns is None else request.arrived_ns + promised_ns
        return int(due_ns < view.now_ns), due_ns, request.arrived_ns, request.number
