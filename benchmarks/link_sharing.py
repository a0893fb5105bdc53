r"""Two executions at once, each on a GPU of its own, whose copies share the host's memory.

``python benchmarks/link_sharing.py -o link_sharing.json`` needs two GPUs of one host. Two processes
have a model, a store and a controller each. First the copies of each from the host, alone and at
once; then LRU with room for a quarter of the experts, alone and at once. Of those at once only
tokens count while the other serves.

The simulator has one host thread and does not express two users who know nothing of each other. So
the prediction for both at once is a replay of each whose link has its max-min fair share while the
other copies, as measured on copies alone, and all of it else: as often as the other's replay says,
repeated until that stays. ``alone`` is foretold with the rate of copies alone. Without a GPU it
runs on the CPU, which shows that it runs:

    python benchmarks/link_sharing.py --model backends/reference/weights --weights checkpoint \
        --trace traces/samples/reference-12x32.npz --requests 2 --repeats 1
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from statistics import median
from time import monotonic, perf_counter_ns, sleep
from typing import Any

import torch
from gpu_copies import Movers, Piece
from gpu_figures import take_profiles, with_links
from two_gpus import (
    SECOND_NS,
    Rig,
    Served,
    executed,
    foretold,
    open_rig,
    options,
    provenance,
    tpot_of,
    write,
)

from moesim.validation.compare import compare_decisions

SLOTS = 64
COPYING_S = 1.5
ROUNDS = 8
"""Of finding how often both copy; three are enough."""


class Worker:
    """A process with a model on one GPU, that does as it is told.

    Args:
        number: Of the GPU.
        given: The command's options.
    """

    def __init__(self, number: int, given: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        all_gpus = [str(gpu) for gpu in range(2)] if not shown else shown.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = all_gpus[number]
        self._process = context.Process(target=_work, args=(far, given, number), daemon=True)
        self._process.start()
        if shown is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = shown

    def ask(self, what: str, told: float = 0) -> None:
        """Have something done."""
        self._pipe.send((what, told))

    def answer(self) -> Any:  # noqa: ANN401  as many answers as questions
        """Wait for what came of it."""
        found = self._pipe.recv()
        if isinstance(found, str):
            sys.exit(found)
        return found

    def end(self) -> None:
        """Let the process end."""
        self._pipe.send(("end", 0))
        self._process.join(timeout=20)


def main() -> None:
    """Measure, foretell, execute, write."""
    given = options(__doc__).parse_args()
    began_s = monotonic()
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        sys.exit(f"link_sharing needs two GPUs; there are {torch.cuda.device_count()}")
    workers = [Worker(number, given) for number in range(2)]
    size = 0
    for worker in workers:
        *told, size = worker.answer()
        _say(began_s, told)
    rates = _rates(workers, size)
    _say(began_s, f"copies from the host, GB/s: {rates}")
    alone, together = {}, {}
    for number, worker in enumerate(workers):
        worker.ask("serve")
        alone[number] = worker.answer()
        _say(began_s, f"GPU {number} alone: {_shown(alone[number])}")
    start_ns = perf_counter_ns() + SECOND_NS
    for worker in workers:
        worker.ask("serve", start_ns)
    for number, worker in enumerate(workers):
        together[number] = worker.answer()
    _say(began_s, "both at once")
    cells: list[dict[str, Any]] = [
        {
            "gpu": number,
            "alone": _cell(alone[number], None, given.warm),
            "together": _cell(together[number], together[1 - number], given.warm),
        }
        for number in range(2)
    ]
    foreseen = _foretell(workers, rates, began_s)
    for number, cell in enumerate(cells):
        for name in ("alone", "together"):
            cell[name] |= {"predicted_tpot_ms": foreseen[name][number]}
            mean = cell[name]["tpot_ms"]["mean"]
            cell[name]["error"] = round(foreseen[name][number]["mean"] / mean - 1, 4)
            print(
                f"GPU {number} {name}: TPOT {mean:.3f} ms over {cell[name]['tokens']} tokens, "
                f"prediction off by {cell[name]['error']:+.1%}"
            )
    workers[0].ask("provenance")
    told = workers[0].answer()
    write(
        given.output,
        {
            "provenance": told,
            "copies_gb_per_s": rates,
            "cells": cells,
            "overlap_of_links": foreseen["overlap"],
            "seconds": round(monotonic() - began_s, 1),
        },
    )
    for worker in workers:
        worker.end()


# In a worker


def _work(pipe: Connection, given: argparse.Namespace, number: int) -> None:
    """Do as the parent says until the end, on half of the cores; a failure is told as one line."""
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    os.sched_setaffinity(0, cores[number * half :][:half])
    try:
        rig = open_rig(given)
        take_profiles(rig, given, None)
        movers = Movers(rig, min(SLOTS, rig.experts), lends=False)
        movers.run_for(0.5)
        executed(rig, rig.deciding(0.5), given.warm)  # clocks are up and kernels loaded
        replayed = foretold(rig, rig.deciding(given.share), rig.known, given.warm)
        pipe.send(("open", number, rig.subject.name, rig.size))
        while True:
            what, told = pipe.recv()
            if what == "end":
                return
            if what in ("copy", "serve"):
                _await(told)
            if what == "copy":
                pipe.send(movers.run_for(COPYING_S))
            elif what == "serve":
                pipe.send([_serve(rig, given, replayed) for _ in range(given.repeats)])
            elif what == "foretell":
                profiles = with_links(rig.known, rig.size, rig.size / told)
                deciding = rig.deciding(given.share)
                pipe.send(foretold(rig, deciding, profiles, given.warm).row())
            else:
                pipe.send(provenance(rig, given))
    except Exception as error:  # noqa: BLE001  whatever it was, the parent reports it
        pipe.send(f"{type(error).__name__}: {error}")


def _serve(rig: Rig, given: argparse.Namespace, replayed: Served) -> dict[str, Any]:
    """Serve once; return the figures and every token's end on the machine's clock."""
    done = executed(rig, rig.deciding(given.share), given.warm)
    began_ns = rig.clocked.began_ns
    return done.row() | {
        "differing": compare_decisions(replayed.log, done.log, exact=True).differing,
        "requests": [
            [began_ns + at_ns for at_ns in (one.began_ns, *one.token_ends_ns)]
            for one in done.requests
        ],
    }


def _await(start_ns: float) -> None:
    """Wait for a time on the machine's clock."""
    while (left_ns := start_ns - perf_counter_ns()) > 0:
        sleep(left_ns / SECOND_NS / 2)


