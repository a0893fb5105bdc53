"""The chart of `emoe_periods.py`: time and share against p, one panel an order."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from periods_arms import PERIODS, REPLAYED


def plot(document: Mapping[str, Any], target: Path) -> None:
    """Draw time of a token and share served from VRAM against p, one panel an order."""
    mpl.use("Agg")
    orders = list(dict.fromkeys(row["order"] for row in document["rows"]))
    figure, axes = plt.subplots(1, len(orders), figsize=(5.4 * len(orders), 5), sharey=True)
    drawn = {
        REPLAYED: ("C0", "-"),
        "XLNet A": ("C1", "-"),
        "best window": ("C5", "-"),
        "best window, adaptive": ("C5", "--"),
        "light": ("C6", "-"),
        "light, adaptive": ("C6", "--"),
    }
    across = {"static offline set": "C2", "lru": "C3", "perfect prediction": "C4"}
    for order, axis in zip(orders, np.atleast_1d(axes), strict=True):
        rows = [row for row in document["rows"] if row["order"] == order]
        share = axis.twinx()
        for name, (colour, line) in drawn.items():
            points = sorted((r["p"], r["tpot_ms"], r["share"]) for r in rows if r["arm"] == name)
            periods = [point[0] for point in points]
            times = [point[1] for point in points]
            axis.plot(periods, times, f"o{line}", color=colour, markersize=4, label=name)
            if name in (REPLAYED, "XLNet A", "light"):
                shares = [point[2] for point in points]
                share.plot(periods, shares, "s:", color=colour, markersize=3)
        for name, colour in across.items():
            for row in rows:
                if row["arm"] == name and row["p"] in (None, 40):
                    axis.axhline(row["tpot_ms"], color=colour, lw=1, label=name)
        axis.set(
            title=order,
            xlabel="p: prompts to the next prediction; adaptive: in which a change pays",
        )
        axis.set_xticks(PERIODS)
        share.set_ylim(0, 1)
        if order == orders[-1]:
            share.set_ylabel("share of choices served from VRAM (dotted)")
    np.atleast_1d(axes)[0].set_ylabel("ms a token, misses copied (solid)")
    np.atleast_1d(axes)[0].legend(fontsize=7, ncols=2)
    figure.suptitle(document["setup"]["title"])
    figure.tight_layout()
    figure.savefig(target, dpi=110)
