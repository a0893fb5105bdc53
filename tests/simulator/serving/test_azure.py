"""A recorded hour of conversation: its first thousand requests on a shape of 48 x 128, top 8."""

import time
from pathlib import Path

import numpy as np
import pytest

from moesim.simulator.memory import MemorySpec
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import prepare
from moesim.simulator.serving.spec import Serving
from moesim.traces import load
from moesim.traces.request_log import load_requests

LOG = "AzureLLMInferenceTrace_conv.csv"
REQUESTS = 1000
MOST_CPU_S = 60


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["fcfs", "shortest_first", "slo_first", "task_aware"])
def test_the_first_thousand_requests_are_served_in_a_minute(
    batching: str, shared_data: Path, repository: Path
) -> None:
    """All are served, every token of the log is processed, and it takes less than 60 s of a CPU."""
    log = load_requests(shared_data / "requests" / LOG, requests=REQUESTS)
    trace = load(repository / "traces" / "samples" / "twin-qwen3-30b-a3b-48x128.npz")
    run = prepare(
        RunSpec(
            trace,
            "twin",
            "h100-sxm",
            {
                "cache": "lru",
                "prefetch": "none",
                "schedule": f"{batching}:max_batch=32,chunk=512/resident_first",
            },
            profile_trace=trace,
            memory=MemorySpec(slots="100%"),
            serving=Serving(f"file:{shared_data / 'requests' / LOG}", REQUESTS),
        )
    )
    began_s = time.process_time()
    result = run.replay()
    assert time.process_time() - began_s < MOST_CPU_S
    row = result.row
    assert (row["requests"], row["refused"], row["stitched"]) == (REQUESTS, 0, REQUESTS)
    assert row["output_tokens"] == log.output_tokens_R.sum()
    assert row["tokens"] == log.prompt_tokens_R.sum() + log.output_tokens_R.sum() - REQUESTS
    assert row["span_ns"] > log.arrival_ns_R[-1]
    arrived_ns = sorted(times.arrived_ns for times in result.timings.requests)
    assert np.array_equal(arrived_ns, log.arrival_ns_R)
