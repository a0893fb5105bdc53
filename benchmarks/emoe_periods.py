"""eMoE's arms on recorded routes: how often to predict, who predicts, and what it is worth.

``python benchmarks/emoe_periods.py ../shared/data/traces/gpt-oss-20b -o OUT.json --plot OUT.png``

The recordings beside the project have no 1,000 prompts, so their answers are cut into prompts of
equal length: those of the even sequences are served, those of the odd ones fit what is fitted, so
no sequence is in both. Each is served in three orders of its tasks (mixed, grouped, drifting) at
equal bytes of experts, on the costs of one machine. Two figures for each arm: the time of a token
where a miss passes through staging (lossless), and the share of choices that found their expert in
VRAM, which is also what eMoE itself would not have had to send elsewhere. eMoE as published loses
those choices instead of waiting for them: its time is given where absent choices are skipped.

A held set moves the same bytes whatever the clock says, so most of its arms are counted by asking
the policy prompt by prompt, and timed by the line in bytes that a few replays lie on; a row says by
which, and the setup how far the replays are from their line.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from periods_arms import Arm, arms, once
from periods_data import ORDERS, cut, make, overhead, statement
from periods_measure import TRACES, measure, time_by_line
from periods_plot import plot

from moesim.simulator.tables import print_table
from moesim.traces import load
from moesim.validation.provenance import commit_of, without_folder

PUBLISHED = {
    "accuracy of XLNet, layer by layer and all layers (OpenMoE)": [0.70, 0.69],
    "accuracy of XLNet, layer by layer and all layers (Mixtral-8x7B)": [0.71, 0.71],
    "predict and move, seconds an invocation, A and L (OpenMoE)": [0.381, 1.387],
    "predict and move, seconds an invocation, A and L (Mixtral-8x7B)": [0.334, 4.211],
    "correlation of consecutive layers": 0.50,
    "correlation of consecutive prompts (Mixtral-8x7B)": [0.75, 0.95],
    "p": 40,
}


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=16, help="of each prompt")
    parser.add_argument("--share", type=float, default=0.4, help="of the experts in VRAM")
    parser.add_argument("--hardware", default="a6000")
    parser.add_argument("--format", default="bf16")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--orders", default=",".join(ORDERS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if len(given.orders.split(",")) == 1:
        parser.error(f"--orders {given.orders}: the line needs the replays of two orders")
    return given


def main() -> None:
    """Cut, train, replay, write and print."""
    given = parse()
    began = time.perf_counter()
    torch.set_num_threads(1)  # two would spin against whatever else runs
    trace = load(given.trace)
    slots = round(given.share * trace.experts)
    given.held = slots
    rng = np.random.default_rng(given.seed)
    halves = [cut(trace, range(half, trace.requests, 2), given.tokens) for half in (0, 1)]
    chosen = np.sort(rng.permutation(halves[0].requests)[: given.prompts])
    halves[0] = halves[0].select_requests(chosen.tolist())
    chosen = np.sort(rng.permutation(halves[1].requests)[: given.prompts])
    halves[1] = halves[1].select_requests(chosen.tolist())
    with TemporaryDirectory() as folder:
        given.folder = folder
        about = {}
        orders = given.orders.split(",")
        for order in orders:
            TRACES[order], about[order] = make(halves[0], halves[1], order, given)
        settings = {
            "hardware": given.hardware,
            "slots": str(slots * trace.layers),
            "format": given.format,
            "seed": given.seed,
        }
        compared = [list(arms(TRACES[order].networks)) for order in orders]
        jobs = [
            (order, arm, settings)
            for alike in zip(*compared, strict=True)
            for order, arm in zip(orders, alike, strict=True)
        ]
        jobs += [(orders[0], arm, settings) for arm in once(slots, given.format)]
        document: dict[str, Any] = {
            "setup": {
                "title": f"{trace.header.model}: {slots} of {trace.experts} experts a layer, "
                f"{given.hardware}, {given.format}",
                "trace": given.trace.name,
                "trace_hash": trace.content_hash(),
                "prompts": halves[0].requests,
                "fit_prompts": halves[1].requests,
                "tokens_of_a_prompt": given.tokens,
                "tasks": dict(sorted(Counter(halves[0].task_R).items())),
                **settings,
                "epochs": given.epochs,
            },
            "provenance": {
                "command": " ".join(["python", *map(without_folder, sys.argv)]),
                "commit": commit_of(None),
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "cores": os.cpu_count(),
                "versions": {name: version(name) for name in ("moesim", "torch", "transformers")},
            },
            "by_order": about,
            "whole_sequences": {
                "sets": statement(trace, slots),
                "predictors": overhead(trace, Path(folder), given),
            },
            "published": PUBLISHED,
            "rows": [],
        }
        measure((orders[0], Arm("lru", "lru", engine="compiled"), settings))  # compiles, once
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(given.workers, mp_context=context) as pool:
            for row in pool.map(measure, jobs):
                document["rows"].append(row)
                document["provenance"]["seconds"] = round(time.perf_counter() - began)
                save(document, given.output)
                count = len(document["rows"])
                sys.stderr.write(f"{count}/{len(jobs)} {row['order']} {row['arm']}\n")
    error = time_by_line(document["rows"], halves[0].tokens)
    document["setup"]["line_error"] = round(error, 6)
    save(document, given.output)
    rows = sorted(document["rows"], key=lambda row: orders.index(row["order"]))
    if given.plot:
        plot(document, given.plot)
    head = ("order", "arm", "p", "share", "ms a token", "tokens/s", "GB demand", "GB rebalance")
    keys = ("order", "arm", "p", "share", "tpot_ms", "tokens_per_s", "gb_demand", "gb_rebalance")
    cells = [tuple("" if row[key] is None else str(row[key]) for key in keys) for row in rows]
    print_table(document["setup"]["title"], head, cells)


def save(document: Mapping[str, Any], target: Path) -> None:
    """Write what is known so far, whole or not at all."""
    draft = target.with_suffix(".draft")
    draft.write_text(f"{json.dumps(document, indent=1, sort_keys=True)}\n", encoding="utf-8")
    draft.replace(target)


if __name__ == "__main__":
    main()
