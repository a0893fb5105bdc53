"""Ask the next layers' routers ahead of time, with what this layer hands them."""

from collections.abc import Iterable, Iterator
from typing import Literal

from moesim.simulator.errors import CapabilityError
from moesim.simulator.policies.base import Demand, PrefetchPolicy, RunInfo, View, Wish

__all__ = ["NextGate"]

# T tokens, L MoE layers, H horizons, M top-m.
SIGNAL = "look_in_TLHM"


class NextGate(PrefetchPolicy):
    """Copy what the gates of the next layers choose from the present layer's input.

    Nearer layers come first, and in a layer what more tokens promise. Past the last layer come the
    first layers of the next token; in a prompt that is the token after the last.

    Args:
        horizon: How many layers to look ahead, from 1.
        width: Best experts taken for each token and layer; none takes the top-k.
        take: ``only_missing`` wishes for those of them that are absent; ``first_missing`` for the
            best of the absent ones alone, for each token (AdapMoE).
    """

    needs = frozenset({SIGNAL})
    paper = "mixtral-offloading (arXiv 2312.17238) section 3.2; AdapMoE (ICCAD'24); HOBBIT"

    def __init__(
        self,
        run: RunInfo,
        *,
        horizon: int = 1,
        width: int | None = None,
        take: Literal["only_missing", "first_missing"] = "only_missing",
    ) -> None:
        super().__init__(run)
        self._horizon = horizon
        self._width = run.top_k if width is None else width
        self._first_only = take == "first_missing"

    def wants(self, demand: Demand | None, view: View) -> Iterable[Wish]:
        """Return the union of what the step's tokens promise for each layer in the horizon."""
        if demand is None:
            return
        rows_THM = view.signals[SIGNAL]
        self._check(rows_THM)
        for ahead in range(self._horizon):
            layer = demand.layer + 1 + ahead
            rows = rows_THM
            if layer >= self.run.layers:
                layer %= self.run.layers
                rows = rows_THM if view.is_decode else rows_THM[-1:]
            for expert in self._promised(rows, ahead, layer * self.run.experts, view):
                yield Wish(expert, view.event + 1 + ahead)

    def _promised(
        self, rows_THM: list[list[list[int]]], ahead: int, first: int, view: View
    ) -> Iterator[int]:
        residency = view.residency
        votes: dict[int, int] = {}
        for row_HM in rows_THM:
            for best in row_HM[ahead][: self._width]:
                expert = first + best
                if best < 0 or residency.is_resident(expert) or residency.is_loading(expert):
                    continue
                votes[expert] = votes.get(expert, 0) + 1
                if self._first_only:
                    break
        yield from sorted(votes, key=votes.__getitem__, reverse=True)

    def _check(self, rows_THM: list[list[list[int]]]) -> None:
        for row_HM in rows_THM[:1]:
            if not 1 <= self._horizon <= len(row_HM):
                raise CapabilityError(
                    f"prefetch policy next_gate: option horizon={self._horizon}: the trace's "
                    f"{SIGNAL} looks 1 to {len(row_HM)} layers ahead"
                )
            if not 1 <= self._width <= len(row_HM[0]):
                raise CapabilityError(
                    f"prefetch policy next_gate: option width={self._width}: the trace's "
                    f"{SIGNAL} has the best {len(row_HM[0])} experts"
                )
