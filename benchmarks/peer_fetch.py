r"""Experts fetched from another GPU instead of the host, executed beside their prediction.

``python benchmarks/peer_fetch.py -o peer_fetch.json`` needs two GPUs of one host that reach each
other's memory. One serves, with room for a quarter of the experts under LRU; the other lends
memory: nothing, room for the rest filled before the run (``static``) or by what leaves VRAM
(``lru``), and room for all. TPOT of each is written beside what the simulator foretold of it, with
links as fast as this run's own copies of one expert and decisions that cost what they do here on
another request. Decisions must be the replay's, one by one,
and logits on the model's own routes those with every expert in VRAM, bit by bit. Without a GPU it
runs on the CPU, which shows that it runs:

    python benchmarks/peer_fetch.py --model backends/reference/weights --weights checkpoint \
        --trace traces/samples/reference-12x32.npz --requests 4 --repeats 2
"""

import argparse
import sys
from time import monotonic
from typing import Any

import torch
from gpu_copies import Movers
from gpu_figures import take_profiles, with_decisions, with_links
from two_gpus import Rig, compared, executed, foretold, open_rig, options, provenance, write

from moesim.backends.controllers import Deciding
from moesim.simulator.commands.policies import DEFAULTS as LRU

PLACED, TAKES = "static:order=uniform", "lru"
SLOTS = 16


def main() -> None:
    """Measure, foretell, execute, write."""
    parser = options(__doc__)
    parser.add_argument(
        "--calibrate", type=float, help="measure the profiles first, sampling so many seconds"
    )
    given = parser.parse_args()
    began_s = monotonic()
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        sys.exit(f"peer_fetch needs two GPUs; there are {torch.cuda.device_count()}")
    rig = open_rig(given)
    _say(began_s, f"{rig.subject.name}: open")
    found = measure(rig, given, began_s)
    write(given.output, {"provenance": provenance(rig, given), **found})
    if not (found["logits_equal"] and found["decisions_equal"]):
        sys.exit("logits or decisions are not what they have to be")


def measure(rig: Rig, given: argparse.Namespace, began_s: float) -> dict[str, Any]:
    """Return everything that is measured."""
    take_profiles(rig, given, None if given.output is None else given.output.parent)
    _say(began_s, f"profiles: {rig.sources['profiles']}")
    links = copies(rig)
    _say(began_s, f"copies of {rig.size} bytes: {links}")
    is_gpu = rig.device.type == "cuda"
    profiles = with_links(
        rig.known,
        rig.size,
        links["alone"]["h2d"]["each_ns"] if is_gpu else None,  # quick figures have it already
        links["alone"]["peer"]["each_ns"],
    )
    share = given.share
    cells = {
        "nothing lent": rig.deciding(share),
        "the rest, placed": rig.deciding(share, PLACED, 1 - share),
        "the rest, what leaves VRAM": rig.deciding(share, TAKES, 1 - share),
        "all, placed": rig.deciding(share, PLACED, 1.0),
    }
    logits = {name: say_the_same(rig, deciding) for name, deciding in cells.items()}
    _say(began_s, f"logits equal: {logits}")
    predictions = {
        name: foretold(rig, deciding, with_decisions(rig, profiles, deciding), given.warm)
        for name, deciding in cells.items()
    }
    executions: dict[str, list[Any]] = {name: [] for name in cells}
    executed(rig, rig.deciding(0.5), given.warm)  # clocks are up and kernels loaded
    for _ in range(given.repeats):
        for name, deciding in cells.items():
            executions[name].append(executed(rig, deciding, given.warm))
            ms = executions[name][-1].tpot_ms["mean"]
            foreseen = predictions[name].tpot_ms["mean"]
            _say(began_s, f"{name}: TPOT {ms:.3f} ms, predicted {foreseen:.3f}")
    rows = {name: compared(predictions[name], executions[name]) for name in cells}
    for name, row in rows.items():
        errors = ", ".join(f"{figure} {error:+.1%}" for figure, error in row["error"].items())
        print(
            f"{name}: TPOT {row['median_tpot_ms']['mean']:.3f} ms (spread {row['spread']:.1%}), "
            f"prediction off by {errors}; {row['decisions']['differing']} of "
            f"{row['decisions']['events']} events decided otherwise"
        )
    return {
        "links": links,
        "logits_equal": all(logits.values()),
        "decisions_equal": all(row["decisions"]["differing"] == 0 for row in rows.values()),
        "cells": rows,
        "seconds": round(monotonic() - began_s, 1),
    }


def copies(rig: Rig) -> dict[str, Any]:
    """Return what a copy of one expert takes in a row, by way: alone, and with others beside."""
    movers = Movers(rig, SLOTS, lends=True)
    for way in movers.ways:
        movers.each_ns(way)  # links and clocks come up
    alone = {way: movers.each_ns(way)[way] for way in movers.ways}
    beside = movers.each_ns("h2d", "peer")
    all_ways = movers.each_ns(*movers.ways)
    return {
        name: {
            way: {"each_ns": ns, "gb_per_s": round(rig.size / ns, 2)} for way, ns in each.items()
        }
        for name, each in (
            ("alone", alone),
            ("from the host and from the GPU", beside),
            ("all three", all_ways),
        )
    }


def say_the_same(rig: Rig, deciding: Deciding) -> bool:
    """Return whether a model on its own routes gives the logits that it gives all resident."""
    subject = rig.subject
    if subject.resident is None:
        everything = Deciding(policies=LRU, budget_bytes=subject.opened.store.total_bytes)
        subject.resident = subject.generate(everything).logits
    done = subject.generate(deciding)
    assert subject.resident is not None
    assert done.logits is not None
    return all(
        torch.equal(ours, theirs)
        for mine, yours in zip(done.logits, subject.resident, strict=True)
        for ours, theirs in zip(mine, yours, strict=True)
    )


def _say(began_s: float, line: str) -> None:
    print(f"{monotonic() - began_s:6.1f} s  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
