"""A burst that memory cannot hold ends in refusals and queueing, and the served get all."""

from dataclasses import replace

import pytest

from moesim.simulator.errors import InputError
from moesim.simulator.ledger import Timings
from moesim.simulator.results.report import print_result
from moesim.simulator.runs import Prepared
from moesim.simulator.serving.spec import Serving, parse_slo
from moesim.simulator.testing import engine, small_run, tiny_trace

BURST = "gamma:rate=5000,cv=6,requests=60,prompt=6,output=6"
SLO = parse_slo(["ttft=1,e2e=9"])


def overloaded(gpus: int = 1, **terms: object) -> Prepared:
    """Return a server with KV room for three requests of a burst of sixty."""
    return small_run(
        tiny_trace(layers=2),
        slots=8,
        schedule="fcfs:max_batch=8,chunk=4/resident_first",
        serving=replace(Serving(BURST, slo=SLO), **terms),
        kv="36000B",
        kv_bytes_per_token=500,
        seed=4,
        gpus=gpus,
    )


def served(run: Prepared) -> Timings:
    """Serve a run and balance its books."""
    controller = run.controller()
    timings = engine(run, controller, name="clock").run()
    controller.close()
    return timings


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_full_queue_refuses_and_the_others_are_served_whole(gpus: int) -> None:
    """With five who may wait most are refused, at most eight are there, and no token is lost."""
    timings = served(overloaded(gpus, most_waiting=5))
    server = timings.server
    assert server.refused_queue_full == server.refused > 20
    assert len(timings.requests) + server.refused == 60
    assert server.most_waiting == 5
    assert server.most_in_step == 3
    assert server.most_kv_bytes <= 36_000
    assert {len(times.token_ends_ns) for times in timings.requests} == {6}
    assert server.tokens == len(timings.requests) * (6 + 5)


def test_without_a_limit_everybody_waits_and_is_served() -> None:
    """The same burst queues: nobody is refused, and queueing is most of what requests see."""
    timings = served(overloaded())
    assert timings.server.refused == 0
    assert len(timings.requests) == 60
    queued = sum(times.began_ns - times.arrived_ns for times in timings.requests)
    worked = sum(times.token_ends_ns[-1] - times.began_ns for times in timings.requests)
    assert queued > 5 * worked


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    """One longer than the whole KV room is refused on arrival; nobody waits for it."""
    run = small_run(
        tiny_trace(layers=2),
        schedule="fcfs/resident_first",
        serving=Serving("users:users=2,requests=4,prompt=30,output=8"),
        kv="36000B",
        kv_bytes_per_token=500,
    )
    timings = served(run)
    assert timings.server.refused_too_long == 4
    assert timings.requests == []
    assert timings.server.tokens == 0


def test_who_is_refused_while_the_host_decides_holds_nobody_up() -> None:
    """All come, and are refused, in the time that the run takes to begin: it ends."""
    run = small_run(
        tiny_trace(layers=2),
        schedule="fcfs/resident_first",
        serving=Serving("gamma:rate=900000000,cv=4,requests=8,prompt=30,output=8"),
        kv="10B",
        kv_bytes_per_token=500,
    )
    assert served(run).server.refused_too_long == 8


def test_a_run_that_refuses_everybody_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """No step ran, so there is no batch to speak of; what was promised was kept for nobody."""
    run = small_run(
        tiny_trace(layers=2),
        schedule="fcfs/resident_first",
        serving=Serving("users:users=2,requests=4,prompt=30,output=8", slo=parse_slo(["ttft=1"])),
        kv="36000B",
        kv_bytes_per_token=500,
    )
    print_result(run.replay())
    shown = capsys.readouterr().out
    assert "0 served, 4 refused" in shown
    assert "kept for 0.0 %" in shown
    assert "requests a step" not in shown


def test_users_who_are_refused_need_time_before_they_ask_again() -> None:
    """Without thought they would use up all requests in one instant; with it they come back."""
    run = overloaded(
        arrivals="users:users=8,requests=20,think=0.01,prompt=6,output=6", most_waiting=1
    )
    arrived_ns = {times.arrived_ns for times in served(run).requests}
    assert len(arrived_ns) > 2
    for spec in ("users:users=8,requests=20", "users:users=8,requests=20,think=0"):
        with pytest.raises(InputError, match="--max-waiting 1: .* add think=SECONDS"):
            overloaded(arrivals=spec, most_waiting=1)


def test_a_refusal_breaks_a_promise() -> None:
    """Attainment counts the refused among those who were promised something."""
    row = overloaded(most_waiting=5).replay().row
    kept = row["goodput_per_s"] * row["span_ns"] / 1e9
    assert row["requests"] + row["refused"] == 60
    assert row["slo_attainment"] == pytest.approx(kept / 60)
    assert 0 < row["slo_attainment"] < row["requests"] / 60
