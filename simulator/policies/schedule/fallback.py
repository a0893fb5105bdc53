"""Send a token whose expert is absent to the next expert in the router's ranking that is here."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from moesim.simulator.policies.base import RunInfo, SchedulePolicy, View
from moesim.simulator.policies.guards import ScheduleGuard
from moesim.simulator.policies.present import (
    ALL_SCORES,
    BEST_IDS,
    Changes,
    absent_among,
    here_of,
    rows_of,
)

__all__ = ["Fallback"]


class Fallback(ScheduleGuard):
    """eMoE's way with absent experts, around a schedule that plans what is left. Lossy.

    The paper does not say what the substitute weighs. Here a token gets the k experts that it would
    choose if the router's logits of all absent ones were minus infinity; those that it chose and
    that are here keep their places. Its gates are the router's probabilities of them, scaled to the
    sum that its gates had. Of equal probabilities the lowest number goes first. A choice for which
    nobody is left is demanded as it is.

    Args:
        miss: ``reroute``; or ``skip`` drops absent choices and scales up those that are here, which
            only a summary of the paper claims.
        ranking: ``all`` reads the probabilities of all experts, ``top`` the ids of the best, beyond
            which nobody stands in.
    """

    needs = frozenset({ALL_SCORES, BEST_IDS})
    does = frozenset({"reroute", "skip"})
    paper = "eMoE (arXiv 2503.06823) section 3.2.2; skipping: claimed in a summary of it only"

    def __init__(
        self,
        run: RunInfo,
        inner: SchedulePolicy,
        *,
        miss: Literal["reroute", "skip"] = "reroute",
        ranking: Literal["all", "top"] = "all",
    ) -> None:
        super().__init__(run, inner)
        self._skips = miss == "skip"
        self._signal = _signal(ranking)

    @classmethod
    def needs_for(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """Return the ranking that is read; skipping reads none, but who runs it weighs by it."""
        return frozenset({_signal(options["ranking"])})

    @classmethod
    def does_for(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """Return what becomes of absent choices."""
        return frozenset({str(options["miss"])})

    def reroute(self, chosen: Sequence[int], gates: Sequence[float], view: View) -> Changes:
        """Return a substitute for each absent choice, or that it is skipped."""
        absent = absent_among(chosen, view)
        if not absent:
            return []
        if self._skips:
            return [(at, None) for at, expert in enumerate(chosen) if expert in absent]
        run = self.run
        top_k, begin = run.top_k, view.layer * run.experts
        here = here_of(run, view)
        ranked_TM = self._ranked(rows_of(run, view, self._signal, chosen))
        chosen = [*chosen]
        changes: Changes = []
        for token, ranked in enumerate(ranked_TM):
            places = range(token * top_k, (token + 1) * top_k)
            gaps = [at for at in places if chosen[at] in absent]
            if gaps:
                kept = {chosen[at] - begin for at in places}
                others = (e for e in ranked if here[e] and e not in kept)
                changes += [(at, begin + expert) for at, expert in zip(gaps, others, strict=False)]
        return changes

    def _ranked(self, rows: Any) -> list[list[int]]:  # noqa: ANN401  an array of numpy
        """Return for each token the experts of the layer, best first, as far as the signal says."""
        order_TM = rows if self._signal == BEST_IDS else np.argsort(-rows, axis=1, kind="stable")
        ranked_TM: list[list[int]] = order_TM.tolist()
        return ranked_TM


def _signal(ranking: str) -> str:
    return ALL_SCORES if ranking == "all" else BEST_IDS
