"""Serve requests in order of arrival."""

from moesim.simulator.policies.base import Request, View
from moesim.simulator.policies.batching import Batching, Rank

__all__ = ["FirstComeFirstServed"]


class FirstComeFirstServed(Batching):
    """First come, first served, batched continuously.

    Args:
        max_batch: Requests that run together at most.
        chunk: Prompt tokens of one step at most, over all requests; none takes prompts whole, one
            a step.
        kv: ``fixed`` leaves experts and KV caches the room they began with; ``elastic`` lets KV
            caches take slots of experts and gives them back.
        keep: With elastic KV caches, the share of their slots that experts keep at least.
    """

    paper = "Orca (OSDI'22) section 3; vLLM's default"

    def rank(self, request: Request, view: View) -> Rank:
        """Return when it arrived."""
        return request.arrived_ns, request.number
