"""How a budget is shared among the tops of experts that are split, and what passes through."""

from collections.abc import Sequence

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import Partition, RunInfo
from moesim.simulator.terms import PIECES

# L MoE layers.


def buffer_bytes(run: RunInfo, experts: int | None, owner: str) -> int:
    """Return the room for what passes through; None takes as much as the experts of one token.

    Raises:
        InputError: There would be none.
    """
    if experts is None:
        experts = run.top_k
    if experts < 1:
        raise InputError(f"cache policy {owner}: option buffer={experts}: expected at least 1")
    return experts * max(run.expert_bytes_L)


def top_bytes(expert_bytes: int, pieces: int) -> int:
    """Return the bytes of a top of so many pieces."""
    return expert_bytes * pieces // PIECES


def partition_of(run: RunInfo, pieces_L: Sequence[int], tops_L: Sequence[int]) -> Partition:
    """Return the partition that keeps so many tops of so many pieces in each layer."""
    sizes = zip(run.expert_bytes_L, pieces_L, strict=True)
    top_L = tuple(top_bytes(size, pieces) for size, pieces in sizes)
    quotas = zip(tops_L, top_L, strict=True)
    return Partition(top_L, tuple(tops * size for tops, size in quotas))


def even_partition(run: RunInfo, theta: float, reserved_bytes: int) -> Partition:
    """Return one split for all layers, each with an equal share of what is not reserved.

    Args:
        run: The run.
        theta: The top's share of an expert, rounded to whole pieces.
        reserved_bytes: What the tops may not have.
    """
    pieces = round(theta * PIECES)
    share_bytes = max(0, run.budget_bytes - reserved_bytes) // run.layers
    tops_L = [
        min(run.experts, share_bytes // top_bytes(size, pieces)) if pieces else 0
        for size in run.expert_bytes_L
    ]
    return partition_of(run, [pieces] * run.layers, tops_L)
