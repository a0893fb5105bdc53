"""Events of CUDA: when something began and ended, taken from a pool and given back."""

from dataclasses import dataclass, field
from typing import Any

import torch

POOLED = 256
NS_PER_MS = 1_000_000
# torch leaves the methods of these two without types.
Event = Any
Stream = Any


def new_event(*, has_time: bool = True) -> Event:
    """Return an event that nothing has recorded."""
    make: Any = torch.cuda.Event
    return make(enable_timing=has_time)


def new_stream() -> Stream:
    """Return a stream that waits for no other unless it is told to."""
    make: Any = torch.cuda.Stream
    return make()


@dataclass(slots=True)
class Mark:
    """Two events around what a stream does."""

    began: Event = field(default_factory=new_event)
    ended: Event = field(default_factory=new_event)

    def span_ns(self) -> int:
        """Return how long it took, once it has ended."""
        elapsed_ms: float = self.began.elapsed_time(self.ended)
        return round(elapsed_ms * NS_PER_MS)


class Marks:
    """Marks made in advance: making an event costs more than recording one."""

    def __init__(self) -> None:
        self._free = [Mark() for _ in range(POOLED)]

    def take(self) -> Mark:
        """Return a mark that nothing refers to."""
        return self._free.pop() if self._free else Mark()

    def give_back(self, mark: Mark) -> None:
        """Let a mark be taken again; nobody may wait for it any more."""
        self._free.append(mark)