# In the parent


def _rates(workers: Sequence[Worker], size: int) -> dict[str, list[float]]:
    """Return GB/s of each GPU's copies from the host, alone and while the other copies."""
    alone = []
    for worker in workers:
        worker.ask("copy")
        alone.append(_rate(worker.answer(), size))
    start_ns = perf_counter_ns() + SECOND_NS // 2
    for worker in workers:
        worker.ask("copy", start_ns)
    pieces = [worker.answer() for worker in workers]
    begin_ns = max(mine[0].began_ns for mine in pieces)
    end_ns = min(mine[-1].ended_ns for mine in pieces)
    both = [
        _rate([one for one in mine if begin_ns <= one.began_ns and one.ended_ns <= end_ns], size)
        for mine in pieces
    ]
    return {"alone": alone, "together": both}


def _rate(pieces: Sequence[Piece], size: int) -> float:
    return round(size / median(piece.each_ns for piece in pieces), 3)


def _cell(
    mine: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]] | None, warm: int
) -> dict[str, Any]:
    """Return the times of tokens that count: none of the first, those while the other serves."""
    served = [] if other is None else [_span(one) for one in other]
    each = []
    for one in mine:
        gaps = [pair for request in one["requests"] for pair in pairwise(request[1:])]
        each.append(
            [
                end_ns - begin_ns
                for begin_ns, end_ns in gaps[warm:]
                if other is None or any(a <= begin_ns and end_ns <= b for a, b in served)
            ]
        )
    gaps_ns = [gap for found in each for gap in found]
    if not gaps_ns:
        sys.exit("the two did not serve at the same time; give more --repeats")
    return {
        "tpot_ms": tpot_of(gaps_ns),
        "tokens": len(gaps_ns),
        "mean_of_each_ms": [tpot_of(found)["mean"] if found else None for found in each],
        "executions": [
            {name: value for name, value in one.items() if name != "requests"} for one in mine
        ],
    }


def _span(one: Mapping[str, Any]) -> tuple[int, int]:
    """Return when an execution served: from its first request's begin to its last token."""
    return one["requests"][0][0], one["requests"][-1][-1]


def _foretell(
    workers: Sequence[Worker], rates: Mapping[str, Sequence[float]], began_s: float
) -> dict[str, Any]:
    """Return what is foretold of each alone and at once, and how often the other's link is busy."""
    alone = _replays(workers, rates["alone"])
    busy = [one["busy_share"]["h2d"] for one in alone]
    found = alone
    for _ in range(ROUNDS):
        blended = [
            (1 - busy[1 - number]) * rates["alone"][number]
            + busy[1 - number] * rates["together"][number]
            for number in range(2)
        ]
        found = _replays(workers, blended)
        before, busy = busy, [one["busy_share"]["h2d"] for one in found]
        if max(abs(a - b) for a, b in zip(before, busy, strict=True)) < 1e-3:
            break
    _say(began_s, f"links busy: {busy}")
    return {
        "alone": [one["tpot_ms"] for one in alone],
        "together": [one["tpot_ms"] for one in found],
        "overlap": busy,
    }


def _replays(workers: Sequence[Worker], rates: Sequence[float]) -> list[dict[str, Any]]:
    """Return a replay of each with copies from the host at this rate."""
    for worker, rate in zip(workers, rates, strict=True):
        worker.ask("foretell", rate)
    return [worker.answer() for worker in workers]


def _shown(executions: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['tpot_ms']['mean']:.3f} ms" for one in executions)


def _say(began_s: float, line: object) -> None:
    print(f"{monotonic() - began_s:6.1f} s  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
