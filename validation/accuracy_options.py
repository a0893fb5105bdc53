"""What ``validation/accuracy.py`` compares and what a user may ask of it."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from moesim.backends.predictors.uses import ORDERS
from moesim.simulator.registry import Axis

SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
PERIODS = (1, 10, 20, 40, 60, 80)


def arms(period: int) -> dict[str, Mapping[Axis, str]]:
    """Return what is compared, by name; what loses nothing comes last."""

    def held(options: str, miss: str = "reroute") -> Mapping[Axis, str]:
        return {
            "cache": f"periodic:{options},staging=0",
            "prefetch": "none",
            "schedule": f"fallback:miss={miss}/resident_first",
        }

    return {
        "emoe": held(f"period={period},predictor=recent,first=profile"),
        "emoe light": held("period=1,predictor=light,first=profile"),
        "emoe skip": held(f"period={period},predictor=recent,first=profile", "skip"),
        "static set": held("period=1000000,window=1000000,first=profile"),
        "random set": held(f"period={period},predictor=random"),
        "cache-prior": {
            "cache": "lru:scope=per_layer",
            "prefetch": "none",
            "schedule": "cache_prior/resident_first",
        },
        "lru": {"cache": "lru", "prefetch": "none", "schedule": "resident_first"},
        "lru per layer": {
            "cache": "lru:scope=per_layer",
            "prefetch": "none",
            "schedule": "resident_first",
        },
    }


def _shares(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part)


def _periods(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of ``python -m moesim.validation.accuracy``."""
    parser = argparse.ArgumentParser(prog="python -m moesim.validation.accuracy")
    parser.add_argument("model", type=Path, help="folder of a reference model's weights")
    parser.add_argument("corpora", type=Path, nargs="+", help="folders of texts, as for training")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--plot", type=Path, help="perplexity and latency against p")
    parser.add_argument("--tasks", default="python,metamath,dialogue,law,german")
    parser.add_argument("--texts", type=int, default=40, help="of each task, half of them scored")
    parser.add_argument("--prompt-tokens", type=int, default=96)
    parser.add_argument("--decode-tokens", type=int, default=8)
    parser.add_argument("--order", choices=ORDERS, default="mixed")
    parser.add_argument("--arms", default="", help="comma-separated; all")
    parser.add_argument("--shares", type=_shares, default=SHARES)
    parser.add_argument("--period", type=int, default=40, help="p of the table of shares")
    parser.add_argument("--periods", type=_periods, default=PERIODS)
    parser.add_argument("--share", type=float, default=0.6, help="of experts, for the periods")
    parser.add_argument("--hardware", default="rtx4090")
    parser.add_argument("--cost-of", help="shape whose costs are charged, such as qwen3-30b-a3b")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)
