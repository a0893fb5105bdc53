"""Compute misses on the CPU in small steps, and copy them to the GPU in large ones."""

from collections.abc import Sequence

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import Demand, Group, RunInfo, SchedulePolicy, View, one_by_one
from moesim.simulator.terms import CPU, GPU

__all__ = ["BatchThreshold"]


class BatchThreshold(SchedulePolicy):
    """Misses on the CPU while a step has fewer tokens than the threshold, else on the GPU.

    Args:
        tokens: Tokens of a step from which misses are copied, from 1.
    """

    does = frozenset({"cpu_experts"})
    paper = "llama.cpp ggml-backend.cpp, GGML_OP_OFFLOAD_MIN_BATCH; KTransformers kt_ep_wrapper.py"

    def __init__(self, run: RunInfo, *, tokens: int = 32) -> None:
        super().__init__(run)
        if tokens < 1:
            raise InputError(
                f"schedule policy batch_threshold: option tokens={tokens}: expected at least 1"
            )
        self._choices = tokens * run.top_k

    def plan(self, demand: Demand, view: View) -> Sequence[Group]:
        """Return residents as one launch; the misses as one on the CPU or one each on the GPU."""
        is_small = sum(demand.tokens.values()) < self._choices
        groups = [Group(CPU, demand.misses)] if is_small and demand.misses else []
        if demand.hits:
            groups.append(Group(GPU, demand.hits))
        coming = [*demand.late, *demand.partial, *(() if is_small else demand.misses)]
        return [*groups, *one_by_one(GPU, coming)]
