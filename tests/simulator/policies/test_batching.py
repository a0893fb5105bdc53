"""Request schedulers: who joins, in which order, with how much of a prompt."""

from dataclasses import replace

import pytest

from moesim.simulator import registry
from moesim.simulator.control.residency import WholeResidency
from moesim.simulator.errors import InputError, PolicyError
from moesim.simulator.policies.base import Request, RunInfo, SchedulePolicy, Turn, View
from moesim.simulator.policies.batching import Batching
from moesim.simulator.policies.schedule.task_aware import TaskAware, mean_answers
from moesim.simulator.serving.spec import Serving
from moesim.simulator.terms import Slo
from moesim.simulator.testing import engine, small_run, tiny_trace

MS = 10**6


def policy(text: str) -> Batching:
    """Return a request scheduler around the plainest schedule."""
    run = small_run(tiny_trace(), schedule=f"{text}/resident_first")
    controller = run.controller()
    made = controller._forming._schedule
    assert isinstance(made, Batching)
    return made


def view_of(*requests: Request, now_ns: int = 0, kv_free_bytes: int = 100) -> View:
    """Return a present in which these requests have arrived."""
    view = View(
        WholeResidency([1] * 3, 6, 2, 99, None, 0), now_ns=now_ns, kv_free_bytes=kv_free_bytes
    )
    view.requests.update({request.number: request for request in requests})
    return view


def asks(
    number: int,
    *,
    prompt: int = 4,
    left: int | None = None,
    at_ns: int = 0,
    kv: int = 0,
    out: int = 0,
    **slo: int,
) -> Request:
    """Return a request."""
    promised = Slo(**{name: ms * MS for name, ms in slo.items()})
    prompt_left = prompt if left is None else left
    return Request(number, "tiny", prompt, at_ns, promised, kv, prompt_left, out)


def test_first_come_is_first_served_up_to_the_batch() -> None:
    """Running requests go on and the oldest waiting one joins them, its prompt whole."""
    view = view_of(asks(0, left=0), asks(1, at_ns=5), asks(2, at_ns=3), asks(3, at_ns=4))
    turns = policy("fcfs:max_batch=2").form([1, 2, 3], [0], view)
    assert turns == [Turn(0), Turn(2)]


def test_whole_prompts_come_one_a_step() -> None:
    """A second prompt waits for the next step, so that activations stay those of one."""
    view = view_of(asks(0), asks(1), asks(2))
    scheduler = policy("fcfs:max_batch=8")
    assert scheduler.form([0, 1, 2], [], view) == [Turn(0)]
    view.requests[0].prompt_left = 0
    assert scheduler.form([1, 2], [0], view) == [Turn(0), Turn(1)]


def test_chunks_are_shared_by_all_prompts_oldest_first() -> None:
    """A budget of 6 gives 4 to the first prompt, 2 to the next, and leaves the third waiting."""
    view = view_of(asks(9, left=0), asks(0), asks(1), asks(2))
    scheduler = policy("fcfs:max_batch=8,chunk=6")
    assert scheduler.form([0, 1, 2], [9], view) == [Turn(9), Turn(0, 4), Turn(1, 2)]


def test_a_prompt_without_a_share_stays_out_of_the_step() -> None:
    """A running request whose chunk is spent on an older one has no turn."""
    view = view_of(asks(0, left=9), asks(1, left=2))
    assert policy("fcfs:chunk=3").form([], [0, 1], view) == [Turn(0, 3)]


def test_the_shortest_prompt_is_first() -> None:
    """Length goes before arrival."""
    view = view_of(asks(0, prompt=9), asks(1, prompt=2, at_ns=7))
    assert policy("shortest_first").form([0, 1], [], view) == [Turn(1)]


def test_the_earliest_deadline_is_first_and_a_missed_one_last() -> None:
    """What can still be kept goes before what cannot, and before what was not promised."""
    late = asks(0, ttft_ns=1)
    soon, later, free = asks(1, ttft_ns=5), asks(2, ttft_ns=9), asks(3)
    view = view_of(late, soon, later, free, now_ns=2 * MS)
    scheduler = policy("slo_first:max_batch=4,chunk=99")
    turns = scheduler.form([0, 1, 2, 3], [], view)
    assert [turn.request for turn in turns] == [1, 2, 3, 0]


def test_nobody_overtakes_one_that_finds_no_room() -> None:
    """A request whose KV cache has no room holds up those behind it, smaller or not."""
    view = view_of(asks(0, kv=60), asks(1, kv=60), asks(2, kv=1), kv_free_bytes=100)
    turns = policy("fcfs:chunk=99").form([0, 1, 2], [], view)
    assert [turn.request for turn in turns] == [0]


class Careless(SchedulePolicy):
    """Lets everybody in, whatever room there is."""

    def form(self, waiting, running, view):
        """Return all."""
        return [*running, *waiting]


