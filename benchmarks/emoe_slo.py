"""Whose promises are kept, and when: eMoE's scheduler, earliest deadline first, and FCFS.

``python benchmarks/emoe_slo.py ../shared/data/requests -o OUT.json --plot OUT.png``

Mixtral-8x7B in bf16 on one A100 of 80 GB with 60 % of its experts, which is the setting of most of
the paper's figures: eMoE holds the predicted set for 40 prompts and sends tokens of absent experts
elsewhere, so nothing but a new set moves, and requests wait for each other alone. The three differ
in who is let in next. What the paper does not publish is set here and told: a request is promised
its first token within 5 times its task's median, and its last within 3 times its task's 90th
percentile, of a run in which nobody waits; c is the time of a token of that run, dE the time that
its copies took for each request.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from slo_stream import Stream, make

from moesim.simulator.ledger import RequestTimes
from moesim.simulator.memory import MemorySpec
from moesim.simulator.results.request_times import keeps_promise
from moesim.simulator.results.run_result import RunResult
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import prepare
from moesim.simulator.serving.spec import Serving
from moesim.simulator.tables import print_table
from moesim.simulator.terms import SECOND_NS, Slo
from moesim.validation.provenance import commit_of, without_folder

CACHE = "periodic:period=40,predictor=recent,first=profile,staging=0"
INSIDE = "fallback/resident_first"
HARDWARE, SLOTS, FORMAT = "a100-80gb", "60%", "bf16"
ALONE_PER_S = 0.02
"""Requests a second of the run in which nobody waits."""
FIRST_TOKEN, LAST_TOKEN = 5, 3
WRONG = 0.2
FIELDS = (
    "slo_attainment",
    "goodput_per_s",
    "requests_per_s",
    "mean_batch",
    *(f"{which}_{kind}_ms" for kind in ("ttft", "tpot", "e2e") for which in ("p50", "p90", "p99")),
    "mean_e2e_ms",
)
PUBLISHED = {
    "SLO attainment": "not published, nor are SLOs, Tmax, c and dE",
    "end-to-end latency against DeepSpeed-FastGen": "-9 % (TinyMixtral) to -17 % (Mixtral-8x22B)",
    "20 % wrong labels": "less than 10 % more latency",
}


class Job(NamedTuple):
    """One run: who schedules, at which load, and how many of the labels are wrong."""

    arrivals: str
    scheduler: str
    policy: str
    per_s: float
    wrong: float = 0.0


STREAMS: dict[tuple[str, float], Stream] = {}
"""By arrivals and share of wrong labels; worker processes inherit it."""
PROMISES: dict[str, Slo] = {}


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("logs", type=Path, help="folder of Azure's two logs")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument("--shorten", type=int, default=4, help="what lengths are divided by")
    parser.add_argument("--rates", default="1,2,3,4,6", help="requests a second")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Measure alone, promise, serve, write and print."""
    given = parse()
    began = time.perf_counter()
    for arrivals in ("recorded", "poisson"):
        poisson = arrivals == "poisson"
        stream = make(given.logs, given.requests, given.shorten, poisson=poisson, seed=given.seed)
        STREAMS[arrivals, 0.0] = stream
        STREAMS[arrivals, WRONG] = mislabelled(stream, given.seed)
    alone = serve(STREAMS["recorded", 0.0], f"fcfs:max_batch=16,chunk=512/{INSIDE}", ALONE_PER_S)
    PROMISES.update(promises(STREAMS["recorded", 0.0], alone.timings.requests))
    known = profiled(alone)
    rates = [float(rate) for rate in given.rates.split(",")]
    rows = []
    with ProcessPoolExecutor(given.workers, mp_context=get_context("fork")) as pool:
        for row in pool.map(measure, jobs(rates, known)):
            rows.append(row)
            sys.stderr.write(f"{row['arrivals']} {row['scheduler']} {row['per_s']}\n")
    document = {
        "setup": {
            "title": f"mixtral-8x7b {FORMAT}, {HARDWARE}, {SLOTS} of the experts, {CACHE}",
            "requests": given.requests,
            "lengths_divided_by": given.shorten,
            "seed": given.seed,
            "promised": {
                task: {"ttft_ms": slo.ttft_ns / 1e6, "e2e_ms": slo.e2e_ns / 1e6}
                for task, slo in sorted(PROMISES.items())
                if slo.ttft_ns and slo.e2e_ns
            },
            "lengths": lengths(STREAMS["recorded", 0.0]),
            **known,
        },
        "provenance": {
            "command": " ".join(["python", *map(without_folder, sys.argv)]),
            "commit": commit_of(None),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "cores": os.cpu_count(),
            "seconds": round(time.perf_counter() - began),
            "versions": {"moesim": version("moesim"), "numpy": np.__version__},
        },
        "published": PUBLISHED,
        "rows": rows,
    }
    draft = given.output.with_suffix(".draft")
    draft.write_text(f"{json.dumps(document, indent=1, sort_keys=True)}\n", encoding="utf-8")
    draft.replace(given.output)
    if given.plot:
        draw(rows, document["setup"]["title"]).savefig(
            given.plot, dpi=110, metadata={"Software": None}
        )
    head = ("arrivals", "scheduler", "wrong", "per_s", *FIELDS)
    cells = [tuple(f"{row[key]:.4g}" if isinstance(row[key], float) else row[key] for key in head)
             for row in rows]  # fmt: skip
    print_table("", head, [tuple(map(str, row)) for row in cells])


