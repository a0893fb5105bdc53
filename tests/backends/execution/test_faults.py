"""What goes wrong in the middle is one clear error; no thread stays, no memory is kept."""

import _thread
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch", reason="executions run a real model")

from moesim.backends.drivers.threads import ThreadsDriver
from moesim.backends.experts import LayerWork
from moesim.simulator.errors import BudgetError, MoesimError
from moesim.simulator.messages import Copy
from moesim.simulator.terms import RAM, Cause, Place, Tier

POLICIES = "lru none resident_first"


def our_threads() -> list[str]:
    """Return the names of the driver's threads that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("moesim ")]


class Watched(ThreadsDriver):
    """Notes each driver made, by a reference that keeps nothing alive, and does harm at a copy."""

    drivers: list[Any]
    arenas: list[Any]
    harm: Callable[[int], None]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.copies = 0
        assert self._arena_B is not None
        type(self).arenas.append(weakref.ref(self._arena_B))
        assert len(our_threads()) == 4

    def copy_bytes(self, expert: int, stretch: tuple[int, int], offset_bytes: int) -> None:
        self.copies += 1
        type(self).harm(self.copies)
        super().copy_bytes(expert, stretch, offset_bytes)


def harmed(harm: Callable[[int], None]) -> type[Watched]:
    """Return a driver class of its own whose copies do a harm first."""
    return type("Harmed", (Watched,), {"arenas": [], "harm": staticmethod(harm), "name": "harmed"})


def break_link(copies: int) -> None:
    """Fail the twentieth copy."""
    if copies == 20:
        raise OSError("the link is down")


def interrupt(copies: int) -> None:
    """Interrupt the main thread at the twentieth copy, as ctrl-C does."""
    if copies == 20:
        _thread.interrupt_main()


def test_a_failed_copy_ends_the_run_in_one_line(offloaded: Callable[[str], Any]) -> None:
    """A copy that fails is reported as a fact; threads are joined and the arena is released."""
    it = offloaded("Qwen3Moe")
    driver = harmed(break_link)

    with pytest.raises(MoesimError, match=r"^command \d+ failed: the link is down$"):
        it.run(it.deciding(POLICIES, 9), make_driver=driver)

    assert our_threads() == []
    gc.collect()
    assert [arena() for arena in driver.arenas] == [None]


def test_a_failed_product_ends_the_run_in_one_line(
    offloaded: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that fails is reported as well, and not what waited for it."""
    it = offloaded("Qwen3Moe")

    def fail(*_: Any) -> None:
        raise RuntimeError("the kernel is broken")

    monkeypatch.setattr(LayerWork, "compute", fail)
    with pytest.raises(MoesimError, match=r"^command \d+ failed: the kernel is broken$"):
        it.run(it.deciding(POLICIES, 9))
    assert our_threads() == []


def test_an_interrupt_leaves_nothing_behind(offloaded: Callable[[str], Any]) -> None:
    """Ctrl-C in the middle ends the run, its threads and its memory."""
    it = offloaded("Qwen3Moe")
    driver = harmed(interrupt)

    with pytest.raises(KeyboardInterrupt):
        it.run(it.deciding(POLICIES, 9), make_driver=driver)

    assert our_threads() == []
    gc.collect()
    assert [arena() for arena in driver.arenas] == [None]


def test_the_model_serves_again_after_a_failure(offloaded: Callable[[str], Any]) -> None:
    """What a failed run put on the model is gone: the next run says what it should."""
    it = offloaded("Qwen3Moe")
    with pytest.raises(MoesimError):
        it.run(
            it.deciding("lru next_gate:horizon=1 resident_first", 9),
            make_driver=harmed(break_link),
        )

    assert it.text == it.run(it.deciding(POLICIES, 9)).tokens


def test_a_budget_below_one_token_is_refused(offloaded: Callable[[str], Any]) -> None:
    """Room for fewer experts than one token uses is an error before anything runs."""
    it = offloaded("Qwen3Moe")
    with pytest.raises(BudgetError, match="at least"):
        it.run(it.deciding(POLICIES, 2))
    assert our_threads() == []


def test_a_copy_that_nobody_waits_for_fails_the_run_too(offloaded: Callable[[str], Any]) -> None:
    """A prefetch that fails after the last layer is told at the end, not forgotten."""
    it = offloaded("Mixtral")
    deciding = it.deciding(POLICIES, 9)
    parts = it.store.parts
    controller = deciding.controller(
        experts=parts.experts, top_k=parts.top_k, sizes_L=it.store.sizes_L
    )
    place = Place(Tier.VRAM, 0, 0, 0, 0)
    with harmed(break_first)(controller, it.store, deciding.budget_bytes) as driver:
        driver.start_copy(Copy(1, 0, 0, RAM, place, Cause.PREFETCH), 0)
        with pytest.raises(MoesimError, match="command 1 failed: gone"):
            driver.end_run()


def break_first(_: int) -> None:
    """Fail every copy."""
    raise OSError("gone")
