"""All experts for the first prompts, a set of each layer's afterwards: eMoE's way to begin.

eMoE (arXiv 2503.06823) section 3.3 loads every expert for the first prompt and holds the predicted
ones later, which its pseudo-code does at the p-th prompt. So the budget has to hold all experts at
the peak; what is needed after the first prediction is less. Experts stay whole: the pools are those
of experts that could be split, with tops of all their bytes, since those can be cut anew.
"""

from dataclasses import dataclass

from moesim.simulator.errors import BudgetError, InputError
from moesim.simulator.policies.base import Partition, RunInfo


@dataclass(slots=True)
class AllAtFirst:
    """Pools for all experts of the run, to be made smaller once.

    Attributes:
        held: Experts of each layer that stay.
        is_full: Whether all experts still have room.
    """

    run: RunInfo
    held: int
    is_full: bool = True

    def pools(self) -> Partition:
        """Return the pools at present."""
        experts = self.run.experts if self.is_full else self.held
        sizes_L = self.run.expert_bytes_L
        return Partition(sizes_L, tuple(experts * size for size in sizes_L))

    def set_quotas_L(self) -> list[int]:
        """Return the bytes of each layer's set."""
        return [self.held * size for size in self.run.expert_bytes_L]


def all_at_first(
    run: RunInfo, *, first: str, held: int | None, scope: str, staging_bytes: int
) -> AllAtFirst | None:
    """Return what ``first=all`` begins with, or None for another beginning.

    Raises:
        InputError: Options contradict each other.
        BudgetError: The budget does not hold all experts.
    """
    if (held is not None) != (first == "all"):
        raise InputError(
            "cache policy periodic: first=all and held=N, the experts of a layer that stay after "
            "the first prediction, go together; give both or neither"
        )
    if held is None:
        return None
    if not run.top_k <= held <= run.experts:
        raise InputError(
            f"cache policy periodic: option held={held}: expected {run.top_k} to {run.experts}, "
            "the experts of a token and of a layer"
        )
    if scope == "global" or staging_bytes:
        raise InputError("cache policy periodic: first=all needs scope=per_layer and staging=0")
    everything_bytes = run.experts * sum(run.expert_bytes_L)
    if run.budget_bytes < everything_bytes:
        raise BudgetError(
            f"cache policy periodic: first=all holds {everything_bytes} bytes of experts for the "
            f"first prompts, beyond the budget of {run.budget_bytes}; give --slots 100% (held=N is "
            "what stays) or take first=profile"
        )
    return AllAtFirst(run, held)
