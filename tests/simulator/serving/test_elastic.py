"""Room that experts lend to KV caches: VRAM stays the same, whoever has it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.simulator.controller import Controller
from moesim.simulator.errors import BudgetError, CapabilityError, InputError, ProtocolError
from moesim.simulator.messages import BudgetChanged, Copy, Move, RunBegan
from moesim.simulator.runs import Prepared
from moesim.simulator.serving.spec import Serving
from moesim.simulator.testing import (
    Witness,
    adversarial,
    engine,
    logged,
    small_run,
    tiny_trace,
)
from moesim.simulator.testing.small_runs import EXPERT_BYTES

KV_TOKEN_BYTES = 50_000
BURST = "gamma:rate=3000,cv=5,requests=24,prompt=5,output=8"


def elastic(
    arrivals: str = BURST,
    *,
    slots: int = 9,
    kv: int = 1_000_000,
    keep: float = 0.5,
    **options: Any,
) -> Prepared:
    """Return a server whose experts and KV caches share VRAM."""
    options.setdefault("cache", "lru")
    return small_run(
        tiny_trace(layers=2),
        slots=slots,
        schedule=f"fcfs:max_batch=6,chunk=8,kv=elastic,keep={keep}/resident_first",
        serving=Serving(arrivals),
        kv=f"{kv}B",
        kv_bytes_per_token=KV_TOKEN_BYTES // 2,
        **options,
    )


class Watched(Witness):
    """Checks after every call that experts and KV caches together have what they began with."""

    def __init__(self, controller: Controller, total_bytes: int) -> None:
        super().__init__(controller)
        self.total_bytes = total_bytes
        self.slots: set[int] = set()

    def handle(self, facts: Any, now_ns: int) -> Any:
        """Pass facts on, and check the sum."""
        commands = super().handle(facts, now_ns)
        view, pool = self.controller._view, self.controller.residency.caches[0]
        running = [view.requests[n] for n in self.controller._forming._running]
        reserved_bytes = sum(request.kv_bytes for request in running)
        assert pool.capacity_bytes + reserved_bytes + view.kv_free_bytes == self.total_bytes
        assert view.kv_free_bytes >= 0
        slots = [command.dst.slot for command in commands if isinstance(command, Copy | Move)]
        assert all(slot < pool.slots for slot in slots)
        self.slots.add(pool.slots)
        return commands


def served(run: Prepared, name: str = "clock") -> tuple[Any, Watched, Controller]:
    """Serve a run under watch, and return what was measured."""
    controller = run.controller(keep_log=True)
    watched = Watched(controller, run.memory.expert_bytes + run.memory.kv_bytes)
    timings = engine(run, watched, name=name).run()
    controller.close()
    return timings, watched, controller


def test_a_burst_takes_slots_and_gives_them_back() -> None:
    """Six requests run where the room that KV caches began with holds one; slots come back."""
    run = elastic()
    timings, watched, controller = served(run)
    assert timings.server.refused == 0
    assert timings.server.most_in_step == 6
    assert run.memory.kv_bytes < 12 * KV_TOKEN_BYTES * 6
    # While nobody is there the room for KV caches is a tenth slot.
    assert max(watched.slots) == controller.residency.caches[0].slots == 10
    assert min(watched.slots) < 9
    assert [
        note for note in controller.notes if f"between {min(watched.slots)} and 10 slots" in note
    ]
    fixed = small_run(
        tiny_trace(layers=2),
        slots=9,
        schedule="fcfs:max_batch=6,chunk=8/resident_first",
        serving=Serving(BURST),
        kv="1000000B",
        kv_bytes_per_token=KV_TOKEN_BYTES // 2,
    )
    assert served_plainly(fixed).server.most_in_step == 1


def served_plainly(run: Prepared) -> Any:
    """Serve a run whose room is fixed."""
    controller = run.controller()
    timings = engine(run, controller, name="clock").run()
    controller.close()
    return timings


@given(
    st.sampled_from(["poisson:rate=300", "gamma:rate=900,cv=4", "users:users=4,think=0.001"]),
    st.integers(5, 12),
    st.integers(0, 3_000_000),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from(["lru", "lfu", "fifo"]),
    st.integers(0, 99),
)
def test_experts_and_kv_caches_never_have_more_than_vram(
    kind: str, slots: int, kv: int, keep: float, cache: str, seed: int
) -> None:
    """Laws 1 to 6 and the sum hold at every call, for any load; engines and a fresh log agree."""
    run = elastic(
        f"{kind},requests=8,prompt=5,output=6",
        slots=slots,
        kv=kv,
        keep=keep,
        cache=cache,
        seed=seed,
    )
    timings, watched, controller = served(run)
    again, _, _ = served(run, "simpy")
    assert again.span_ns == timings.span_ns
    assert again.requests == timings.requests
    assert min(watched.slots) >= max(2, round(slots * keep))
    fresh = run.controller(keep_log=True)
    for facts, now_ns, _ in controller.log or ():
        fresh.handle(facts, now_ns)
    assert logged(fresh) == logged(controller)
    assert timings.server.refused + len(timings.requests) == 8


@given(st.data())
def test_in_whatever_order_work_ends(data: st.DataObject) -> None:
    """The adversary's order of ends breaks no law either."""
    run = elastic("users:users=4,requests=6,prompt=5,output=4", slots=6)
    adversarial(run, lambda n: data.draw(st.integers(0, n - 1))).run()


