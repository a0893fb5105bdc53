"""How fast moesim is on this machine: tokens simulated per second, memory, start-up.

    python benchmarks/run.py [--tokens 400] [--repeat 3] [--json]

Every figure is the best of some repeats, so that what the compiled engine and the bounds read of a
trace and keep is there. The raw rate of SimPy's timeouts is measured in the same run, before and
after: a rate divided by it may be compared between machines. Never part of the tests.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import simpy
from cases import Case, cases, run_engine

from moesim.simulator.engines.compiled.engine import replay_compiled
from moesim.simulator.engines.counts import count
from moesim.simulator.ledger import Counts
from moesim.simulator.limits.bounds import Actions, bounds
from moesim.simulator.runs import Prepared

TIMEOUTS = 200_000
MEASURED = ("clock", "simpy", "compiled", "counts", "bounds")


def run_clock(prepared: Prepared) -> Counts:
    return run_engine(prepared, "clock")


def run_simpy(prepared: Prepared) -> Counts:
    return run_engine(prepared, "simpy")


def run_compiled(prepared: Prepared) -> Counts:
    controller, _ = replay_compiled(prepared)
    return controller.counts


def run_counts(prepared: Prepared) -> Counts:
    controller = prepared.controller()
    count(controller, prepared.workload(), budget_bytes=prepared.memory.expert_bytes)
    return controller.counts


def run_bounds(prepared: Prepared) -> None:
    bounds(prepared.spec.trace, prepared.costs, prepared.memory.expert_bytes, Actions())


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def wait_often() -> None:
    env = simpy.Environment()

    def wait() -> Any:  # noqa: ANN401  a SimPy process
        for _ in range(TIMEOUTS):
            yield env.timeout(1)

    env.process(wait())
    env.run()


def timeouts_per_s(repeat: int) -> float:
    return TIMEOUTS / min(seconds(wait_often) for _ in range(repeat))


def measure(case: Case, repeat: int) -> dict[str, Any]:
    prepared = case.prepare()
    counts = run_simpy(prepared)
    works = (run_clock, run_simpy, run_compiled, run_counts, run_bounds)
    best = {
        name: min(seconds(lambda work=work: work(prepared)) for _ in range(repeat))
        for name, work in zip(MEASURED, works, strict=True)
    }
    tokens = case.trace.tokens
    return {
        "trace": case.name,
        "share_percent": case.share,
        "tokens": tokens,
        "miss_percent": round(100 * counts.misses / counts.demands, 1),
        "demands_per_token": round(counts.demands / tokens, 1),
        **{f"{name}_tokens_per_s": round(tokens / s, 1) for name, s in best.items()},
        "clock_demands_per_s": round(counts.demands / best["clock"]),
        "clock_over_simpy": round(best["simpy"] / best["clock"], 2),
    }


def help_seconds(repeat: int) -> float:
    command = [str(Path(sys.executable).with_name("moesim")), "--help"]
    return min(
        seconds(lambda: subprocess.run(command, check=True, capture_output=True))
        for _ in range(repeat)
    )


def report(found: dict[str, Any]) -> None:
    names = "".join(f"{name:>10}" for name in MEASURED)
    print(f"{'trace':30} {'VRAM':>5} {'miss':>7} {'tokens':>7}{names}")
    for row in found["cases"]:
        rates = "".join(f"{row[f'{name}_tokens_per_s']:10,.0f}" for name in MEASURED)
        print(
            f"{row['trace']:30} {row['share_percent']:4}% {row['miss_percent']:6}% "
            f"{row['tokens']:7}{rates}"
        )
    before, after = found["timeouts_per_s"]
    print(
        "tokens per second, one core; cache lru, schedule resident_first, "
        "prefetch none; ahead: a perfect one, of the next layer's 8"
    )
    print(f"raw SimPy timeouts/s: {before:,.0f} before, {after:,.0f} after")
    print(
        f"peak memory: {found['peak_mib']:.0f} MiB · moesim --help: {found['help_s']:.2f} s · "
        f"{found['machine']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=400, help="length of the synthetic trace")
    parser.add_argument("--repeat", type=int, default=3, help="repeats of which the best counts")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    before = timeouts_per_s(options.repeat)
    rows = [measure(case, options.repeat) for case in cases(options.tokens)]
    found = {
        "cases": rows,
        "timeouts_per_s": [round(before), round(timeouts_per_s(options.repeat))],
        "help_s": round(help_seconds(options.repeat), 3),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, simpy {version('simpy')}, numpy {version('numpy')}",
        "repeat": options.repeat,
    }
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        report(found)


if __name__ == "__main__":
    main()
