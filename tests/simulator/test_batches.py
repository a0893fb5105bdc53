"""What is told in batches comes to the same as what is told one by one, in decisions and in ns."""

from collections.abc import Sequence
from typing import Any

import pytest

from moesim.simulator.controller import Controller
from moesim.simulator.errors import PolicyError
from moesim.simulator.ledger import Counts, Timings
from moesim.simulator.messages import (
    Command,
    Copies,
    CopiesEnded,
    Copy,
    CopyEnded,
    LayerDone,
    Run,
    Runs,
    commands_one_by_one,
    count_commands,
    facts_one_by_one,
)
from moesim.simulator.policies.base import CachePolicy, Evictable, View, has_shortcut
from moesim.simulator.policies.cache.fifo import FirstInFirstOut
from moesim.simulator.policies.cache.lru import LeastRecentlyUsed
from moesim.simulator.policies.guards import CacheGuard
from moesim.simulator.runs import ENGINES, Prepared
from moesim.simulator.terms import GPU, RAM, Cause, Place, Tier
from moesim.simulator.testing import counted, engine, small_run, tiny_trace

FIRST, SECOND = (Place(Tier.VRAM, 0, 0, slot, slot * 10) for slot in range(2))
BATCHES = [
    Copies(3, [7, 8], [FIRST, SECOND], Cause.DEMAND, 10),
    Runs(5, [7, 8], (1, 2), GPU, [3, 0]),
    LayerDone(1),
]
SINGLE = [
    Copy(3, 7, 0, RAM, FIRST, Cause.DEMAND),
    Copy(4, 8, 0, RAM, SECOND, Cause.DEMAND),
    Run(5, (7,), (1,), GPU, (3,)),
    Run(6, (8,), (2,), GPU, ()),
    LayerDone(1),
]
HOOKS = ("admit", "choose_victim", "on_admit", "on_evict")

Outcome = tuple[Timings, Counts, list[Any] | None]


def outcome(run: Prepared, name: str, *, keep_spans: bool) -> Outcome:
    """Return what a run measured, counted and decided; with spans it is told one by one."""
    controller = run.controller(keep_log=True)
    timings = engine(run, controller, name=name, keep_spans=keep_spans).run()
    controller.close()
    return timings, controller.counts, controller.log


def test_a_batch_says_what_single_messages_say() -> None:
    """Copies, runs and ends of a batch come out one by one, numbered on, and are counted so."""
    assert list(commands_one_by_one(BATCHES)) == SINGLE
    assert count_commands(BATCHES) == len(SINGLE)
    assert list(facts_one_by_one([CopiesEnded([3, 4])])) == [CopyEnded(3), CopyEnded(4)]


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("slow_down_ppm", [0, 60_000])
@pytest.mark.parametrize("schedule", ["on_demand", "resident_first", "cheaper"])
@pytest.mark.parametrize("prefetch", ["none", "oracle"])
@pytest.mark.parametrize("slots", [2, 6, 12])
def test_engines_take_batches_and_single_commands_alike(
    name: str, slow_down_ppm: int, schedule: str, prefetch: str, slots: int
) -> None:
    """Every time and count is the same where spans are kept, which needs single commands."""
    run = small_run(
        tiny_trace(),
        prefetch=prefetch,
        schedule=schedule,
        slots=slots,
        machine={"slow_down_ppm": slow_down_ppm},
        runtime={"expert_after_copy_ns": 700, "expert_while_copying_ns": 900},
        ask_ns={},
    )
    assert outcome(run, name, keep_spans=True) == outcome(run, name, keep_spans=False)


def test_reports_in_batches_and_one_by_one_are_answered_alike() -> None:
    """A controller told of copies one by one gives the commands of one told of them at once."""
    run = small_run(tiny_trace(), slots=6)
    _, _, log = outcome(run, "clock", keep_spans=False)
    assert log is not None
    again: Controller = run.controller()
    again.initial()
    answers: list[list[Command]] = [again.handle(facts, now_ns) for facts, now_ns, _ in log]
    assert [commands for _, _, commands in log] == answers


@pytest.mark.parametrize("policy", [LeastRecentlyUsed, FirstInFirstOut])
@pytest.mark.parametrize("slots", [2, 6, 12])
@pytest.mark.parametrize("options", [{}, {"scope": "per_layer"}])
def test_room_made_at_once_is_that_made_one_by_one(
    policy: type[CachePolicy], slots: int, options: dict[str, str]
) -> None:
    """A policy whose shortcut is hidden by a hook of its own decides as it does."""
    if options and slots < 12:
        slots = 12

    class Shortcut(policy):  # type: ignore[misc, valid-type]  # whichever it is
        def __init__(self, run) -> None:
            super().__init__(run, **options)

    class OneByOne(Shortcut):
        def choose_victim(self, evictable: Evictable, view: View) -> int:
            return super().choose_victim(evictable, view)

    assert has_shortcut(Shortcut.__new__(Shortcut), "make_room", *HOOKS)
    assert not has_shortcut(OneByOne.__new__(OneByOne), "make_room", *HOOKS)
    at_once = counted(small_run(tiny_trace(), cache=Shortcut, slots=slots))
    one_by_one = counted(small_run(tiny_trace(), cache=OneByOne, slots=slots))
    assert at_once.log == one_by_one.log
    assert at_once.counts == one_by_one.counts


def test_a_guard_is_asked_one_by_one() -> None:
    """What stands around a policy sees every hook, whatever shortcut there is inside."""
    assert not has_shortcut(CacheGuard.__new__(CacheGuard), "make_room", *HOOKS)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda coming, count: [coming[0]] * count,
        lambda _coming, count: [10_000] * count,
        lambda _coming, _count: [],
    ],
    ids=["needed", "unknown", "too few"],
)
def test_victims_that_may_not_leave_are_refused(wrong: Any) -> None:
    """A shortcut that gives up what is needed, unknown or too few is named."""

    class GivesUpAnything(LeastRecentlyUsed):
        def make_room(
            self, coming: Sequence[int], count: int, evictable: Evictable, view: View
        ) -> Sequence[int]:
            return wrong(coming, count) if count else ()

    with pytest.raises(PolicyError, match="GivesUpAnything chose experts"):
        counted(small_run(tiny_trace(), cache=GivesUpAnything, slots=6))
