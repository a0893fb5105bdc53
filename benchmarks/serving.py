"""How long the first requests of a recorded arrival log take to replay on a shape of 48 x 128.

python benchmarks/serving.py ../shared/data/requests/AzureLLMInferenceTrace_conv.csv

The routing is drawn from the sample that ships, so the figure is one of speed, not of a server.
Every request scheduler is timed unless ``--batching`` names some.
"""

import argparse
import time
from pathlib import Path

from moesim.simulator.memory import MemorySpec
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import prepare
from moesim.simulator.serving.spec import Serving
from moesim.traces import load

BATCHING = ("fcfs", "shortest_first", "slo_first", "task_aware")
TRACE = Path(__file__).resolve().parents[1] / "traces/samples/twin-qwen3-30b-a3b-48x128.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", help="arrivals: Azure CSV, plain CSV or Mooncake JSONL")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--hardware", default="h100-sxm")
    parser.add_argument("--slots", default="100%")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--batching", nargs="+", default=BATCHING, choices=BATCHING)
    given = parser.parse_args()
    for name in given.batching:
        serve(name, given)


def serve(name: str, given: argparse.Namespace) -> None:
    """Replay the log under a request scheduler, and print how long it took."""
    trace = load(TRACE)
    batching = f"{name}:max_batch={given.max_batch},chunk={given.chunk}"
    run = prepare(
        RunSpec(
            trace,
            TRACE.name,
            given.hardware,
            {"cache": "lru", "prefetch": "none", "schedule": f"{batching}/resident_first"},
            memory=MemorySpec(slots=given.slots),
            profile_trace=trace,
            serving=Serving(f"file:{given.log}", given.requests),
        )
    )
    begins, began_cpu = time.perf_counter(), time.process_time()
    row = run.replay().row
    wall_s, cpu_s = time.perf_counter() - begins, time.process_time() - began_cpu
    events = row["steps"] * run.spec.trace.layers
    print(f"{name}: {row['requests']} requests, {row['tokens']} tokens, {row['steps']} steps")
    print(f"{wall_s:.1f} s, of a CPU {cpu_s:.1f} s: {cpu_s / events * 1e6:.0f} us for each layer")
    print(f"hit rate {row['hit_rate']:.3f}, {row['demands'] / events:.1f} experts a layer")


if __name__ == "__main__":
    main()
