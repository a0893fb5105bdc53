"""Law 17: as many are in the system as arrive in the time that one spends there (Little)."""

from fractions import Fraction
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.simulator.ledger import RequestTimes
from moesim.simulator.messages import Command, Fact
from moesim.simulator.runs import Prepared
from moesim.simulator.serving.spec import Serving
from moesim.simulator.testing import engine, small_run, tiny_trace
from moesim.simulator.testing.queues import changes_of, mean_number

Log = list[tuple[list[Fact], int, list[Command]]]


def served(run: Prepared) -> tuple[list[RequestTimes], int, Log]:
    """Return the times of all requests, the span of the run, and its log."""
    controller = run.controller(keep_log=True)
    timings = engine(run, controller, name="clock", keep_spans=False).run()
    controller.close()
    return timings.requests, timings.span_ns, list(controller.log or ())


@given(
    st.sampled_from(["poisson:rate=400", "gamma:rate=2000,cv=5", "users:users=5,think=0.002"]),
    st.integers(1, 3),
    st.integers(0, 99),
    st.integers(1, 2),
)
def test_the_number_in_the_system_is_rate_times_stay(
    kind: str, batch: int, seed: int, gpus: int
) -> None:
    """L = lambda W holds exactly, of all requests and of those that queue.

    L is integrated over what the controller was told, W is the mean of what the result reports.
    """
    run = small_run(
        tiny_trace(layers=2),
        schedule=f"fcfs:max_batch={batch},chunk=2/resident_first",
        serving=Serving(f"{kind},requests=12"),
        seed=seed,
        gpus=gpus,
    )
    times, span_ns, log = served(run)
    stay, queue = changes_of(log)
    rate = Fraction(len(times), span_ns)
    for changes, spent_ns in (
        (stay, [one.token_ends_ns[-1] - one.arrived_ns for one in times]),
        (queue, [one.began_ns - one.arrived_ns for one in times]),
    ):
        assert mean_number(changes, span_ns) == rate * Fraction(sum(spent_ns), len(times))


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_server_of_fixed_service_waits_as_the_formula_says(load: float) -> None:
    """Poisson arrivals at one server whose service never varies wait D rho / 2 (1 - rho) (M/D/1).

    That is Pollaczek and Khinchine's mean for a service without variance; 12,000 requests come
    within a tenth of it.
    """
    trace = tiny_trace(layers=1, prompt_tokens=1, decode_tokens=1).head(requests=1)
    alone, _, _ = served(small_run(trace, serving=Serving("users:requests=3")))
    service_ns = alone[-1].token_ends_ns[-1] - alone[-1].arrived_ns
    rate_per_s = load * 1e9 / service_ns
    run = small_run(trace, serving=Serving(f"poisson:rate={rate_per_s!r},requests=12000"), seed=3)
    times, _, _ = served(run)
    settled = times[200:]
    assert {one.token_ends_ns[-1] - one.began_ns for one in settled} <= {
        alone[-1].token_ends_ns[-1] - alone[-1].began_ns
    }
    waited_ns = fmean(one.began_ns - one.arrived_ns for one in settled)
    idle_start_ns = alone[-1].began_ns - alone[-1].arrived_ns
    expected_ns = service_ns * load / (2 * (1 - load)) + idle_start_ns
    assert waited_ns == pytest.approx(expected_ns, rel=0.1)
