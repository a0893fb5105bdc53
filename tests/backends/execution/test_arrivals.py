"""Requests that arrive at a live model: the replay's stream, desk and row, in real time."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="executions run a real model")
pytest.importorskip("transformers", reason="they are models of transformers")

from moesim.backends.arriving import Arriving, arriving  # noqa: E402 - after the skip
from moesim.backends.generation import Request, Sampling  # noqa: E402
from moesim.backends.testing import first_difference  # noqa: E402
from moesim.simulator.costs import CostModel  # noqa: E402
from moesim.simulator.engines.clock import ClockEngine  # noqa: E402
from moesim.simulator.errors import BudgetError, CapabilityError, InputError  # noqa: E402
from moesim.simulator.messages import (  # noqa: E402
    RequestArrived,
    RequestEnded,
    StepEnded,
)
from moesim.simulator.results.request_times import FIELDS, request_fields  # noqa: E402
from moesim.simulator.serving.spec import Serving, parse_slo  # noqa: E402
from moesim.simulator.serving.workload import ServedWorkload  # noqa: E402
from moesim.simulator.testing import tiny_trace  # noqa: E402
from moesim.simulator.testing.queues import changes_of, mean_number  # noqa: E402

SLOTS = 14
TOKEN_BYTES = 1_000
SCHEDULE = "fcfs:max_batch=3,chunk=6/resident_first"
SAMPLING = Sampling(new_tokens=5, ignore_eos=True)
TEXTS = [Request(prompt=prompt) for prompt in ([5, 9, 200, 17, 33, 4], [7, 8, 9, 10], [11])]


@pytest.fixture(scope="module")
def it(offloaded: Callable[[str], Any]) -> Any:
    """Return a tiny model."""
    return offloaded("Qwen3Moe")


def routes_for(it: Any) -> Any:
    """Return a recorded trace of the model's topology."""
    parts = it.store.parts
    return tiny_trace(
        layers=len(it.store.sizes_L), experts=parts.experts, top_k=parts.top_k, prompt_tokens=5
    )


def stream_of(it: Any, arrivals: str, asked: Any = None, **options: Any) -> Arriving:
    """Return requests that arrive; they are drawn from routes unless texts are given."""
    kv = options.pop("kv", None)
    return arriving(
        Serving(arrivals, **options),
        policies(it),
        routes_for(it) if asked is None else asked,
        SAMPLING,
        kv=kv,
        kv_bytes_per_token=TOKEN_BYTES,
        vocabulary=300,
        seed=3,
    )


def policies(it: Any, schedule: str = SCHEDULE) -> dict[str, str]:
    """Return policies that batch."""
    del it
    return {"cache": "lru", "prefetch": "none", "schedule": schedule}


def served(it: Any, found: Arriving) -> tuple[Any, Any, dict[str, Any]]:
    """Return what decides, what came of it, and the row's fields of requests."""
    deciding = it.deciding(policies(it), SLOTS, kv_bytes=found.kv_bytes)
    done = it.run(
        deciding,
        requests=found.requests,
        sampling=SAMPLING,
        routes=found.routes,
        arrivals=found.stream.new_arrivals(),
        terms=found.terms,
    )
    times, span_ns = done.measured()
    row = request_fields(times, done.timings.server, steps=done.counts.steps, span_ns=span_ns)
    return deciding, done, row


def fresh(it: Any, deciding: Any) -> Any:
    """Return another controller of the same kind."""
    parts = it.store.parts
    return deciding.controller(
        experts=parts.experts, top_k=parts.top_k, sizes_L=it.store.sizes_L, keep_log=True
    )


def told(done: Any, kind: type) -> list[Any]:
    """Return the facts of a kind."""
    return [fact for facts, _, _ in done.log for fact in facts if isinstance(fact, kind)]


def commands(log: Any) -> list[Any]:
    """Return every command in order."""
    return [command for _, _, answer in log for command in answer]


ARRIVALS = ["poisson:rate=60", "gamma:rate=200,cv=4", "users:users=3,think=0.004"]


@pytest.mark.parametrize("arrivals", ARRIVALS)
def test_everybody_is_served_once_and_whole(it: Any, arrivals: str) -> None:
    """Arrivals, ends and tokens add up, nobody is early, and a fresh controller agrees."""
    found = stream_of(it, f"{arrivals},requests=9,prompt=7,output=4")
    deciding, done, row = served(it, found)

    ended = [fact.request for fact in told(done, RequestEnded)]
    assert sorted(ended) == [fact.request for fact in told(done, RequestArrived)] == [*range(9)]
    assert sum(sum(fact.tokens) for fact in told(done, StepEnded)) == 9 * 4
    assert done.timings.server.tokens == done.trace.tokens == 9 * (7 + 4 - 1)
    assert [len(tokens) for tokens in done.tokens] == [4] * 9
    for times in done.timings.requests:
        assert times.arrived_ns <= times.began_ns < times.token_ends_ns[0]
    assert first_difference(done.log, fresh(it, deciding)) is None
    assert row.keys() == FIELDS.keys()
    assert 1 <= row["most_in_step"] <= 3
    assert row["mean_e2e_ms"] == pytest.approx(row["mean_queue_ms"] + row["mean_service_ms"])
    assert row["peak_kv_bytes"] <= found.kv_bytes == 3 * 10 * TOKEN_BYTES