def test_a_schedule_that_gives_kv_room_away_twice_is_stopped() -> None:
    """The controller names policy, requests and what is free."""
    run = small_run(
        tiny_trace(),
        schedule=Careless,
        serving=Serving("users:users=2,requests=2,prompt=4,output=2"),
        kv="30B",
        kv_bytes_per_token=2,
    )
    with pytest.raises(
        PolicyError, match=r"Careless begins requests \[0, 1\], whose KV .* 60 bytes; 30 are"
    ):
        engine(run, run.controller()).run()


@pytest.mark.parametrize("option", ["max_batch=0", "chunk=0"])
def test_a_batch_of_nobody_is_refused(option: str) -> None:
    """The option and what is expected are named."""
    with pytest.raises(InputError, match=f"schedule policy fcfs: option {option}: expected"):
        policy(f"fcfs:{option}")


class TestTaskAware:
    """eMoE's scheduler (equation 3, algorithm 1), worked by hand."""

    def scheduler(self, text: str = "") -> TaskAware:
        """Return it with c = 1 ms, dE = 2 ms and answers of 9 tokens on average."""
        made = policy(f"task_aware:max_batch=8,chunk=999,token_us=1000,loading_ms=2{text}")
        assert isinstance(made, TaskAware)
        return made

    def test_the_expected_latency_is_equation_3(self) -> None:
        """The sum dE + (W + n G) c + r, with W=6, G=9-5, n=2 that end later, r=3 ms."""
        one, newcomer = asks(0, left=0, out=5), asks(2, prompt=6)
        scheduler = self.scheduler()
        assert scheduler.tokens_left(one) == 4
        assert scheduler.expected_ns(4, 2, 3 * MS, newcomer) == (2 + 6 + 2 * 4 + 3) * MS
        assert scheduler.expected_ns(4, 1, 3 * MS) == (1 * 4 + 3) * MS

    def test_an_answer_longer_than_its_task_is_renewed(self) -> None:
        """At the end of the mean a twentieth of it is expected still."""
        assert self.scheduler().tokens_left(asks(0, out=9)) == 9 / 20

    @pytest.mark.parametrize(("promised_ms", "joins"), [(19, True), (18, False), (6, True)])
    def test_who_runs_keeps_its_promise(self, promised_ms: int, joins: bool) -> None:
        """A newcomer that makes 19 ms of 7 is let in at 19, not at 18; 6 is lost anyway."""
        one, other = asks(0, left=0, out=5, e2e_ns=promised_ms), asks(1, left=0, out=1)
        view = view_of(one, other, asks(2, prompt=6), now_ns=3 * MS)
        turns = self.scheduler().form([2], [0, 1], view)
        assert joins == (Turn(2, 6) in turns)

    def test_who_has_just_joined_is_protected_too(self) -> None:
        """A second newcomer makes 8 ms of what the first was promised."""
        first, second = asks(1, prompt=1, e2e_ns=7), asks(2, prompt=6, at_ns=1)
        view = view_of(first, second)
        assert self.scheduler().form([1, 2], [], view) == [Turn(1, 1)]
        first.slo = Slo(e2e_ns=8 * MS)
        assert self.scheduler().form([1, 2], [], view) == [Turn(1, 1), Turn(2, 6)]

    def test_prompt_tokens_together_stay_below_the_most(self) -> None:
        """T_max passes over a long prompt and lets a shorter one in behind it."""
        view = view_of(asks(0, left=0, prompt=4), asks(1, prompt=6), asks(2, prompt=5, at_ns=1))
        turns = self.scheduler(",most_tokens=10").form([1, 2], [0], view)
        assert [turn.request for turn in turns] == [0, 2]


def test_every_request_scheduler_is_listed() -> None:
    """The listing finds those that form batches, so that --batching can name them."""
    found = [
        n for n in registry.names("schedule") if issubclass(registry.find("schedule", n), Batching)
    ]
    assert found == ["fcfs", "shortest_first", "slo_first", "task_aware"]


def test_a_run_info_says_how_much_kv_there_is() -> None:
    """A policy is told the room once, when it is built."""
    run = small_run(
        tiny_trace(), serving=Serving("users:requests=2"), kv="3000B", kv_bytes_per_token=1
    )
    info: RunInfo = run.controller()._run
    assert info.kv_bytes == 3000


def test_a_task_nobody_knows_is_expected_to_answer_as_all_do_on_average() -> None:
    """Requests without a label are a task of their own: they do not stand for all."""
    trace = tiny_trace(layers=2)
    lengths = trace.output_tokens_R.tolist()
    named = replace(trace, task_R=("", *["go"] * (trace.requests - 1)))
    found = mean_answers(named)
    assert found[""] == pytest.approx(sum(lengths) / len(lengths))
    assert found["go"] == pytest.approx(sum(lengths[1:]) / len(lengths[1:]))
