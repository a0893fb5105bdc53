"""What the memory that eMoE frees is good for: longer prompts, larger batches, more throughput.

``python benchmarks/emoe_memory.py -o OUT.json --plot OUT.png``

Full residency sets the budget: what it takes for one prompt of 512 tokens, and for a batch of 4, as
in the paper. Then fewer experts are held and KV caches get what that frees: how long a prompt, and
how large a batch, takes as much VRAM. That is arithmetic, the same as ``moesim plan --fit``. The
larger batches are then served, all requests at once: by eMoE, which is lossy and waits for nothing,
and by a lossless LRU cache of the same bytes. Of Mixtral-8x7B, the paper's model, the paper's
batches are served; of OLMoE, whose memory holds fewer tokens, those of every share. Where a share
leaves a layer fewer experts than a token chooses eMoE has no substitute and is refused.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from slo_stream import twin

from moesim.simulator.capacity import largest_batch, longest_prompt
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import MoesimError
from moesim.simulator.memory import MemoryPlan, MemorySpec, Server, kv_bytes, plan
from moesim.simulator.run_spec import RunSpec, costs_of
from moesim.simulator.runs import prepare
from moesim.simulator.serving.spec import Serving
from moesim.simulator.tables import print_table
from moesim.traces import RoutingTrace
from moesim.validation.provenance import commit_of, without_folder

FORMAT = "bf16"
SHARES = (100, 80, 60, 40, 20)
PROMPT_TOKENS, ANSWER_TOKENS, CHUNK = 512, 128, 512
BATCH = 4
THEIR_BATCH, THEIR_SHARE = 18, 60
ALL = ("periodic:period=1000000,first=profile,staging=0", "")
"""Full residency: all experts are there before the first request arrives."""
SYSTEMS = {
    "emoe": ("periodic:period=40,predictor=recent,first=profile,staging=0", "fallback/"),
    "lru": ("lru", ""),
}
FIGURES = (
    "tokens_per_s",
    "tpot_ms",
    "ttft_ms",
    "peak_vram_gb",
    "gb_moved",
    "rerouted_share",
)
MODELS = {
    "mixtral-8x7b": ("twin-mixtral-8x7b-32x8", "h200-sxm"),
    "olmoe": ("twin-olmoe-16x64", "rtx4090"),
}
"""Whose routes and on which machine, of which no more is used than full residency takes."""
PUBLISHED = {
    "Mixtral-8x7B, prompt of 512: GB with all experts and with 60 %": [96, 59],
    "Mixtral-8x7B, longest prompt at equal memory, 60 %": "up to 40 times (20,480 tokens)",
    "Mixtral-8x7B, batch of 4: GB with all experts and with 60 %": [100, 59],
    "Mixtral-8x7B, largest batch at equal memory, 60 %": "18 (4.5 times)",
    "Mixtral-8x7B, throughput at the larger batch": "1.3 to 1.5 times",
    "OpenMoE: prompt, batch, throughput": "16 times, 2 times, 1.3 to 1.4 times",
}


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def main() -> None:
    """Calculate, serve, write and print."""
    given = parse()
    began = time.perf_counter()
    fits, rows = [], []
    for model, (routes, _) in MODELS.items():
        costs = costs_of(spec(model, twin(routes), "lru", 100))
        budgets = [used(costs, PROMPT_TOKENS, batch=batch) for batch in (1, BATCH)]
        fits += [{"model": model, **fit(costs, share, *budgets)} for share in SHARES]
    for model, system, share, batch in runs(fits):
        rows.append(serve(model, twin(MODELS[model][0]), system, share, batch))
        sys.stderr.write(f"{model} {system} {share} % {batch}: {rows[-1]['tokens_per_s']}\n")
    document = {
        "setup": {
            "format": FORMAT,
            "machines": {model: machine for model, (_, machine) in MODELS.items()},
            "prompt_tokens": PROMPT_TOKENS,
            "answer_tokens": ANSWER_TOKENS,
            "chunk": CHUNK,
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
        "fits": fits,
        "rows": rows,
    }
    draft = given.output.with_suffix(".draft")
    draft.write_text(f"{json.dumps(document, indent=1, sort_keys=True)}\n", encoding="utf-8")
    draft.replace(given.output)
    if given.plot:
        draw(fits, rows).savefig(given.plot, dpi=110, metadata={"Software": None})
    for table in (fits, rows):
        print_table("", list(table[0]), [tuple(map(str, row.values())) for row in table])


def spec(model: str, trace: RoutingTrace, system: str, share: int, batch: int = 1) -> RunSpec:
    """Return a run of so many requests at once that hold a share of the experts."""
    cache, schedule = ALL if share == 100 else SYSTEMS[system]
    asked = f"users:users={batch},requests={batch},prompt={PROMPT_TOKENS},output={ANSWER_TOKENS}"
    batching = f"fcfs:max_batch={batch},chunk={CHUNK}"
    return RunSpec(
        trace,
        *MODELS[model],
        {
            "cache": cache,
            "prefetch": "none",
            "schedule": f"{batching}/{schedule}resident_first",
        },
        memory=MemorySpec(slots=f"{share}%"),
        weights_format=FORMAT,
        profile_trace=trace,
        serving=Serving(asked),
    )


def used(costs: CostModel, prompt_tokens: int, *, batch: int) -> int:
    """Return the VRAM that full residency takes for so many requests."""
    context = prompt_tokens + ANSWER_TOKENS - 1
    server = Server(batch * kv_bytes(costs.shape, context), CHUNK + batch - 1)
    return plan(MemorySpec(slots="100%"), costs, context, server).used_bytes


def within(costs: CostModel, budget_bytes: int) -> CostModel:
    """Return the same machine with so much usable VRAM and no more."""
    machine = costs.profile
    share_ppm = machine.gpu.vram_usable.value
    vram = machine.gpu.vram.model_copy(update={"value": -(-budget_bytes * 10**6 // share_ppm)})
    gpu = machine.gpu.model_copy(update={"vram": vram})
    return CostModel(machine.model_copy(update={"gpu": gpu}), costs.runtime, costs.shape)


def fit(costs: CostModel, share: int, prompt_budget: int, batch_budget: int) -> dict[str, Any]:
    """Return what a share of the experts takes, and what fits into what all of them took."""
    memory = MemorySpec(slots=f"{share}%")
    context = PROMPT_TOKENS + ANSWER_TOKENS - 1
    small = plan(memory, costs, context, Server(kv_bytes(costs.shape, context), CHUNK))
    prompt, at_prompt = longest_prompt(
        memory, within(costs, prompt_budget), output_tokens=ANSWER_TOKENS, chunk=CHUNK
    )
    batch, at_batch = largest_batch(
        memory, within(costs, batch_budget), context_tokens=context, chunk=CHUNK
    )
    return {
        "share": share,
        "kv_kb_a_token": kv_bytes(costs.shape, 1) / 1e3,
        "gb_of_a_prompt": round(small.used_bytes / 1e9, 2),
        "longest_prompt": prompt,
        "prompt_times": round(prompt / PROMPT_TOKENS, 1),
        "largest_batch": batch,
        "batch_times": round(batch / BATCH, 1),
        "kv_gb": _kv_gb(at_batch),
        "kv_gb_of_the_prompt": _kv_gb(at_prompt),
    }


def _kv_gb(divided: MemoryPlan | None) -> float:
    return 0.0 if divided is None else round(divided.kv_bytes / 1e9, 2)


def runs(fits: list[dict[str, Any]]) -> Iterator[tuple[str, str, int, int]]:
    """Yield model, system, share and batch of what is served."""
    for model in MODELS:
        for batch in (BATCH, THEIR_BATCH):
            yield model, "lru", 100, batch
            for system in SYSTEMS:
                yield model, system, THEIR_SHARE, batch
    yield "mixtral-8x7b", "emoe", 20, BATCH
    for row in fits:
        if row["model"] == "olmoe" and row["share"] < 100:
            for system in SYSTEMS:
                yield "olmoe", system, row["share"], row["largest_batch"]


def serve(model: str, trace: RoutingTrace, system: str, share: int, batch: int) -> dict[str, Any]:
    """Return how fast so many requests, all there at once, are served, or why they are not."""
    which = {
        "model": model,
        "system": "all resident" if share == 100 else system,
        "share": share,
        "batch": batch,
    }
    try:
        row = prepare(spec(model, trace, system, share, batch)).replay().row
    except MoesimError as error:
        return {**which, **dict.fromkeys(FIGURES), "run_id": str(error)}
    return {
        **which,
        "tokens_per_s": round(row["output_tokens_per_s"], 2),
        "tpot_ms": round(row["p50_tpot_ms"], 3),
        "ttft_ms": round(row["p50_ttft_ms"], 1),
        "peak_vram_gb": round(row["peak_vram_bytes"] / 1e9, 2),
        "gb_moved": round(row["bytes_total"] / 1e9, 2),
        "rerouted_share": round(row["rerouted"] / (row["tokens"] * trace.layers * trace.top_k), 4),
        "run_id": row["run_id"],
    }


def draw(fits: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Figure:
    """Draw what fits and how fast it is against the share of experts held."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    prompts, batches, speeds = figure.subplots(1, 3)
    for model, line in zip(MODELS, ("o-", "s--"), strict=True):
        mine = [row for row in fits if row["model"] == model]
        shares = [row["share"] for row in mine]
        prompts.plot(shares, [row["prompt_times"] for row in mine], line, label=model)
        batches.plot(shares, [row["batch_times"] for row in mine], line, label=model)
    prompts.plot([60], [40], "k*", markersize=10, label="published, Mixtral")
    batches.plot([60], [4.5], "k*", markersize=10, label="published, Mixtral")
    for model in MODELS:
        _draw_speeds(speeds, model, [row for row in rows if row["model"] == model])
    speeds.plot([60, 60], [1.3, 1.5], "k-", linewidth=4, label="published, Mixtral, 4 to 18")
    speeds.axhline(1, color="#8b949e", linewidth=0.8)
    prompts.set(ylabel="longest prompt, times 512", yscale="log")
    batches.set(ylabel="largest batch, times 4", yscale="log")
    speeds.set(ylabel="tokens/s over all resident, batch of 4", yscale="log")
    for axis in (prompts, batches, speeds):
        axis.set_xlabel("experts held, %")
        axis.grid(color="#d0d7de", linewidth=0.4)
        axis.legend(fontsize=7)
    figure.suptitle("What fits into the memory of full residency, and how fast it is", fontsize=9)
    return figure


def _draw_speeds(axis: Axes, model: str, rows: list[dict[str, Any]]) -> None:
    base = next(r["tokens_per_s"] for r in rows if (r["share"], r["batch"]) == (100, BATCH))
    for system, colour in (("emoe", "C3"), ("lru", "C0")):
        name = {"emoe": "eMoE (lossy)", "lru": "LRU (lossless)"}[system]
        mine = [r for r in rows if r["system"] == system and r["tokens_per_s"]]
        largest = sorted(
            (r["share"], r["tokens_per_s"] / base)
            for r in mine
            if r["batch"] not in (BATCH, THEIR_BATCH)
        )
        if largest:
            axis.plot(*zip(*largest, strict=True), "s--", color=colour, label=f"{model}, {name}")
        else:
            theirs = [r["tokens_per_s"] / base for r in mine if r["batch"] == THEIR_BATCH]
            axis.plot([THEIR_SHARE], theirs, "o", color=colour, label=f"{model}, {name}, 18")


if __name__ == "__main__":
    main()