def serve(
    stream: Stream,
    schedule: str,
    per_s: float,
    *,
    cache: str = CACHE,
    ask_ns: Mapping[str, int] | None = None,
) -> RunResult:
    """Return a run in which these requests arrive so many a second.

    Args:
        stream: Who arrives.
        schedule: Who is let in next, and how experts are run.
        per_s: Requests a second.
        cache: Which experts are held.
        ask_ns: How long each kind of ask takes.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "requests.csv"
        stream.write(path)
        run = prepare(
            RunSpec(
                stream.trace,
                "twin-mixtral-8x7b-32x8",
                HARDWARE,
                {"cache": cache, "prefetch": "none", "schedule": schedule},
                memory=MemorySpec(slots=SLOTS),
                weights_format=FORMAT,
                profile_trace=stream.profile,
                ask_ns=ask_ns or {},
                serving=Serving(f"file:{path},speed={per_s},order=recorded", slo=PROMISES),
            )
        )
    return run.replay()


def promises(stream: Stream, times: list[RequestTimes]) -> dict[str, Slo]:
    """Return what a task's requests are promised, from how long they took while nobody waited."""
    found = {}
    for task in sorted(set(stream.task_R)):
        mine = [one for one in times if stream.task_R[one.request] == task]
        first_ns = [one.token_ends_ns[0] - one.arrived_ns for one in mine]
        last_ns = [one.token_ends_ns[-1] - one.arrived_ns for one in mine]
        found[task] = Slo(
            ttft_ns=round(FIRST_TOKEN * float(np.median(first_ns))),
            e2e_ns=round(LAST_TOKEN * float(np.percentile(last_ns, 90))),
        )
    return found


def profiled(alone: RunResult) -> dict[str, float]:
    """Return c and dE as eMoE's scheduler is told them, and other c that it might have been told.

    The paper calls c the profiled mean latency of experts and communication per input token.
    """
    row = alone.row
    per_token_us = row["gpu_busy_ns"] / row["tokens"] / 1e3
    prefill_us = [
        (one.token_ends_ns[0] - one.began_ns) / one.prompt_tokens / 1e3
        for one in alone.timings.requests
    ]
    return {
        "token_us": round(per_token_us, 1),
        "prompt_token_us": round(float(np.median(prefill_us)), 1),
        "step_us": round(row["mean_tpot_ms"] * 1e3, 1),
        "loading_ms": round(row["link_busy_ns"] / row["requests"] / 1e6, 3),
    }