def test_a_move_takes_the_time_of_reading_and_writing() -> None:
    """Who lies in a slot that goes moves on the device, at the rate of its memory."""
    run = elastic()
    timings, watched, _ = served(run)
    moves = [command for command in watched.commands if isinstance(command, Move)]
    assert moves
    assert all(move.dst.slot < move.src.slot for move in moves)
    without = timings.dense_busy_ns + timings.experts_busy_ns + timings.head_busy_ns
    assert timings.gpu_busy_ns - without == len(moves) * run.costs.move_ns(EXPERT_BYTES)
    assert run.costs.move_ns(EXPERT_BYTES) > 0


def test_the_row_says_how_vram_was_shared_and_has_its_bound() -> None:
    """The note has the least and the most slots; bytes are bounded at the most room."""
    row = elastic().replay().row
    assert "KV caches and experts shared VRAM: between" in row["notes"]
    assert row["bound_bytes"] <= row["bytes_total"]


def test_a_budget_that_changed_is_kept() -> None:
    """Told of a smaller budget the controller cuts the highest slots off; of one too small, no."""
    run = small_run(tiny_trace(layers=2), slots=8)
    controller = run.controller()
    controller.handle([RunBegan((), 8 * EXPERT_BYTES)], 0)
    commands = controller.handle([BudgetChanged(5 * EXPERT_BYTES + 17)], 1)
    assert commands == []
    assert controller.residency.caches[0].slots == 5
    controller.handle([BudgetChanged(7 * EXPERT_BYTES)], 2)
    assert controller.residency.caches[0].slots == 7
    controller.residency.check()
    with pytest.raises(BudgetError, match="leave 2000000"):
        controller.handle([BudgetChanged(EXPERT_BYTES)], 3)
    controller._step_open = True
    with pytest.raises(ProtocolError, match="in the middle of a step"):
        controller.handle([BudgetChanged(6 * EXPERT_BYTES)], 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prefetch": "layer_streaming"}, CapabilityError, "kv=elastic: .*take --prefetch none"),
        ({"cache": "lru:scope=per_layer"}, CapabilityError, "leave out kv=elastic"),
        ({"gpus": 2}, CapabilityError, "without --gpus"),
    ],
)
def test_what_cannot_lend_is_refused(
    options: dict[str, str], error: type[Exception], message: str
) -> None:
    """Copies ahead and pools by layer are refused by name, with the way out."""
    with pytest.raises(error, match=message):
        served(elastic(**options))


def test_without_arrivals_there_is_nothing_to_lend_to() -> None:
    """Where KV caches are not counted the option is refused."""
    run = small_run(tiny_trace(), slots=9, schedule="fcfs:kv=elastic/resident_first")
    with pytest.raises(CapabilityError, match="kv=elastic: KV caches are counted .*--arrivals"):
        run.controller()


def test_what_was_said_of_it_is_read() -> None:
    """A word that is neither, and a share that is none, are refused; so are reserved prompts."""
    for option, message in (
        ("kv=soft", "expected fixed or elastic"),
        ("keep=2", "expected 0 to 1"),
    ):
        with pytest.raises(InputError, match=message):
            small_run(tiny_trace(), schedule=f"fcfs:{option}/resident_first").controller()
    with pytest.raises(InputError, match="--kv-reserve prompt: with kv=elastic"):
        small_run(
            tiny_trace(),
            schedule="fcfs:kv=elastic/resident_first",
            serving=Serving(BURST, reserve="prompt"),
        )
