"""What a prediction costs, by whom, and what it does to the time to the first token.

``python benchmarks/emoe_overhead.py gpt-oss-20b.json ../shared/data/requests -o OUT.json``

An ask of eMoE-A is one call of an XLNet, one of eMoE-L a call for each layer, and eMoE-E is A asked
before every prompt. Ours are small and fitted to a trace; an answer of theirs, and of the light
mixture, was timed by ``emoe_periods.py``, whose result is the first argument. The paper's network
is an XLNet of 108 million parameters, words included: one of the same depth and width, with random
weights, no words and a feed-forward half as wide (64 million), is timed here on one core, for
Mixtral's 32 layers of 8 experts. Then requests are served as in ``emoe_slo.py`` while asks of such
lengths run beside the host, every p prompts, and the time to the first token is told: for all of
them at p = 1, else for none and the longest.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from emoe_slo import INSIDE, serve
from slo_stream import make

from moesim.backends.predictors.sequence import VARIANTS, ExpertSequence, Size, Variant
from moesim.simulator.tables import print_table
from moesim.validation.provenance import commit_of, without_folder

PERIODS = (1, 10, 40)
PER_S, REQUESTS, SHORTEN = 2.0, 50, 4
LAYERS, EXPERTS, TOP_K = 32, 8, 2
THEIRS = {"width": 768, "blocks": 12, "heads": 12}
PUBLISHED = {
    "parameters": 108_000_000,
    "predict and move, seconds an invocation (Mixtral-8x7B), A and L": [0.334, 4.211],
    "predict and move, seconds an invocation (OpenMoE), A and L": [0.381, 1.387],
    "of the mean inference time, over 40 prompts (Mixtral-8x7B), A and L": ["0.24 %", "3.11 %"],
    "of the mean inference time, over 40 prompts (OpenMoE), A and L": ["0.47 %", "1.69 %"],
    "inference time of E over A and L": "9 to 34 % more",
}


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("periods", type=Path, help="result of emoe_periods.py")
    parser.add_argument("logs", type=Path, help="folder of Azure's two logs")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Time asks, serve with them, write and print."""
    given = parse()
    began = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    asks = dict(measured(json.loads(given.periods.read_text("utf-8"))))
    asks |= {f"{name}, 12 x 768": timed(name) for name in VARIANTS}
    stream = make(given.logs, REQUESTS, SHORTEN, poisson=False, seed=given.seed)
    asks = {"no time": {"ask_us": 0.0, "parameters": 0}, **asks}
    longest = max(asks, key=lambda name: asks[name]["ask_us"])
    rows = []
    for p in PERIODS:
        for name in asks if p == 1 else ("no time", longest):
            about = asks[name]
            cache = f"periodic:period={p},predictor=recent,first=profile,staging=0,ask=true"
            run = serve(
                stream,
                f"fcfs:max_batch=16,chunk=512/{INSIDE}",
                PER_S,
                cache=cache,
                ask_ns={"predict_use": round(about["ask_us"] * 1e3)},
            )
            rows.append(
                {
                    "p": p,
                    "predictor": name,
                    "ask_ms": round(about["ask_us"] / 1e3, 3),
                    "ask_ms_a_prompt": round(about["ask_us"] / 1e3 / p, 3),
                    **{
                        f"{which}_ttft_ms": round(run.row[f"{which}_ttft_ms"], 2)
                        for which in ("mean", "p50", "p99")
                    },
                    "mean_tpot_ms": round(run.row["mean_tpot_ms"], 3),
                    "gb_rebalance": round(run.row["bytes_rebalance"] / 1e9, 2),
                }
            )
            sys.stderr.write(f"p = {p}, {name}: {rows[-1]['mean_ttft_ms']} ms\n")
    document = {
        "provenance": {
            "command": " ".join(["python", *map(without_folder, sys.argv)]),
            "commit": commit_of(None),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "cores": os.cpu_count(),
            "seconds": round(time.perf_counter() - began),
            "versions": {name: version(name) for name in ("moesim", "torch", "transformers")},
        },
        "published": PUBLISHED,
        "asks": asks,
        "rows": rows,
    }
    draft = given.output.with_suffix(".draft")
    draft.write_text(f"{json.dumps(document, indent=1, sort_keys=True)}\n", encoding="utf-8")
    draft.replace(given.output)
    print_table("", list(rows[0]), [tuple(map(str, row.values())) for row in rows])


def measured(periods: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what an answer of our own predictors took, in microseconds of a core."""
    of = periods["whole_sequences"]["predictors"]
    for name, table in (
        ("light", "light"),
        ("all_layers", "XLNet all_layers"),
        ("by_layer", "XLNet by_layer"),
    ):
        row = of["table"][table]
        yield (
            name,
            {
                "ask_us": row.get("cpu_us_an_answer", row["us_an_answer"]),
                "parameters": of["parameters"].get(name, 0),
            },
        )


def timed(variant: Variant) -> dict[str, float]:
    """Return what an answer of a network of the paper's depth and width takes on one core."""
    network = ExpertSequence(Size(LAYERS, EXPERTS, variant, **THEIRS)).eval()
    history_BHLE = torch.zeros(1, 1, LAYERS, EXPERTS)
    history_BHLE[..., :TOP_K] = 1 / TOP_K
    times_us = []
    for _ in range(2):
        began_ns = time.process_time_ns()
        network.tell(history_BHLE, TOP_K)
        times_us.append((time.process_time_ns() - began_ns) / 1e3)
    return {
        "ask_us": round(times_us[-1]),
        "parameters": sum(weight.numel() for weight in network.parameters()),
    }


if __name__ == "__main__":
    main()
