"""Serve the shortest prompt first."""

from moesim.simulator.policies.base import Request, View
from moesim.simulator.policies.batching import Batching, Rank

__all__ = ["ShortestFirst"]


class ShortestFirst(Batching):
    """Shortest prompt first; how long an answer will be nobody knows.

    Long prompts may starve under load.

    Args:
        max_batch: Requests that run together at most.
        chunk: Prompt tokens of one step at most, over all requests; none takes prompts whole, one
            a step.
        kv: ``fixed`` leaves experts and KV caches the room they began with; ``elastic`` lets KV
            caches take slots of experts and gives them back.
        keep: With elastic KV caches, the share of their slots that experts keep at least.
    """

    paper = "shortest job first, on what is known when a request arrives"

    def rank(self, request: Request, view: View) -> Rank:
        """Return the length of its prompt, then when it arrived."""
        return request.prompt_tokens, request.arrived_ns, request.number
