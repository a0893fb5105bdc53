"""Draws the curves of a frontier as one figure, the LRU cliff and the useful region marked."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from moesim.simulator.frontier.curves import Frontier, useful_region
from moesim.simulator.results.plot_panels import AMBER, BLUE, GREEN, GREY, PURPLE, RED
from moesim.simulator.results.plots import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, AMBER, GREEN, PURPLE, RED)


def plot_frontier(result: Frontier, title: str, path: Path, *, dark: bool = False) -> None:
    """Draw a frontier into a file, whole or not at all.

    Raises:
        InputError: As for `moesim.simulator.results.plots.draw`.
    """
    save(partial(_paint, result=result, title=title), path, dark=dark)


def _paint(figure: "Figure", /, *, result: Frontier, title: str, theme: Mapping[str, str]) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    if result.layer_curves:
        whole, by_layer = figure.subplots(2, 1, height_ratios=(1.4, 1))
        _paint_layers(by_layer, result)
    else:
        whole = figure.subplots()
    _paint_whole(whole, result, theme)


def _paint_whole(axes: "Axes", result: Frontier, theme: Mapping[str, str]) -> None:
    has_decode = result.curves[0].decode_demands > 0
    axes.set_title("One pass, all sizes")
    axes.set_xlabel("slots (100 % are all experts)")
    axes.set_ylabel("decode hit rate, %" if has_decode else "hit rate, %")
    axes.grid()
    total = result.layers * result.experts
    for curve, colour in zip(result.curves, COLOURS, strict=False):
        axes.plot(curve.slots_S, curve.rate_S * 100, color=colour, linewidth=1.6, label=curve.cache)
    region = useful_region(result.curves[0])
    if region is not None:
        text = f"useful region of {result.curves[0].cache}: {region.first} to {region.last} slots"
        axes.axvspan(*region, color=GREEN, alpha=0.09, linewidth=0, label=text)
    if has_decode and result.cliff:
        axes.axvline(result.cliff, color=RED, linewidth=1, linestyle="--")
        axes.annotate(
            f"LRU cliff: {result.cliff} slots,\nno decode hit up to here",
            (result.cliff, 4),
            xytext=(6, 0),
            textcoords="offset points",
            fontsize=8.5,
            color=theme["ink"],
        )
    axes.set_xlim(0, total)
    axes.set_ylim(0, 100)
    tenths = [round(total * tenth / 10) for tenth in range(11)]
    axes.set_xticks(tenths, [f"{slots}\n{at * 10} %" for at, slots in enumerate(tenths)])
    axes.legend(loc="lower right", bbox_to_anchor=(0.97, 0.02))


def _paint_layers(axes: "Axes", result: Frontier) -> None:
    axes.set_title(f"Each layer in a cache of its own ({result.layer_curves[0].cache})")
    axes.set_xlabel("slots of the layer; light to dark: first to last layer")
    axes.set_ylabel("hit rate, %")
    axes.grid()
    first = result.layer_curves[0].cache
    for curve in result.layer_curves:
        if curve.cache == first and curve.layer is not None:
            strength = 0.2 + 0.7 * curve.layer / max(1, result.layers - 1)
            axes.plot(curve.slots_S, curve.rate_S * 100, color=BLUE, alpha=strength, linewidth=0.8)
    axes.axvline(result.top_k, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, result.experts)
    axes.set_ylim(0, 100)
