"""Let the router prefer, by a little, the experts that are in VRAM."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import RunInfo, SchedulePolicy, View
from moesim.simulator.policies.guards import ScheduleGuard
from moesim.simulator.policies.present import ALL_SCORES, Changes, here_of, rows_of

__all__ = ["CachePrior"]

# T tokens, E experts of a layer, K chosen.
LEAST_PROBABILITY = 2.0**-24
"""The least above zero in half precision, in which probabilities are recorded."""


class CachePrior(ScheduleGuard):
    """Cache-conditional routing, around a schedule that plans what is left. Lossy.

    In decode, each token chooses again: the k largest of z + strength x D, where the bonus goes to
    experts that are here and to the ``sure`` best of the router, and D is a running mean of the
    range of the layer's logits z (0.99 old, 0.01 new). Gates come from the router's own
    probabilities of those chosen, scaled to the sum that the token's gates had. An expert chosen
    and absent is copied as ever. Logits are the logarithms of the recorded probabilities, which
    leaves differences as they are.

    Args:
        strength: Lambda; 0 leaves the router alone.
        sure: J, the router's best that never lose for being absent.
    """

    needs = frozenset({ALL_SCORES})
    does = frozenset({"reroute"})
    counts_served = True
    paper = (
        "Mixture of Cache-Conditional Experts (arXiv 2412.00099); formula as read in CECAR, "
        "simulation_olmoe.py"
    )

    def __init__(
        self, run: RunInfo, inner: SchedulePolicy, *, strength: float = 0.5, sure: int = 1
    ) -> None:
        super().__init__(run, inner)
        if not 0 <= strength <= 1:
            raise InputError(
                f"schedule policy cache_prior: option strength={strength:g}: expected 0 to 1"
            )
        if not 0 <= sure <= run.top_k:
            raise InputError(
                f"schedule policy cache_prior: option sure={sure}: expected 0 to {run.top_k}, the "
                "experts of one token"
            )
        self._strength, self._sure = strength, sure
        self._range_L: list[float | None] = [None] * run.layers

    def reroute(self, chosen: Sequence[int], gates: Sequence[float], view: View) -> Changes:
        """Return what each token chooses otherwise; nothing in a step with prompt tokens."""
        if not view.is_decode:
            return []
        run = self.run
        probs_TE = rows_of(run, view, ALL_SCORES, chosen).astype(np.float64)
        logit_TE = np.log(np.maximum(probs_TE, LEAST_PROBABILITY))
        here_E = np.array(here_of(run, view))
        begin = view.layer * run.experts
        changes: Changes = []
        for token, logit_E in enumerate(logit_TE):
            bonus = self._strength * self._mean_range(view.layer, logit_E)
            first = token * run.top_k
            row = [expert - begin for expert in chosen[first : first + run.top_k]]
            is_sure_E = np.isin(np.arange(run.experts), row[: self._sure])
            score_E = logit_E + bonus * (here_E | is_sure_E)
            best = np.argsort(-score_E, kind="stable")[: run.top_k].tolist()
            comes = [expert for expert in best if expert not in row]
            goes = [at for at, expert in enumerate(row) if expert not in best]
            changes += [(first + at, begin + e) for at, e in zip(goes, comes, strict=True)]
        return changes

    def _mean_range(self, layer: int, logit_E: NDArray[np.float64]) -> float:
        """Return the running mean of the range of a layer's logits, this token's included."""
        spread, known = float(logit_E.max() - logit_E.min()), self._range_L[layer]
        mean = spread if known is None else 0.99 * known + 0.01 * spread
        self._range_L[layer] = mean
        return mean
