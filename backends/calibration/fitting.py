"""Least squares on relative errors, without impossible signs, and the error on points held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# N points, C coefficients.
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Check:
    """A point that no fit has seen: what the fit says of it, and what was measured."""

    name: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative error, with its sign."""
        return self.predicted / self.measured - 1


def mean_error(checks: Sequence[Check]) -> float:
    """Return the mean of the errors without their signs; 0 where there is no point."""
    return sum(abs(check.error) for check in checks) / len(checks) if checks else 0.0


def fit(
    columns: Sequence[Sequence[float]],
    measured: Sequence[float],
    scale: Sequence[float] | None = None,
) -> list[float]:
    """Return non-negative coefficients C of ``measured ~ sum(c * column)``, by relative error.

    Errors are relative to ``scale``, by default to what was measured. A column whose coefficient
    comes out negative is left out, the worst first, and gets 0.

    >>> [round(c, 6) for c in fit([[1, 1, 1], [1, 2, 3]], [5.0, 7.0, 9.0])]
    [3.0, 2.0]
    """
    target_N: Floats = np.asarray(measured, dtype=np.float64)
    scale_N: Floats = target_N if scale is None else np.asarray(scale, dtype=np.float64)
    design_NC: Floats = np.asarray(columns, dtype=np.float64).T / scale_N[:, None]
    kept = list(range(design_NC.shape[1]))
    found = [0.0] * design_NC.shape[1]
    while kept:
        solved = np.linalg.lstsq(design_NC[:, kept], target_N / scale_N, rcond=None)[0]
        worst = int(np.argmin(solved))
        if solved[worst] >= 0:
            for at, value in zip(kept, solved, strict=True):
                found[at] = float(value)
            break
        del kept[worst]
    return found


def fit_line(
    x: Sequence[float], measured: Sequence[float], *, least_slope: float = 0.0
) -> tuple[float, float]:
    """Return slope and intercept of ``measured ~ slope * x + intercept``, neither below its least.

    >>> fit_line([10.0, 20.0], [4.0, 8.0], least_slope=1.0)
    (1.0, 0.0)
    """
    slope, intercept = fit([x, [1.0] * len(x)], measured)
    if slope >= least_slope:
        return slope, intercept
    rest = [one - least_slope * at for at, one in zip(x, measured, strict=True)]
    return least_slope, max(0.0, float(np.mean(rest)))