@pytest.mark.parametrize("arrivals", ARRIVALS)
def test_the_number_in_the_system_is_rate_times_stay(it: Any, arrivals: str) -> None:
    """Little's law: L from what the controller was told, W from what the row is made of.

    The host tells an end a moment after it took its time, so the two agree within a twentieth.
    """
    found = stream_of(it, f"{arrivals},requests=12,prompt=7,output=4")
    _, done, row = served(it, found)

    span_ns = done.measured()[1]
    rate_per_ms = len(done.timings.requests) / (span_ns / 1e6)
    assert rate_per_ms * 1e3 == pytest.approx(row["requests_per_s"])
    in_system, in_queue = (mean_number(each, span_ns) for each in changes_of(done.log))
    assert float(in_system) == pytest.approx(rate_per_ms * row["mean_e2e_ms"], rel=0.05)
    assert float(in_queue) == pytest.approx(rate_per_ms * row["mean_queue_ms"], rel=0.05, abs=0.02)


def test_users_who_do_not_think_are_decided_on_as_in_a_replay(it: Any) -> None:
    """Asking as soon as one was answered depends on no time: a replay commands the same."""
    arrivals = "users:users=4,requests=11,prompt=9,output=4"
    found = stream_of(it, arrivals, kv=f"{30 * TOKEN_BYTES}B")
    deciding, done, _ = served(it, found)

    controller, trace = fresh(it, deciding), routes_for(it)
    size = it.store.sizes_L[0]
    engine = ClockEngine(
        controller,
        ServedWorkload(trace, found.stream),
        CostModel.for_tests(
            layers=trace.layers, experts=trace.experts, top_k=trace.top_k, expert_bytes=size
        ),
        expert_bytes=lambda _expert, _part: size,
        budget_bytes=deciding.budget_bytes,
        terms=found.terms,
    )
    timings = engine.run()

    assert commands(controller.log) == commands(done.log)
    assert timings.server == done.timings.server
    assert timings.server.most_in_step == 2  # as many as the KV room holds


def test_a_burst_that_memory_cannot_hold_ends_in_refusals(it: Any) -> None:
    """A full queue and requests that can never fit are refused; the served get all."""
    found = stream_of(
        it,
        "gamma:rate=5000,cv=4,requests=20,prompt=7,output=4",
        most_waiting=2,
        slo=parse_slo(["ttft=100000"]),
        kv=f"{20 * TOKEN_BYTES}B",
    )
    _, done, row = served(it, found)

    assert row["refused"] >= 10
    assert len(done.timings.requests) + row["refused"] == 20
    assert {len(tokens) for tokens in done.tokens} == {0, 4}
    assert row["most_waiting"] == 2
    assert row["most_in_step"] == 2
    assert row["peak_kv_bytes"] <= 20 * TOKEN_BYTES
    assert row["slo_attainment"] == pytest.approx(len(done.timings.requests) / 20)

    log = "prompt=7,output=4"
    with pytest.raises(BudgetError, match="--kv 9000B: the KV cache of the smallest request"):
        stream_of(it, f"poisson:rate=9,requests=2,{log}", kv=f"{9 * TOKEN_BYTES}B")


def test_too_long_ones_are_refused_and_the_others_served(it: Any, tmp_path: Any) -> None:
    """Of a log's requests, one longer than the whole KV room is turned away at once."""
    log = tmp_path / "log.csv"
    log.write_text("arrived_s,prompt_tokens,output_tokens\n0,3,2\n0.01,40,9\n0.02,4,3\n")
    found = stream_of(it, f"file:{log}", kv=f"{12 * TOKEN_BYTES}B")
    _, done, row = served(it, found)

    assert row["refused"] == done.timings.server.refused_too_long == 1
    assert [times.request for times in done.timings.requests] == [0, 2]
    assert [len(tokens) for tokens in done.tokens] == [2, 0, 3]
    assert done.timings.requests[1].arrived_ns - done.timings.requests[0].arrived_ns == 20_000_000


def test_texts_arrive_and_say_what_they_say_alone(it: Any) -> None:
    """Prompts are drawn whole; whenever they come, each is answered as when it is served alone."""
    found = stream_of(it, "poisson:rate=100,requests=7,order=recorded", TEXTS)
    _, done, _ = served(it, found)
    alone = it.run(
        it.deciding("lru none resident_first", SLOTS), requests=TEXTS, sampling=SAMPLING
    ).tokens

    assert found.routes is None
    assert done.tokens == [alone[number % 3] for number in range(7)]
    assert "the text of 7 requests is drawn from 3 of 3 prompts" in found.stream.drawing.notes


def test_room_that_is_traded_is_refused_on_a_live_model(it: Any) -> None:
    """Slots are laid out there: the option is named."""
    schedule = "fcfs:kv=elastic/resident_first"
    deciding = it.deciding(policies(it, schedule), SLOTS, kv_bytes=10 * TOKEN_BYTES)
    with pytest.raises(CapabilityError, match="kv=elastic.*: a live model keeps the room"):
        it.run(deciding, requests=TEXTS, sampling=SAMPLING)


@pytest.mark.parametrize("said", ["prompt=3,output=3", "lengths=x.csv"])
def test_texts_are_as_long_as_they_are(it: Any, said: str) -> None:
    """A length beside texts is refused with the way out."""
    with pytest.raises(InputError, match="texts are as long as they are; leave it out"):
        stream_of(it, f"poisson:rate=100,requests=7,{said}", TEXTS)
