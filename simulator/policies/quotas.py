"""How a budget is shared: among layers, and between what stays and what passes through staging."""

from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import Evictable, RunInfo

Scope = Literal["global", "per_layer"]
Book = TypeVar("Book")


def split(run: RunInfo, scope: Scope, reserved_bytes: int = 0) -> list[int] | None:
    """Return each layer's bytes, or None for one pool over all layers.

    Shares are equal in slots; slots left over go to the first layers, one each. With experts of
    unequal size the shares are equal in bytes.
    """
    if scope == "global":
        return None
    budget_bytes = max(0, run.budget_bytes - reserved_bytes)
    if not run.equal_experts:
        return [budget_bytes // run.layers] * run.layers
    size = run.expert_bytes_L[0]
    each, left = divmod(budget_bytes // size, run.layers)
    return [(each + (layer < left)) * size for layer in range(run.layers)]


class PerPool(Generic[Book]):
    """A policy's notes, one book for each pool: of a layer, or of all layers together."""

    def __init__(self, run: RunInfo, scope: Scope, blank: Callable[[], Book]) -> None:
        per_layer = scope == "per_layer"
        self._span = run.experts if per_layer else run.layers * run.experts
        self.books = [blank() for _ in range(run.layers if per_layer else 1)]

    def of(self, expert: int) -> Book:
        """Return the book of the pool that keeps this expert."""
        return self.books[expert // self._span]

    def offered(self, evictable: Evictable) -> Book:
        """Return the book of the pool whose experts are offered, of which there is at least one."""
        if len(self.books) == 1:
            return self.books[0]
        return self.of(next(iter(evictable)))


def staging_bytes(run: RunInfo, slots: int | None) -> int:
    """Return the bytes of so many staging slots, each for the largest expert.

    Args:
        run: The run.
        slots: None takes as many as one token needs in one layer.

    Raises:
        InputError: There would be none.
    """
    if slots is None:
        slots = run.top_k
    if slots < 1:
        raise InputError(f"option staging={slots}: expected at least 1 slot")
    return slots * max(run.expert_bytes_L)


def trim(run: RunInfo, quotas_L: Sequence[int], room_bytes: int) -> list[int]:
    """Return quotas that fit into the room: slots are taken from the largest, last layers first."""
    trimmed = list(quotas_L)
    total_bytes = sum(trimmed)
    while total_bytes > max(0, room_bytes):
        layer = max(range(run.layers), key=lambda at: (trimmed[at], at))
        taken_bytes = min(run.expert_bytes_L[layer], trimmed[layer])
        trimmed[layer] -= taken_bytes
        total_bytes -= taken_bytes
    return trimmed
