"""Every system at equal VRAM, against its own cache without prefetch, LRU and Belady.

    python benchmarks/system_comparison.py [-o FOLDER] [--jobs 2] [--decode 48] [--small]

Replays samples of recorded traces and of a twin (comparison_traces.py) in mixed and in grouped
order of prompts, with 25, 50 and 75 % of the experts' bytes in VRAM, on two machines, all under one
runtime, so that policies alone differ. What a system keeps on the GPU beside experts is taken from
its budget. Writes results.json, tables.md and a chart for each question into the folder, which is
the committed evidence unless named. A minute of it is MoEpic's own study (comparison_moepic.py).
The middle budget comes first; Ctrl-C writes what is there. 19 minutes on two cores, others beside.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from comparison_charts import draw
from comparison_moepic import study
from comparison_tables import tables
from comparison_traces import Subject, subjects

from moesim.hardware_profiles.writing import replacing
from moesim.simulator import systems
from moesim.simulator.errors import MoesimError
from moesim.simulator.memory import MemorySpec
from moesim.simulator.registry import Axis, parse
from moesim.simulator.run_spec import RunSpec, costs_of
from moesim.simulator.runs import prepare
from moesim.traces import RoutingTrace
from moesim.validation.provenance import commit_of, without_folder

RESULTS = Path(__file__).resolve().parents[1] / "validation" / "results" / "system-comparison"
MACHINES = ("h100-sxm-measured", "rtx3090")
SECOND_ORDERS = ("mixed",)
"""Orders replayed on the second machine."""
SHARES = (25, 50, 75)
DECODE_TOKENS = 48
RUNTIME = "moesim-graph"
ASK_NS = {"expert_map_search": 300_000}
STORE_CAPACITY, FLOAT_BYTES = 1000, 4
MENDED = (
    "likely_use:key=integer",
    "expert_map:distance=6,entries=token,decay=linear,reach=rest",
    "resident_first",
)
"""FineMoE's demo with the paper's rule for the set, Eq. 6 to 8, as an independent test ran it."""
FIELDS = (
    "mean_tpot_ms",
    "mean_ttft_ms",
    "hit_rate",
    "bytes_total",
    "bytes_prefetch_wasted",
    "bytes_rebalance",
)
COLUMNS = ("trace", "order", "hardware", "share", "arm", *FIELDS)


@dataclass(frozen=True, slots=True)
class Arm:
    """One bundle of policies; its name is the first system's that has them."""

    name: str
    policies: Mapping[Axis, str]


@dataclass(frozen=True, slots=True)
class Cell:
    """Where all arms are compared: positions in `ALL`, and what is common to a run."""

    subject: int
    order: str
    hardware: str
    share: int


ALL: list[Subject] = []
"""The subjects, loaded before workers are forked."""


def arms() -> tuple[list[Arm], dict[str, str]]:
    """Return every bundle once, and which arm is each prefetching system's own demand-only one."""
    found: dict[tuple[str, ...], Arm] = {}
    demand_only: dict[str, str] = {}

    def add(name: str, policies: Mapping[Axis, str]) -> str:
        key = tuple(policies[axis] for axis in ("cache", "prefetch", "schedule"))
        return found.setdefault(key, Arm(name, policies)).name

    for name in systems.names():
        system = systems.load(name)
        add(name, _bundle(system.cache, system.prefetch, system.schedule))
    for name in systems.names():
        system = systems.load(name)
        if system.prefetch != "none":
            own = _bundle(_without_search(system.cache), "none", system.schedule)
            demand_only[name] = add(f"{name}, no prefetch", own)
    mended = add("finemoe-demo, selector mended", _bundle(*MENDED))
    demand_only[mended] = demand_only["finemoe-demo"]
    add("LRU", _bundle("lru", "none", "resident_first"))
    add("Belady", _bundle("belady:admit=bypass", "none", "resident_first"))
    return list(found.values()), demand_only


def _bundle(cache: str, prefetch: str, schedule: str) -> dict[Axis, str]:
    return {"cache": cache, "prefetch": prefetch, "schedule": schedule}


def _without_search(cache: str) -> str:
    """Return MoEpic's cache with a configurator that knows that nothing will be prefetched."""
    return cache.replace("ask=true", "ask=true,foresees=false")


def reserved_bytes(arm: Arm, subject: Subject, hidden: int) -> int:
    """Return what a system keeps on the GPU beside experts: the released FineMoE its map store."""
    if not arm.name.startswith("finemoe-demo"):
        return 0
    trace = subject.trace
    return STORE_CAPACITY * FLOAT_BYTES * (trace.layers * trace.experts + hidden)


def fitted(arm: Arm, trace: RoutingTrace) -> dict[Axis, str]:
    """Return an arm's policies as far as the trace can serve them: without embeddings, by maps."""
    policies = dict(arm.policies)
    if "embedding_TD" not in trace.signals:
        policies["prefetch"] = policies["prefetch"].replace(
            "expert_map:", "expert_map:semantic=none,"
        )
    return policies


