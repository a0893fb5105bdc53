"""Hits and misses of a cache policy: accesses per second beside the peers that are installed.

    python benchmarks/peers.py [--libcachesim PYTHON] [--bigrig PYTHON] [--policylang PYTHON]

One access is one expert of one token and layer, from the recorded traces beside the checkout. Ours
is the compiled replay without a clock, then the same run with its clock. A peer runs in an
environment of its own, whose Python is named; its figures are of the same run of this script and
of its own replay, loading left out. libCacheSim replays one cache from a file of its own kind;
bigrig and moe-policylang replay a cache for each layer, of the first rows alone, since they take
microseconds for an access. A peer sees one access after another; ours sees an event at a time, so
that of a prompt's tokens (all that deepseek-v2-lite-esft has) an expert counts once, as in a step.
All are seconds of one CPU. One that is not there is printed as not
installed, a policy that a peer lacks as a dash.
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

from moesim.simulator.engines.compiled.counting import count_all, tables
from moesim.simulator.engines.compiled.serve import serve
from moesim.simulator.memory import MemorySpec
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import Prepared, prepare
from moesim.traces import RoutingTrace, load

POLICIES = {"LRU": "lru", "LFU": "lfu", "FIFO": "fifo", "Belady": "belady"}
FOLDERS = ("gpt-oss-20b", "deepseek-v2-lite-esft")
SHARE = 25
RECORD = struct.Struct("<IQIq")  # libCacheSim's oracleGeneral: time, object, size, next access

LIBCACHESIM = """
import json, sys, time
import libcachesim as lcs
path, slots, repeat = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
found = {}
for name in ("LRU", "LFU", "FIFO", "Belady"):
    best, misses = float("inf"), 0.0
    for _ in range(repeat):
        reader = lcs.TraceReader(trace=path, trace_type=lcs.TraceType.ORACLE_GENERAL_TRACE)
        cache = getattr(lcs, name)(cache_size=slots)
        began = time.process_time()
        misses = cache.process_trace(reader)[0]
        best = min(best, time.process_time() - began)
    found[name] = best
print(json.dumps(found))
"""
BY_LAYER = """
import json, sys, time
import numpy as np
path, slots, repeat = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with np.load(path) as arrays:
    expert_TLK, experts = arrays["expert_TLK"], int(arrays["experts"])
tokens, layers, top_k = expert_TLK.shape
{replays}
found = {{}}
for name, replay in replays.items():
    best = float("inf")
    for _ in range(repeat):
        began = time.process_time()
        for layer in inputs:
            replay(layer)
        best = min(best, time.process_time() - began)
    found[name] = best
print(json.dumps(found))
"""
BIGRIG = """
from bigrig_engine.pool import LRU, WindowedLFU, belady, simulate
inputs = [expert_TLK[:, layer].ravel().tolist() for layer in range(layers)]
replays = {
    "LRU": lambda seq: simulate(seq, slots, experts, LRU),
    "LFU": lambda seq: simulate(seq, slots, experts, WindowedLFU),
    "Belady": lambda seq: belady(seq, slots),
}
"""
POLICYLANG = """
from moe_policylang.benchmark.replay import policy_belady, policy_topk_lfu, policy_topk_lru
inputs = []
for layer in range(layers):  # it replays probabilities
    inputs.append(np.zeros((tokens, experts), np.float32))
    np.put_along_axis(inputs[-1], expert_TLK[:, layer].astype(int), 1 / top_k, axis=1)
replays = {
    "LRU": lambda probs: policy_topk_lru(probs, top_k, slots),
    "LFU": lambda probs: policy_topk_lfu(probs, top_k, slots),
    "Belady": lambda probs: policy_belady(probs, top_k, slots),
}
"""
LAYERED = {"LRU": "lru:scope=per_layer", "LFU": "lfu:scope=per_layer"}
LAYERED_ROWS = 2_000


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
    for _ in range(repeat + 1):  # the first time they are compiled, or read
        arrays = tables(run)
        began = time.process_time()
        count_all(arrays)
        without = min(without, time.process_time() - began)
        arrays = tables(run)
        began = time.process_time()
        serve(0, len(arrays.steps), arrays)
        with_clock = min(with_clock, time.process_time() - began)
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


def peer(python: str | None, script: str, *words: object) -> dict[str, float]:
    """Return the seconds that a peer measures, by policy; nothing where it is not installed."""
    if python is None:
        return {}
    command = [python, "-c", script, *map(str, words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1])
        return {}
    return dict(json.loads(done.stdout))


def rate(accesses: int, found: dict[str, float], label: str) -> str:
    if not found:
        return "not installed"
    return f"{accesses / found[label] / 1e6:.2f} M/s" if label in found else "-"


def table(
    name: str,
    trace: RoutingTrace,
    policies: dict[str, str],
    peers: dict[str, dict[str, float]],
    accesses: int,
    repeat: int,
) -> None:
    """Print a row for each policy: ours, each peer's, and how many times as fast ours is."""
    columns = "".join(f"{peer:>17}{'ratio':>8}" for peer in peers)
    print(f"{'trace':24}{'policy':8}{'ours':>13}{'with a clock':>14}{columns}")
    for label, cache in policies.items():
        without, with_clock = ours(trace, cache, repeat)
        mine = {label: without}, {label: with_clock}
        row = "".join(f"{rate(accesses, found, label):>13} " for found in mine)
        for found in peers.values():
            ratio = f"{found[label] / without:.1f}" if label in found else "-"
            row += f"{rate(accesses, found, label):>17}{ratio:>8}"
        print(f"{name:24}{label:8}{row}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("libcachesim", "bigrig", "policylang"):
        parser.add_argument(f"--{name}", help=f"Python of an environment that has {name}")
    parser.add_argument("--repeat", type=int, default=3, help="repeats of which the best counts")
    options = parser.parse_args()
    for name in FOLDERS:
        if not (RECORDED / name).is_dir():
            print(f"{name}: not beside this checkout")
            continue
        trace = load(RECORDED / name)
        slots = round(trace.layers * trace.experts * SHARE / 100)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "requests.bin"
            accesses = write_requests(trace, path)
            theirs = peer(options.libcachesim, LIBCACHESIM, path, slots, options.repeat)
        print(f"{name}: {accesses:,} accesses, one cache of {slots} slots")
        table(name, trace, POLICIES, {"libcachesim": theirs}, accesses, options.repeat)
        beside_layers(name, trace, slots // trace.layers, options)


def beside_layers(name: str, trace: RoutingTrace, slots: int, options: argparse.Namespace) -> None:
    """Print the same for peers with a cache for each layer."""
    few = trace.head(requests=int(trace.request_T[LAYERED_ROWS]))
    accesses = few.expert_TLK.size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "choices.npz"
        np.savez(path, expert_TLK=few.expert_TLK, experts=few.experts)
        peers = {
            name: peer(python, BY_LAYER.format(replays=replays), path, slots, options.repeat)
            for name, python, replays in (
                ("bigrig", options.bigrig, BIGRIG),
                ("moe-policylang", options.policylang, POLICYLANG),
            )
        }
    print(f"{name}: {accesses:,} accesses, {slots} slots for each layer")
    table(name, few, LAYERED, peers, accesses, options.repeat)


if __name__ == "__main__":
    main()
