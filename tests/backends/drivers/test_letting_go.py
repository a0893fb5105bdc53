"""A closed driver gives its memory back, though who decoded with it still holds on to it."""

import gc
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="drivers move tensors")

from torch import Tensor  # noqa: E402 - after the skip

from moesim.backends.collector import without_collector  # noqa: E402
from moesim.backends.drivers.cuda import captured, driver, graph_driver, machine  # noqa: E402
from moesim.simulator.errors import OutOfMemoryError  # noqa: E402

CPU = torch.device("cpu")


class Arena:
    """Stands for memory of the GPU: it tells when it is gone."""


class Holding:
    """Stands for experts that read an arena."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], captured.Pieces]:
    """Return a function that makes pieces which are as if they had been captured."""
    monkeypatch.setattr(captured, "Posted", lambda *_: SimpleNamespace())
    parts: Any = SimpleNamespace(top_k=2, layers=range(3))

    def make(experts: Any) -> captured.Pieces:
        found = captured.Pieces(parts, 1, experts, None, CPU, pool="pool")
        found._run = lambda: found  # type: ignore[assignment,return-value]  the forward closes over it
        return found

    return make


def test_released_pieces_hold_no_arena(pieces: Callable[[Any], captured.Pieces]) -> None:
    """They are in a cycle with the forward that they run, and nobody needs to collect it."""
    arena = Arena()
    alive = weakref.ref(arena)
    held = pieces(Holding(arena))
    del arena
    with without_collector():
        assert alive() is not None
        held.release()
        assert alive() is None


@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_the_arena_is_gone_before_the_cache_is_emptied(
    pieces: Callable[[Any], captured.Pieces], monkeypatch: pytest.MonkeyPatch, *, in_a_cycle: bool
) -> None:
    """Else torch keeps it, and the next small thing put there holds all of it."""
    arena = Arena()
    alive = weakref.ref(arena)
    seen: list[bool] = []
    monkeypatch.setattr(driver.torch.cuda, "synchronize", lambda _device: None)
    monkeypatch.setattr(driver.torch.cuda, "empty_cache", lambda: seen.append(alive() is None))
    it: Any = object.__new__(graph_driver.GraphDriver)
    it.device, it._streams, it._engines, it._still = CPU, {}, {}, ExitStack()
    it._cpu_experts = SimpleNamespace(abandon=lambda: None)
    held = it._decode = pieces(Holding(arena))
    it._arena_B = arena
    if in_a_cycle:
        knot: Any = Holding(arena)
        knot.itself = knot
        del knot
    del arena
    with without_collector():
        it.close()
        it.close()
    assert seen == [True]
    assert held.graphs == []


def test_memory_that_only_a_cycle_holds_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was refused is asked for once more after a collection."""
    room: Any = Arena()
    room.itself = room
    taken = weakref.ref(room)
    del room

    def make_arena(nbytes: int, device: Any) -> Tensor:
        if taken() is not None:
            raise torch.OutOfMemoryError("taken")
        return torch.zeros(nbytes, dtype=torch.uint8, device=device)

    monkeypatch.setattr(machine, "make_arena", make_arena)
    monkeypatch.setattr(machine.torch.cuda, "empty_cache", lambda: None)
    with without_collector():
        assert len(machine.vram(5, CPU)) == 5


def test_memory_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says how much is free after all was given back."""
    asked: list[int] = []

    def make_arena(nbytes: int, device: Any) -> Tensor:
        del device
        asked.append(nbytes)
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(machine, "make_arena", make_arena)
    monkeypatch.setattr(machine.torch.cuda, "empty_cache", gc.collect)
    monkeypatch.setattr(machine.torch.cuda, "mem_get_info", lambda _device: (2**30, 2**31))
    with pytest.raises(OutOfMemoryError, match="2GiB of VRAM for experts, 1GiB are free"):
        machine.vram(2**31, CPU)
    assert len(asked) == 2
