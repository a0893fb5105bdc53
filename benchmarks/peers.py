"""Hits and misses of a cache policy: accesses per second beside the peers that are installed.

    python benchmarks/peers.py [--libcachesim PYTHON] [--repeat 3]

One access is one expert of one token and layer, from the recorded traces beside the checkout. Ours
is the compiled replay without a clock, then the same run with its clock. A peer runs in an
environment of its own, whose Python is named; its figures are of the same run of this script, from
its own reader, loading left out. One that is not there is printed as not installed.
"""

import argparse
import json
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from cases import RECORDED

from moesim.simulator.compiled.counting import count_all, tables
from moesim.simulator.compiled.serve import serve
from moesim.simulator.memory import MemorySpec
from moesim.simulator.runs import Prepared, RunSpec, prepare
from moesim.traces import RoutingTrace, load

POLICIES = {"LRU": "lru", "LFU": "lfu", "FIFO": "fifo", "Belady": "belady"}
FOLDERS = ("gpt-oss-20b", "deepseek-v2-lite-esft")
SHARE = 25
RECORD = struct.Struct("<IQIq")  # libCacheSim's oracleGeneral: time, object, size, next access

PEER = """
import json, sys, time
import libcachesim as lcs
path, slots, repeat = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
found = {}
for name in ("LRU", "LFU", "FIFO", "Belady"):
    best, misses = float("inf"), 0.0
    for _ in range(repeat):
        reader = lcs.TraceReader(trace=path, trace_type=lcs.TraceType.ORACLE_GENERAL_TRACE)
        cache = getattr(lcs, name)(cache_size=slots)
        began = time.perf_counter()
        misses = cache.process_trace(reader)[0]
        best = min(best, time.perf_counter() - began)
    found[name] = [best, misses]
print(json.dumps(found))
"""


def prepared(trace: RoutingTrace, cache: str) -> Prepared:
    return prepare(
        RunSpec(
            trace=trace,
            trace_name="recorded",
            hardware="h100-sxm",
            policies={"cache": cache, "prefetch": "none", "schedule": "resident_first"},
            memory=MemorySpec(slots=f"{SHARE}%"),
        )
    )


def ours(trace: RoutingTrace, cache: str, repeat: int) -> tuple[float, float]:
    """Return the seconds of a replay without and with a clock."""
    run = prepared(trace, cache)
    without = with_clock = float("inf")
    for _ in range(repeat):
        arrays = tables(run)
        began = time.perf_counter()
        count_all(arrays)
        without = min(without, time.perf_counter() - began)
        arrays = tables(run)
        began = time.perf_counter()
        serve(0, len(arrays.steps), arrays)
        with_clock = min(with_clock, time.perf_counter() - began)
    return without, with_clock


def write_requests(trace: RoutingTrace, path: Path) -> int:
    """Write every access in the order of the layers of each token; return how many there are."""
    flat = trace.expert_TLK + (np.arange(trace.layers) * trace.experts)[:, None]
    experts = flat[(trace.expert_TLK >= 0).all(axis=2)].ravel()
    next_use = np.full(len(experts), -1, np.int64)
    upcoming: dict[int, int] = {}
    for at in range(len(experts) - 1, -1, -1):
        next_use[at] = upcoming.get(int(experts[at]), -1)
        upcoming[int(experts[at])] = at
    records = zip(experts.tolist(), next_use.tolist(), strict=True)
    content = b"".join(
        RECORD.pack(at, expert + 1, 1, later) for at, (expert, later) in enumerate(records)
    )
    path.write_bytes(content)
    return len(experts)


def peer(python: str | None, path: Path, slots: int, repeat: int) -> dict[str, list[float]]:
    """Return what libcachesim measures, by policy; nothing where it is not installed."""
    if python is None:
        return {}
    command = [python, "-c", PEER, str(path), str(slots), str(repeat)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1])
        return {}
    return dict(json.loads(done.stdout))


def rate(accesses: int, seconds: float | None) -> str:
    return "not installed" if seconds is None else f"{accesses / seconds / 1e6:.1f} M/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--libcachesim", help="Python of an environment that has libcachesim")
    parser.add_argument("--repeat", type=int, default=3, help="repeats of which the best counts")
    options = parser.parse_args()
    header = (
        f"{'trace':24}{'policy':8}{'ours':>14}{'with a clock':>14}{'libcachesim':>16}{'ratio':>8}"
    )
    for name in FOLDERS:
        if not (RECORDED / name).is_dir():
            print(f"{name}: not beside this checkout")
            continue
        trace = load(RECORDED / name)
        slots = round(trace.layers * trace.experts * SHARE / 100)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "requests.bin"
            accesses = write_requests(trace, path)
            theirs = peer(options.libcachesim, path, slots, options.repeat)
        print(f"{name}: {accesses:,} accesses, {slots} slots\n{header}")
        for label, cache in POLICIES.items():
            without, with_clock = ours(trace, cache, options.repeat)
            other = theirs[label][0] if label in theirs else None
            ratio = "-" if other is None else f"{other / without:.2f}"
            print(
                f"{name:24}{label:8}{rate(accesses, without):>14}{rate(accesses, with_clock):>14}"
                f"{rate(accesses, other):>16}{ratio:>8}"
            )


if __name__ == "__main__":
    main()
