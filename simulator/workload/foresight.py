"""What may be known beforehand: the future of a run, and the statistics of another trace.

The future is a capability: a policy sees it only if its class declares that it needs it, and the
results say so. A *profile trace* is another recording of the same model; its popularity and
transition counts are what offline-profiled policies (Fiddler, KTransformers, EdgeMoE) read.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces import RoutingTrace

# T tokens, L MoE layers, E experts of a layer, K chosen.

CHUNK_ROWS = 8_192


class RecordedFuture:
    """The demands of every event of a run, requests one after another."""

    def __init__(self, events: Iterable[Sequence[int]]) -> None:
        self._demands = [list(dict.fromkeys(event)) for event in events]
        self._uses: dict[int, list[int]] = {}
        for number, demand in enumerate(self._demands):
            for expert in demand:
                self._uses.setdefault(expert, []).append(number)

    def next_use(self, expert: int, after_event: int) -> int | None:
        """Return the first event after this one that demands the expert, or None."""
        uses = self._uses.get(expert)
        if uses is None:
            return None
        at = bisect_right(uses, after_event)
        return uses[at] if at < len(uses) else None

    def demand(self, event: int) -> Sequence[int]:
        """Return the distinct experts of one event; nothing past the end of the run."""
        return self._demands[event] if 0 <= event < len(self._demands) else ()


def popularity(trace: RoutingTrace) -> NDArray[np.int64]:
    """Return how often each expert was chosen: counts_LE."""
    counts_LE = np.zeros((trace.layers, trace.experts), np.int64)
    for begin in range(0, trace.tokens, CHUNK_ROWS):
        rows_TLK = np.asarray(trace.expert_TLK[begin : begin + CHUNK_ROWS])
        for layer in range(trace.layers):
            chosen = rows_TLK[:, layer].ravel()
            counts_LE[layer] += np.bincount(chosen[chosen >= 0], minlength=trace.experts)
    return counts_LE


def uses_by_request(trace: RoutingTrace) -> NDArray[np.int64]:
    """Return how often each request chose each expert: counts_RLE."""
    counts_RLE = np.zeros((trace.requests, trace.layers, trace.experts), np.int64)
    starts = trace.row_starts().tolist()
    for request, counts_LE in enumerate(counts_RLE):
        rows_TLK = np.asarray(trace.expert_TLK[starts[request] : starts[request + 1]])
        for layer in range(trace.layers):
            chosen = rows_TLK[:, layer].ravel()
            counts_LE[layer] += np.bincount(chosen[chosen >= 0], minlength=trace.experts)
    return counts_RLE


def transitions(trace: RoutingTrace) -> NDArray[np.int64]:
    """Return how often a token that chose a in layer l chose b in layer l+1: counts[l, a, b].

    The last layer is followed by the first layer of the request's next token.
    """
    layers, experts = trace.layers, trace.experts
    counts_LEE = np.zeros((layers, experts, experts), np.int64)
    for begin in range(0, trace.tokens, CHUNK_ROWS):
        end = min(begin + CHUNK_ROWS, trace.tokens)
        rows_TLK: NDArray[Any] = np.asarray(trace.expert_TLK[begin:end])
        for layer in range(layers - 1):
            _count_pairs(counts_LEE[layer], rows_TLK[:, layer], rows_TLK[:, layer + 1])
        stop = min(end + 1, trace.tokens)
        request_T = np.asarray(trace.request_T[begin:stop])
        same = request_T[1:] == request_T[:-1]
        next_TK = np.asarray(trace.expert_TLK[begin + 1 : stop, 0])
        _count_pairs(counts_LEE[layers - 1], rows_TLK[: len(same), -1][same], next_TK[same])
    return counts_LEE


def _count_pairs(counts_EE: NDArray[np.int64], a_TK: NDArray[Any], b_TK: NDArray[Any]) -> None:
    a_TKK = np.repeat(a_TK[:, :, None], b_TK.shape[1], axis=2)
    b_TKK = np.repeat(b_TK[:, None, :], a_TK.shape[1], axis=1)
    known = (a_TKK >= 0) & (b_TKK >= 0)
    np.add.at(counts_EE, (a_TKK[known], b_TKK[known]), 1)
