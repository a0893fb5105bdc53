"""What ``validation/accuracy.py`` compares and what a user may ask of it."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moesim.backends.predictors.uses import ORDERS
from moesim.simulator.registry import Axis

SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
PERIODS = (1, 10, 20, 40, 60, 80)
WRONG_LABELS = 0.2
PERIOD = 40
AGAINST = "static set"


@dataclass(frozen=True, slots=True)
class Arm:
    """What is compared.

    Attributes:
        name: In tables.
        policies: A spec for each axis.
        ignores_order: Whether a text is served alike whatever was served before it.
        wrong_labels: Share of the texts that bear another task's label.
        format: All experts resident, rounded to it.
    """

    name: str
    policies: Mapping[Axis, str]
    ignores_order: bool = False
    wrong_labels: float = 0.0
    format: str | None = None


def arms(period: int) -> dict[str, Arm]:
    """Return what can be compared, by name; what loses nothing comes last."""

    def held(options: str, miss: str = "reroute") -> Mapping[Axis, str]:
        return {
            "cache": f"periodic:{options},staging=0",
            "prefetch": "none",
            "schedule": f"fallback:miss={miss}/resident_first",
        }

    def lru(scope: str, schedule: str = "resident_first") -> Mapping[Axis, str]:
        return {"cache": f"lru{scope}", "prefetch": "none", "schedule": schedule}

    recent = f"period={period},predictor=recent,first=profile"
    by_task = held("period=1,predictor=task,first=profile")
    all_arms = (
        Arm("static set", held("period=1000000,window=1000000,first=profile"), ignores_order=True),
        Arm("emoe", held(recent)),
        Arm("emoe-skip", held(recent, "skip")),
        Arm("emoe-task", by_task, ignores_order=True),
        Arm("emoe-task 20% wrong", by_task, wrong_labels=WRONG_LABELS),
        Arm("emoe light", held("period=1,predictor=light,first=profile")),
        Arm("random set", held(f"period={period},predictor=random")),
        Arm("cache-prior", lru(":scope=per_layer", "cache_prior/resident_first")),
        Arm("fp8", lru(""), ignores_order=True, format="fp8"),
        Arm("int4", lru(""), ignores_order=True, format="int4"),
        Arm("lru", lru("")),
        Arm("lru per layer", lru(":scope=per_layer")),
    )
    return {arm.name: arm for arm in all_arms}


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _shares(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of ``python -m moesim.validation.accuracy``."""
    parser = argparse.ArgumentParser(prog="python -m moesim.validation.accuracy")
    parser.add_argument("model", type=Path, help="folder of a reference model's weights")
    parser.add_argument("corpora", type=Path, nargs="+", help="folders of texts, as for training")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON to write")
    parser.add_argument(
        "--plot", type=Path, help="loss against p, or without periods against memory"
    )
    parser.add_argument("--tasks", default="python,metamath,dialogue,law,german")
    parser.add_argument("--texts", type=int, default=25, help="of each task, scored")
    parser.add_argument("--fit-texts", type=int, default=25, help="of each task, profiled")
    parser.add_argument("--prompt-tokens", type=int, default=96)
    parser.add_argument("--decode-tokens", type=int, default=8)
    parser.add_argument("--order", choices=ORDERS, default="mixed")
    parser.add_argument(
        "--order-seeds", type=_integers, default=(1, 2), help="one order of the texts for each"
    )
    parser.add_argument("--policy-seed", type=int, default=0, help="of what policies draw")
    parser.add_argument("--arms", default="", help="comma-separated; all")
    parser.add_argument("--shares", type=_shares, default=SHARES)
    parser.add_argument("--period", type=int, default=PERIOD, help="p of the table of shares")
    parser.add_argument("--periods", type=_integers, default=PERIODS)
    parser.add_argument("--share", type=float, default=0.6, help="of experts, for the periods")
    parser.add_argument("--hardware", default="rtx4090")
    parser.add_argument("--cost-of", help="shape whose costs are charged, such as qwen3-30b-a3b")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--commit", help="of a copy of the code without its history")
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(words)
    options.words = words
    return options
