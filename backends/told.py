"""Signals that a trace tells of the routes it forces, as a replay of it tells them.

A model with made-up weights says nothing of use about its tokens. Where its routes are a trace's,
what policies read beside them is the trace's too, at the events that the trace declares; producing
it costs the device nothing then, neither in a replay nor here.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from moesim.backends.controllers import LOOK_IN, Deciding
from moesim.simulator.workload.signals import RequestSignals, Rows, merge
from moesim.traces import RoutingTrace


def told_by(trace: RoutingTrace, deciding: Deciding) -> Deciding:
    """Return a system that is told what it reads by the trace whose routes are forced on it.

    A lossy one changes the routes that the signals are of, and is told nothing. What looks ahead is
    computed all the same (``forcing.py``).
    """
    if deciding.is_lossy:
        return deciding
    told = (deciding.needs - {LOOK_IN}) & trace.header.signals.keys()
    return replace(deciding, told=frozenset(told))


class ToldSignals:
    """Tells signals of a trace, step by step.

    Args:
        trace: Whose routes are forced.
        names: Of its signals.

    Attributes:
        names: The same.
    """

    def __init__(self, trace: RoutingTrace, names: Sequence[str]) -> None:
        self._trace = trace
        self.names = frozenset(names)
        self._starts = trace.row_starts().tolist()
        self._open: dict[int, RequestSignals] = {}
        self._before: dict[int, Rows] = {}
        self._now: list[tuple[RequestSignals, Rows]] = []

    def begin(self, shares: Sequence[tuple[int, int, int]]) -> dict[str, list[Any]]:
        """Return what is known when a step of these begins: number, position, tokens of each."""
        told = []
        self._now = []
        for request, position, tokens in shares:
            rows = position, position + tokens
            signals = self._of(request)
            told.append(signals.at_step(rows, self._before.get(request)))
            self._before[request] = rows
            self._now.append((signals, rows))
        return merge(told)

    def at_layer(self, layer: int) -> dict[str, list[Any]]:
        """Return what is known once a layer of the running step was routed."""
        return merge([signals.at_layer(layer, rows) for signals, rows in self._now])

    def _of(self, request: int) -> RequestSignals:
        if request not in self._open:
            rows = slice(self._starts[request], self._starts[request + 1])
            self._open[request] = RequestSignals(self._trace, request, rows, sorted(self.names))
        return self._open[request]
