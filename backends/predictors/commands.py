"""``moesim train-predictor``: learn which experts the next prompts will use."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.backends.needing_torch import needing_torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moesim.backends.predictors.judging import Judged

Given = Annotated[
    Path, typer.Argument(metavar="TRACE", help="A trace: a file or folder that moesim reads.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Write the trained weights, .safetensors: a run asks the networks with --cache "
        "periodic:predictor=network,file=FILE.",
    ),
]
HeldOut = Annotated[
    Path | None,
    typer.Option(
        "--annotate",
        help="Write the held-out requests, in the order served, with the answers as signals: what "
        "policies read.",
    ),
]
Period = Annotated[int, typer.Option(min=1, help="Prompts for which an answer is held, p.")]
Horizon = Annotated[
    int,
    typer.Option(min=1, help="Foretell the mean use of so many prompts; the paper foretells one."),
]
History = Annotated[int, typer.Option(min=1, help="Prompts that the networks read.")]
Epochs = Annotated[int, typer.Option(min=1, help="Times that each prompt is learned from.")]
Order = Annotated[str, typer.Option(help="recorded, mixed, grouped or drifting.")]
Share = Annotated[float, typer.Option(help="Share of the prompts, the first, to learn from.")]
Seed = Annotated[int, typer.Option(min=0, help="Of order, weights, batches and dropout.")]
Budget = Annotated[float, typer.Option(help="Share of the experts that a budget would hold.")]


def train_predictor(
    given: Given,
    output: Output = None,
    annotate: HeldOut = None,
    period: Period = 40,
    horizon: Horizon = 1,
    history: History = 1,
    epochs: Epochs = 15,
    order: Order = "mixed",
    fit_share: Share = 0.7,
    seed: Seed = 0,
    held_experts: Budget = 0.4,
) -> None:
    """Train predictors of expert use on the first prompts of a trace and judge them on the rest.

    Two small XLNets after eMoE (all layers in one call; layer by layer) and a light mixture of
    counters. The table has their accuracy on the held-out prompts beside rules that need no
    training, and beside perfect answers. All layers, each prompt, is eMoE-E; held, eMoE-A.

    moesim train-predictor TRACE -o p.safetensors

    moesim simulate OTHER --hardware rtx4090 --cache periodic:predictor=network,file=p.safetensors
    """
    from moesim.backends.predictors.uses import ORDERS
    from moesim.simulator.commands.outputs import check_targets
    from moesim.simulator.errors import InputError, UnknownNameError
    from moesim.simulator.progress import progress
    from moesim.traces import load
    from moesim.traces.store import SUFFIXES

    if order not in ORDERS:
        raise UnknownNameError("order", order, ORDERS)
    if output is not None and output.suffix != ".safetensors":
        raise InputError(f"{output}: give a file that ends in .safetensors")
    if annotate is not None and annotate.suffix not in SUFFIXES:
        raise InputError(f"{annotate}: give a file that ends in one of {SUFFIXES}")
    for name, value in (("--fit-share", fit_share), ("--held-experts", held_experts)):
        if not 0 < value < 1:
            raise InputError(f"{name} {value:g}: expected a share between 0 and 1")
    check_targets(output, annotate)
    trace = load(given)
    with needing_torch("training"):
        from moesim.backends.predictors.training import Plan, train_and_judge
    plan = Plan(
        order=order,
        seed=seed,
        fit_share=fit_share,
        epochs=epochs,
        history=history,
        horizon=horizon,
        period=period,
        held_experts=held_experts,
    )
    with progress("learning", 2 * epochs, "epochs") as advance:
        outcome = train_and_judge(trace, plan, given.name, advance)
    outcome.write(output, annotate)
    _print(outcome.judged, period, outcome.slots, trace.experts)
    alike = outcome.likeness
    layers, prompts = (
        "-" if value is None else f"{value:.2f}" for value in (alike.layers, alike.requests)
    )
    typer.echo(
        f"correlation of sorted ids: next layer {layers}, next prompt {prompts}, "
        f"independent {alike.independent:.2f}"
    )
    first, held_out = outcome.first, trace.requests - outcome.first
    typer.echo(f"learned from {first} prompts, judged on {held_out}", err=True)


def _print(judged: "Mapping[str, Judged]", period: int, slots: int, experts: int) -> None:
    from moesim.simulator.tables import print_table

    head = (
        "predictor",
        "accuracy, each prompt",
        f"held for {period}",
        f"served by {slots} of {experts}, each",
        f"held for {period}",
        "µs an answer",
    )
    rows = [
        (
            name,
            f"{figures.each:.1%}",
            f"{figures.held:.1%}",
            f"{figures.served_each:.1%}",
            f"{figures.served_held:.1%}",
            "" if figures.answer_us is None else f"{figures.answer_us:.0f}",
        )
        for name, figures in judged.items()
    ]
    print_table("predictors", head, rows)
