"""``moesim frontier``: the hit rate of every cache size at once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.simulator.commands.options import Dark, FirstRequests, Mapping, Quiet, Trace

if TYPE_CHECKING:
    from moesim.simulator.frontier.curves import Frontier

TENTHS = 10


def frontier(
    trace: Trace,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            "--cache",
            help="Stack policy; may be repeated: lru, lru:scope=per_layer, lfu:count=lifetime "
            "(global or with scope=per_layer), belady. Default: both of lru.",
        ),
    ] = None,
    mapping: Mapping = None,
    requests: FirstRequests = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="CSV to write: every size of every curve, layers included."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the curves: .png, .svg or .pdf.")
    ] = None,
    dark: Dark = False,
    quiet: Quiet = False,
) -> None:
    """Print how many demands hit at every cache size, from one pass over a trace.

    The counts are those of moesim simulate without prefetch, at every number of slots.

    moesim frontier TRACE --cache lru --cache belady --plot out.png -o out.csv
    """
    from moesim.simulator.commands.outputs import check_targets
    from moesim.simulator.frontier import curves
    from moesim.traces import load, parse_mapping

    check_targets(output, plot)
    if plot is not None:
        from moesim.simulator.results.plots import check_suffix

        check_suffix(plot)
    recorded = load(trace, mapping=parse_mapping(mapping) if mapping else None)
    if requests is not None:
        recorded = recorded.head(requests=requests)
    result = curves.frontier(recorded, cache or ("lru", "lru:scope=per_layer"))
    title = (
        f"{trace.name} · {recorded.layers} layers x {recorded.experts} experts, "
        f"top-{recorded.top_k}, {recorded.tokens} tokens"
    )
    if output is not None:
        curves.write_csv(result, output)
    if plot is not None:
        from moesim.simulator.frontier.plot import plot_frontier

        plot_frontier(result, title, plot, dark=dark)
    if not quiet:
        _print(result, title)


def _print(result: "Frontier", title: str) -> None:
    from moesim.simulator.frontier.curves import useful_region
    from moesim.simulator.tables import console, print_table

    total = result.layers * result.experts
    has_decode = result.curves[0].decode_demands > 0
    lines = []
    for tenth in range(1, TENTHS + 1):
        slots = round(total * tenth / TENTHS)
        cells = []
        for curve in result.curves:
            found = curve.at(slots)
            if found is None:
                cells.append("-")
            else:
                hits, demands = found[has_decode], (curve.demands, curve.decode_demands)[has_decode]
                cells.append(f"{hits / max(1, demands) * 100:.2f}")
        lines.append((f"{tenth * 100 // TENTHS} %", str(slots), *cells))
    heads = ("residency", "slots", *(curve.cache for curve in result.curves))
    out = console()
    out.print(title)
    print_table(f"{'decode ' if has_decode else ''}hit rate, %", heads, lines)
    if has_decode:
        out.print(
            f"LRU cliff: one cache for all layers hits nothing in decode up to {result.cliff} "
            f"slots ({result.cliff / total * 100:.1f} %)"
        )
    for curve in result.curves:
        region = useful_region(curve)
        if region is not None:
            out.print(
                f"useful region of {curve.cache}: {region.first} to {region.last} slots "
                f"({region.first / total * 100:.1f} to {region.last / total * 100:.1f} %); "
                "above it less than one point is left"
            )
    for text in result.notes:
        out.print(text)