def run_cell(cell: Cell) -> tuple[list[list[Any]], list[str], float]:
    """Replay all arms; return rows, what was refused and why, and CPU seconds."""
    began = time.process_time()
    subject = ALL[cell.subject]
    trace = subject.orders[cell.order]
    rows: list[list[Any]] = []
    refused: list[str] = []
    for arm in arms()[0]:
        policies = fitted(arm, trace)
        lossy = any(parse(axis, text).is_lossy for axis, text in policies.items())
        if lossy and not subject.has_probabilities:
            refused.append(f"{subject.name}: {arm.name}: needs all router probabilities")
            continue
        try:
            row = _replay(cell, subject, trace, arm, policies)
        except MoesimError as error:
            refused.append(f"{subject.name}, {cell.hardware}, {cell.share} %: {arm.name}: {error}")
            continue
        values = [row[field] for field in FIELDS]
        rows.append([subject.name, cell.order, cell.hardware, cell.share, arm.name, *values])
    return rows, refused, time.process_time() - began


def _replay(
    cell: Cell, subject: Subject, trace: RoutingTrace, arm: Arm, policies: dict[Axis, str]
) -> dict[str, Any]:
    spec = RunSpec(
        trace=trace,
        trace_name=subject.name,
        hardware=cell.hardware,
        policies=policies,
        runtime=RUNTIME,
        system=arm.name if arm.name in systems.names() else "custom",
        profile_trace=subject.profile,
        cost_of=subject.cost_of,
        weights_format=subject.weights_format,
        ask_ns=ASK_NS,
    )
    shape = costs_of(spec).shape
    sizes = {layer.expert_bytes for layer in shape.layers}
    slots = round(cell.share / 100 * trace.layers * trace.experts)
    budget_bytes = slots * max(sizes) - reserved_bytes(arm, subject, shape.hidden)
    memory = MemorySpec(expert_budget=f"{budget_bytes}B")
    return prepare(replace(spec, memory=memory)).replay().row


def cells() -> Iterator[Cell]:
    """Yield all cells, those of the middle budget first."""
    for share in sorted(SHARES, key=lambda share: abs(share - 50)):
        for number, subject in enumerate(ALL):
            for hardware in MACHINES:
                for order in subject.orders:
                    if hardware == MACHINES[0] or order in SECOND_ORDERS:
                        yield Cell(number, order, hardware, share)


def _rounded(value: Any) -> Any:  # noqa: ANN401  a figure of a row
    return float(f"{value:.6g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--folder", type=Path, default=RESULTS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--decode", type=int, default=DECODE_TOKENS, help="steps of a request")
    parser.add_argument("--small", action="store_true", help="one request of each task")
    parser.add_argument("--cells", type=int, help="of the grid, the first so many")
    parser.add_argument("--without-moepic", action="store_true", help="leave its own study out")
    options = parser.parse_args()
    ALL.extend(subjects(options.decode, small=options.small))
    began, planned = time.perf_counter(), list(cells())[: options.cells]
    done: dict[Cell, tuple[list[list[Any]], list[str], float]] = {}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("fork")) as pool:
        moepic = None if options.without_moepic else pool.submit(study)
        running = {pool.submit(run_cell, cell): cell for cell in planned}
        try:
            for ended in as_completed(running):
                done[running[ended]] = ended.result()
                print(f"{len(done)} of {len(planned)} cells", file=sys.stderr)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
        its_study = None if moepic is None else moepic.result()
    in_order = [done[cell] for cell in planned if cell in done]
    cpu_s = sum(seconds for _, _, seconds in in_order)
    rows = [list(map(_rounded, row)) for found, _, _ in in_order for row in found]
    refused = dict.fromkeys(note for _, notes, _ in in_order for note in notes)
    result = {
        "what": __doc__.splitlines()[0],
        "command": " ".join(["python", *map(without_folder, sys.argv)]),
        "moesim": version("moesim"),
        "commit": commit_of(None),
        "runtime": RUNTIME,
        "engine": "clock",
        "ask_ns": ASK_NS,
        "cpu_seconds": round(cpu_s),
        "wall_seconds": round(time.perf_counter() - began),
        "subjects": [_subject(subject) for subject in ALL],
        "demand_only": arms()[1],
        "policies": {arm.name: dict(arm.policies) for arm in arms()[0]},
        "cells": f"{len(in_order)} of {len(list(cells()))}",
        "refused": list(refused),
        "columns": list(COLUMNS),
        "rows": rows,
        "moepic": its_study,
    }
    options.folder.mkdir(parents=True, exist_ok=True)
    with replacing(options.folder / "results.json") as draft:
        draft.write_text(_as_json(result), encoding="utf-8")
    with replacing(options.folder / "tables.md") as draft:
        draft.write_text(tables(result), encoding="utf-8")
    draw(result, options.folder)


def _subject(subject: Subject) -> dict[str, Any]:
    trace = subject.trace
    derived = [name for name, spec in trace.header.signals.items() if spec.evidence == "derived"]
    return {
        "name": subject.name,
        "sample": subject.sample,
        "evidence": trace.header.evidence,
        "tokens": trace.tokens,
        "requests": trace.requests,
        "hashes": {order: of.content_hash() for order, of in subject.orders.items()},
        "profile_hash": subject.profile.content_hash(),
        "weights_format": subject.weights_format,
        "cost_of": subject.cost_of,
        "derived": {name: trace.header.signals[name].tap for name in derived},
    }


def _as_json(result: dict[str, Any]) -> str:
    """Return it as JSON, a row of the table on a line."""
    rows = ",\n".join(f"  {json.dumps(row, separators=(',', ':'))}" for row in result["rows"])
    text = json.dumps({**result, "rows": []}, indent=1, ensure_ascii=False)
    return text.replace('"rows": []', f'"rows": [\n{rows}\n ]') + "\n"


if __name__ == "__main__":
    main()
