"""The evidence of the phone judged again: what it says of itself is derived from its own tokens.

A log is no cell of a machine of ours: nothing is executed in turns, and the noise floor is what two
passes of the phone itself agree on. The mean is judged by the protocol's rule on the half that was
not fitted; a p99 that the phone does not repeat counts neither way, and is printed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from moesim.simulator.errors import InputError
from moesim.simulator.tables import print_table
from moesim.validation.statistics import MEAN, P99, is_repeatable, relative_error, tolerance

FIT = "fit.json"
FIGURES = ("mean", "p50", "p99")
ROUNDING = 1e-4
"""Tokens are written in microseconds, errors to six digits."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What follows from one split's tokens on the half that was not fitted.

    Attributes:
        tokens: How many they are.
        error: By figure, relative.
    """

    split: str
    tokens: int
    error: dict[str, float]


def is_of_a_log(folder: Path) -> bool:
    """Return whether a folder's evidence is a fitted log."""
    return (folder / FIT).is_file()


def judge_log(folder: Path) -> bool:
    """Print what a fitted log says, and return whether its claim is within tolerance.

    Raises:
        InputError: The file is none of a fit, or an error in it does not follow from its tokens.
    """
    path = folder / FIT
    found = _read(path)
    try:
        judged = [_judge(path, split, fit) for split, fit in found["splits"].items()]
        claim = next(one for one in judged if one.split == found["claim"])
        noise = {name: found["noise"][f"spread_of_{name}"] for name in ("mean", "p99")}
    except (KeyError, TypeError, StopIteration) as fault:
        raise InputError(
            f"{path}: {fault or 'claim'}: is missing or is no figure; moesim.validation.phone "
            "writes it"
        ) from None
    print_table(
        f"{found['what']}: error on tokens not seen",
        ("fitted half", "tokens", "mean TPOT", "p50", "p99"),
        (
            [one.split, str(one.tokens), *(f"{one.error[n]:+.1%}" for n in FIGURES)]
            for one in judged
        ),
    )
    is_within = True
    for name, limits in (("mean", MEAN), ("p99", P99)):
        spread, error = noise[name], claim.error[name]
        limit = tolerance(spread, limits)
        told = f"{name} of the {claim.split} half's claim {error:+.1%}"
        if not is_repeatable(spread):
            typer.echo(f"{told}: two passes of the phone differ by {spread:.1%}, not repeatable")
            continue
        within = abs(error) <= limit
        is_within &= within
        typer.echo(f"{told}, {limit:.1%} is allowed: {'within target' if within else 'missed'}")
    return is_within


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: is no JSON: {error}") from None
    return found


def _judge(path: Path, split: str, fit: dict[str, Any]) -> Judged:
    """Return a split's errors, once they were found to be those that it states."""
    predicted_N, measured_N = (np.array(fit[f"{name}_ms"]) for name in ("predicted", "measured"))
    unseen_N = np.ones(len(measured_N), bool)
    unseen_N[fit["fitted_rows"]] = False
    ours_N, theirs_N = predicted_N[unseen_N], measured_N[unseen_N]
    error = {
        "mean": relative_error(float(ours_N.mean()), float(theirs_N.mean())),
        "p50": relative_error(float(np.median(ours_N)), float(np.median(theirs_N))),
        "p99": relative_error(*(float(np.percentile(side_N, 99)) for side_N in (ours_N, theirs_N))),
    }
    for name, value in error.items():
        stated = fit["unseen_half"][name]
        if abs(stated - value) > ROUNDING:
            raise InputError(
                f"{path}: splits.{split}.unseen_half.{name}: {stated} does not follow from the "
                f"tokens beside it, which give {value:.6f}; it was edited"
            )
    return Judged(split, int(unseen_N.sum()), error)
