"""Signs, choice and inside, and every held-out cell of several folders, as tables."""

from collections.abc import Sequence
from statistics import fmean

import typer

from moesim.simulator.tables import print_table
from moesim.validation.claims import (
    CHOICE_MEAN,
    CHOICE_WORST,
    LEAST_SIGNS,
    Inside,
    Picked,
    Sign,
)
from moesim.validation.evidence import Evidence
from moesim.validation.tables import NONE, verdict_of

SIGNS = ("at", "without", "with prefetch", "predicted", "measured", "")
CHOICE = ("at", "systems", "ranked first", "truly fastest", "slower by")
INSIDE = ("at", "system", "stall a layer, ms", "worst layer, ms", "link busy", "late")
TOGETHER = ("GPU", "model", "at", "system", "error", "target", "p99", "target", "TTFT", "")


def print_claims(
    signs: Sequence[Sign], choices: Sequence[Picked], insides: Sequence[Inside]
) -> None:
    """Print what there is of each."""
    everything: list[Sign | Picked | Inside] = [*signs, *choices, *insides]
    models = {each.model for each in everything}

    def at(each: Sign | Picked | Inside) -> str:
        return each.where if len(models) == 1 else f"{short(each.model)} {each.where}"

    if signs:
        print_table(
            "signs: mean TPOT by prefetch", SIGNS, ([at(each), *_sign_row(each)] for each in signs)
        )
        typer.echo(_signs_line(signs))
    if choices:
        print_table("choice", CHOICE, ([at(each), *_choice_row(each)] for each in choices))
        typer.echo(_choices_line(choices))
    if insides:
        rows = ([at(each), *_inside_row(each)] for each in insides)
        print_table("inside: predicted / measured", INSIDE, rows)


def _sign_row(sign: Sign) -> list[str]:
    verdict = "confirmed" if sign.confirmed else "wrong" if sign.is_told else "a tie here"
    changes = (f"{change:+.1%}" for change in (sign.predicted, sign.measured))
    return [sign.without, sign.with_it, *changes, verdict]


def _signs_line(signs: Sequence[Sign]) -> str:
    wins = [sign for sign in signs if sign.predicted < 0]
    losses = [sign for sign in signs if sign.predicted >= 0]
    told = ", ".join(
        f"{sum(sign.confirmed for sign in some)} of {len(some)} predicted {name} confirmed"
        for some, name in ((wins, "wins"), (losses, "losses"))
    )
    enough = min(len(wins), len(losses)) >= LEAST_SIGNS
    return told if enough else f"{told}; a claim needs {LEAST_SIGNS} of each"


def _choice_row(picked: Picked) -> list[str]:
    return [str(picked.among), picked.chosen, picked.fastest, f"{picked.regret:.1%}"]


def _choices_line(choices: Sequence[Picked]) -> str:
    mean, worst = (figure(picked.regret for picked in choices) for figure in (fmean, max))
    within = mean <= CHOICE_MEAN and worst <= CHOICE_WORST
    return (
        f"the system ranked first is slower than the fastest by {mean:.1%} on average, "
        f"{worst:.1%} at worst ({CHOICE_MEAN:.0%} and {CHOICE_WORST:.0%} are allowed): "
        f"{'within target' if within else 'missed'}"
    )


def _inside_row(inside: Inside) -> list[str]:
    def ms(pair: tuple[float, float] | None) -> str:
        return NONE if pair is None else " / ".join(f"{each:.3f}" for each in pair)

    def share(pair: tuple[float, float]) -> str:
        return " / ".join(f"{each:.1%}" for each in pair)

    return [
        inside.system,
        ms(inside.stall_ms),
        ms(inside.worst_stall_ms),
        share(inside.link_busy),
        share(inside.late),
    ]


def short(model: str) -> str:
    """Return a model's name without what all cells of shapes have in common."""
    return model.removesuffix(" random weights")


def print_together(found: Sequence[Evidence]) -> None:
    """Print every held-out cell of all folders in one table, and what they say together."""
    held_out = [one for one in found if one.prediction.cell.held_out]
    print_table("held-out cells of all folders", TOGETHER, map(_together_row, held_out))
    counted = [one for one in held_out if one.judged.repeatable]
    for name, title in (("mean_tpot", "TPOT"), ("p99_tpot", "p99 of TPOT"), ("mean_ttft", "TTFT")):
        errors = [abs(one.judged.error[name]) for one in counted if name in one.judged.error]
        if errors:
            typer.echo(
                f"mean |error| of {title} over {len(errors)} repeatable cells {fmean(errors):.1%}, "
                f"worst {max(errors):.1%}"
            )


def _together_row(one: Evidence) -> list[str]:
    cell, judged = one.prediction.cell, one.judged

    def figures(name: str) -> list[str]:
        limit = judged.tolerance.get(name)
        return [
            f"{judged.error[name]:+.1%}" if name in judged.error else NONE,
            NONE if limit is None else f"{limit:.1%}",
        ]

    gpu = one.provenance.machine.get("gpu", NONE)
    names = [gpu.removeprefix("NVIDIA "), short(cell.model), cell.where, cell.system]
    ttft, _ = figures("mean_ttft")
    return [*names, *figures("mean_tpot"), *figures("p99_tpot"), ttft, verdict_of(one)]