def jobs(rates: list[float], known: Mapping[str, float]) -> Iterator[Job]:
    """Yield what is compared."""

    def emoe(token_us: float) -> str:
        told = f"token_us={token_us},loading_ms={known['loading_ms']},most_tokens=8192"
        return f"task_aware:max_batch=16,chunk=512,{told}/{INSIDE}"

    policies = {
        "FCFS": f"fcfs:max_batch=16,chunk=512/{INSIDE}",
        "SLO first": f"slo_first:max_batch=16,chunk=512/{INSIDE}",
        "eMoE": emoe(known["token_us"]),
    }
    for arrivals in ("recorded", "poisson"):
        for per_s in rates:
            for name, policy in policies.items():
                yield Job(arrivals, name, policy, per_s)
    middle = rates[len(rates) // 2]
    for which in ("prompt_token_us", "step_us"):
        yield Job("recorded", f"eMoE, c = {which}", emoe(known[which]), middle)
    for per_s in (rates[0], middle):
        yield Job("recorded", "eMoE", policies["eMoE"], per_s, WRONG)


def measure(job: Job) -> dict[str, Any]:
    """Run one; in a worker process. Promises are kept or not by the right labels."""
    stream, right = STREAMS[job.arrivals, job.wrong], STREAMS[job.arrivals, 0.0]
    result = serve(stream, job.policy, job.per_s)
    times = result.timings.requests
    kept = [promise_kept(one, right) for one in times]
    row = {**result.row, "slo_attainment": sum(kept) / stream.requests}
    row["goodput_per_s"] = sum(kept) / (row["span_ns"] / SECOND_NS)
    by_task = {
        task: round(
            float(np.mean([k for k, one in zip(kept, times, strict=True)
                           if right.task_R[one.request] == task])), 4)
        for task in sorted(set(right.task_R))
    }  # fmt: skip
    return {
        "arrivals": job.arrivals,
        "scheduler": job.scheduler,
        "wrong": job.wrong,
        "per_s": job.per_s,
        **{name: round(row[name], 4) for name in FIELDS},
        "kept_by_task": by_task,
        "schedule": row["schedule"],
        "gb_rebalance": round(row["bytes_rebalance"] / 1e9, 2),
        "run_id": row["run_id"],
    }


def promise_kept(one: RequestTimes, stream: Stream) -> bool:
    """Return whether a request got what its own task is promised, whatever its label said."""
    one.slo = PROMISES[stream.task_R[one.request]]
    return keeps_promise(one)


def mislabelled(stream: Stream, seed: int) -> Stream:
    """Return the stream with another task's label on a share of the requests."""
    rng = np.random.default_rng(seed)
    tasks = sorted(set(stream.task_R))
    wrong = set(rng.permutation(stream.requests)[: round(WRONG * stream.requests)].tolist())
    return stream.labelled(
        [
            tasks[(tasks.index(task) + int(rng.integers(1, len(tasks)))) % len(tasks)]
            if at in wrong
            else task
            for at, task in enumerate(stream.task_R)
        ]
    )


def lengths(stream: Stream) -> dict[str, dict[str, float]]:
    """Return the mean prompt and answer of each task, and the answer that the scheduler expects."""
    expected = dict(zip(stream.profile.task_R, stream.profile.output_tokens_R, strict=True))
    found = {}
    for task in sorted(set(stream.task_R)):
        mine = [at for at, name in enumerate(stream.task_R) if name == task]
        found[task] = {
            "requests": len(mine),
            "mean_prompt": round(float(stream.prompt_R[mine].mean()), 1),
            "mean_answer": round(float(stream.output_R[mine].mean()), 1),
            "expected_answer": float(expected[task]),
        }
    return found


def draw(rows: list[dict[str, Any]], title: str) -> Figure:
    """Draw attainment and goodput against the request rate, arrivals side by side."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, arrivals in enumerate(("recorded", "poisson")):
        for name, colour in (("FCFS", "C0"), ("SLO first", "C2"), ("eMoE", "C3")):
            mine = [
                row
                for row in rows
                if (row["arrivals"], row["scheduler"], row["wrong"]) == (arrivals, name, 0)
            ]
            rates = [row["per_s"] for row in mine]
            for axis, key, scale in (
                (grid[0, column], "slo_attainment", 100),
                (grid[1, column], "goodput_per_s", 1),
            ):
                axis.plot(rates, [scale * row[key] for row in mine], "o-", color=colour, label=name)
                axis.grid(color="#d0d7de", linewidth=0.4)
        grid[0, column].set_title(f"{arrivals} arrivals")
        grid[1, column].set_xlabel("requests a second")
    grid[0, 0].set(ylabel="promises kept, %", ylim=(0, 102))
    grid[1, 0].set(ylabel="goodput: promises kept a second", ylim=(0, None))
    grid[0, 0].legend()
    figure.suptitle(title, fontsize=9)
    return figure


if __name__ == "__main__":
    main()
