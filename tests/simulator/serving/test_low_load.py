"""Where nobody meets anybody, serving is the replay of one sequence after another, exactly."""

import numpy as np
import pytest

from moesim.simulator.ledger import Counts, Timings
from moesim.simulator.runs import Prepared
from moesim.simulator.serving.spec import Serving
from moesim.simulator.testing import engine, small_run, tiny_trace

RECORDED = "order=recorded"
FAR_APART = f"gamma:rate=0.001,cv=0.1,requests=2,{RECORDED}"


def done(run: Prepared) -> tuple[Timings, Counts, list[object]]:
    """Return what a run measured and decided, and all its facts and commands."""
    controller = run.controller(keep_log=True)
    timings = engine(run, controller, name="clock").run()
    controller.close()
    return timings, controller.counts, list(controller.log or ())


def latencies(timings: Timings) -> list[tuple[int, list[int]]]:
    """Return the time to the first token and the gaps of every request."""
    return [
        (times.token_ends_ns[0] - times.arrived_ns, np.diff(times.token_ends_ns).tolist())
        for times in timings.requests
    ]


def test_one_user_is_the_replay_of_one_sequence_after_another() -> None:
    """Every time, count and byte is the same when one user asks the recorded requests in order."""
    trace = tiny_trace()
    alone = done(small_run(trace, slots=8))
    served = done(small_run(trace, slots=8, serving=Serving(f"users:requests=2,{RECORDED}")))
    assert alone[0].span_ns == served[0].span_ns
    assert alone[0].engine_bytes == served[0].engine_bytes
    assert alone[0].gpu_busy_ns == served[0].gpu_busy_ns
    assert alone[1] == served[1]
    for before, after in zip(alone[0].requests, served[0].requests, strict=True):
        assert before.arrived_ns == after.arrived_ns
        assert before.token_ends_ns == after.token_ends_ns


SCHEDULERS = ["fcfs", "shortest_first", "slo_first", "task_aware"]


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize(
    "schedule", ["resident_first", *(f"{name}/resident_first" for name in SCHEDULERS)]
)
def test_requests_far_apart_are_as_fast_as_alone(schedule: str, gpus: int) -> None:
    """TTFT and every gap equal those of the plain replay, whatever forms the batches, on any GPUs.

    The link rests between requests, so its first copy must cost no more than others. With prefetch
    there is a difference, rightly: copies for a next token that never comes end in the pause.
    """
    trace = tiny_trace()
    options = {"slots": 8, "machine": {"first_copy_extra_ns": 0}, "gpus": gpus}
    alone = done(small_run(trace, **options))
    served = done(small_run(trace, schedule=schedule, serving=Serving(FAR_APART), **options))
    assert latencies(alone[0]) == latencies(served[0])
    assert alone[1].as_dict() == served[1].as_dict()
    first, second = served[0].requests
    assert first.token_ends_ns[-1] < second.arrived_ns


def test_a_prompt_in_chunks_is_the_same_work_in_more_steps() -> None:
    """Chunks of one token touch the experts of the prompt one by one; the answer is the same."""
    trace = tiny_trace(prompt_tokens=4)
    serving = Serving(f"users:requests=2,{RECORDED}")
    whole = done(small_run(trace, schedule="fcfs/resident_first", serving=serving))
    cut = done(small_run(trace, schedule="fcfs:chunk=1/resident_first", serving=serving))
    assert cut[1].steps - whole[1].steps == 2 * 3
    assert cut[1].output_tokens == whole[1].output_tokens
    assert cut[0].server.tokens == whole[0].server.tokens
    assert cut[1].bytes_total == whole[1].bytes_total  # all experts have room
