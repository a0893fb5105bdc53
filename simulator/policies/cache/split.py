"""Keep the tops of experts, so that more of them are partly here; the bottoms pass through."""

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import CachePolicy, Partition, RunInfo
from moesim.simulator.policies.guards import CacheGuard
from moesim.simulator.policies.splits import buffer_bytes, even_partition
from moesim.simulator.terms import PIECES

__all__ = ["Split"]


class Split(CacheGuard):
    """MoEpic's vertical split at one share theta, the same in every layer.

    The policy inside decides which tops stay, in an equal share of the budget for each layer. A
    bottom is copied for each use, and an absent expert as a whole: its top stays.

    Args:
        theta: The top's share of an expert, rounded to what kernels can cut; 1 keeps whole experts,
            0 none.
        buffer: Experts that the room for what passes through would hold, taken from the budget;
            none takes the top-k. Whole experts need no such room.
    """

    does = frozenset({"split"})
    paper = "MoEpic (arXiv 2509.08342) sections 3.1, 3.3: without its configurator"

    def __init__(
        self, run: RunInfo, inner: CachePolicy, *, theta: float = 0.5, buffer: int | None = None
    ) -> None:
        super().__init__(run, inner)
        if not 0 <= theta <= 1:
            raise InputError(f"cache policy split: option theta={theta:g}: expected from 0 to 1")
        is_whole = round(theta * PIECES) == PIECES
        self._buffer_bytes = 0 if is_whole else buffer_bytes(run, buffer, "split")
        self._partition = even_partition(run, theta, self._buffer_bytes)

    def partition(self) -> Partition:
        """Return the split, and an equal share of tops for each layer."""
        return self._partition

    def staging_bytes(self) -> int:
        """Return the buffer."""
        return self._buffer_bytes
