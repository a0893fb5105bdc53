"""How well the next layers' experts can be foretold: by a table, by popularity, by look-ahead.

*Recall* is the share of a token's K experts in a layer that are among the K foretold. A table and
the popularity are fitted on the even requests and tested on the odd ones (the first half of the
rows and the second, where there is one request); look-ahead needs no fit. All pairs of layers lie
within one token, so that the figures stand beside each other; the wrap to the next token is left
out. Each figure is a mean over the layers that have a target.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from moesim.traces.checks import blocks
from moesim.traces.schema import Array, RoutingTrace

# T tokens, L MoE layers, E experts of a layer, K chosen, H horizons, M top-m.
FloatArray = NDArray[np.float32]
Ids = NDArray[np.int64]
LOOK_AHEAD = ("look_in", "look_out")


def table_recall(trace: RoutingTrace, horizon: int = 1) -> float | None:
    """Return the recall of a table P(e' | e) between layer l and layer l + horizon.

    An expert's score is the sum of its probabilities given each of the token's K experts. None if
    the trace has no row to fit on, none to test on, or no such pair of layers.
    """
    pairs = trace.layers - horizon
    if pairs < 1:
        return None
    experts = trace.experts
    count_LEE = np.zeros((pairs, experts, experts), dtype=np.float64)
    for expert_TLK in _rows(trace, fit=True):
        for layer in range(pairs):
            now_TK, later_TK = _pair(expert_TLK, layer, layer + horizon)
            count_LEE[layer] += _chosen(now_TK, experts).T @ _chosen(later_TK, experts)
    total_LE1 = count_LEE.sum(axis=2, keepdims=True)
    table_LEE = (count_LEE / np.maximum(total_LE1, 1)).astype(np.float32)
    found_L, wanted_L = np.zeros(pairs), np.zeros(pairs)
    for expert_TLK in _rows(trace, fit=False):
        for layer in range(pairs):
            now_TK, later_TK = _pair(expert_TLK, layer, layer + horizon)
            found_L[layer] += _hits(table_LEE[layer][now_TK].sum(axis=1), later_TK)
            wanted_L[layer] += later_TK.size
    return _mean_share(found_L, wanted_L) if count_LEE.any() else None


def popular_recall(trace: RoutingTrace) -> float | None:
    """Return the recall of always foretelling a layer's K most popular experts."""
    layers, experts = trace.layers, trace.experts
    count_LE = np.zeros((layers, experts), dtype=np.float32)
    for expert_TLK in _rows(trace, fit=True):
        for layer in range(layers):
            count_LE[layer] += _chosen(_present(expert_TLK[:, layer]), experts).sum(axis=0)
    best_LK = np.argpartition(-count_LE, trace.top_k - 1, axis=1)[:, : trace.top_k]
    is_best_LE = np.zeros((layers, experts), np.bool_)
    np.put_along_axis(is_best_LE, best_LK, values=True, axis=1)
    found_L, wanted_L = np.zeros(layers), np.zeros(layers)
    for expert_TLK in _rows(trace, fit=False):
        for layer in range(layers):
            later_TK = _present(expert_TLK[:, layer])
            found_L[layer] += int(is_best_LE[layer][later_TK].sum())
            wanted_L[layer] += later_TK.size
    return _mean_share(found_L, wanted_L) if count_LE.any() else None


def look_ahead_recall(trace: RoutingTrace, signal: str) -> list[float | None]:
    """Return the recall of ``look_in`` or ``look_out`` at each horizon that the trace holds.

    The list is empty where the trace has no such signal.
    """
    ids_TLHM = trace.signals.get(f"{signal}_TLHM")
    if ids_TLHM is None:
        return []
    return [_looked_recall(trace, ids_TLHM, ahead) for ahead in range(ids_TLHM.shape[2])]


def _looked_recall(trace: RoutingTrace, ids_TLHM: Array, ahead: int) -> float | None:
    pairs = max(0, trace.layers - 1 - ahead)
    found_L, wanted_L = np.zeros(pairs), np.zeros(pairs)
    for rows in blocks(trace.tokens, trace.layers * trace.top_k**2):
        told_TLK = ids_TLHM[rows, :, ahead, : trace.top_k][:, :pairs]
        later_TLK = trace.expert_TLK[rows][:, ahead + 1 :]
        known_TLK = (later_TLK >= 0) & (told_TLK >= 0).any(axis=2, keepdims=True)
        same_TLK = (later_TLK[..., None] == told_TLK[..., None, :]).any(axis=3)
        found_L += (same_TLK & known_TLK).sum(axis=(0, 2))
        wanted_L += known_TLK.sum(axis=(0, 2))
    return _mean_share(found_L, wanted_L)


def _rows(trace: RoutingTrace, *, fit: bool) -> Iterator[NDArray[np.int16]]:
    """Yield the experts of the rows to fit on, or of those to test on, a block at a time."""
    for rows in blocks(trace.tokens, trace.top_k * max(trace.layers, trace.experts)):
        if trace.requests > 1:
            is_fit_T = trace.request_T[rows] % 2 == 0
        else:
            is_fit_T = np.arange(rows.start, rows.stop) < trace.tokens // 2
        yield trace.expert_TLK[rows][is_fit_T == fit]


def _pair(expert_TLK: NDArray[np.int16], now: int, later: int) -> tuple[Ids, Ids]:
    """Return who was chosen in two layers, for the tokens that have both."""
    both_T = (expert_TLK[:, now, 0] >= 0) & (expert_TLK[:, later, 0] >= 0)
    return expert_TLK[both_T, now].astype(np.int64), expert_TLK[both_T, later].astype(np.int64)


def _present(expert_TK: NDArray[np.int16]) -> Ids:
    return expert_TK[expert_TK[:, 0] >= 0].astype(np.int64)


def _chosen(expert_TK: Ids, experts: int) -> FloatArray:
    """Return 1 for each expert that was chosen, 0 for the others."""
    chosen_TE = np.zeros((len(expert_TK), experts), dtype=np.float32)
    np.put_along_axis(chosen_TE, expert_TK, 1, axis=1)
    return chosen_TE


def _hits(score_TE: FloatArray, later_TK: Ids) -> int:
    """Return how many chosen experts are among the K of the highest score."""
    top_k = later_TK.shape[1]
    best_TK = np.argpartition(-score_TE, top_k - 1, axis=1)[:, :top_k]
    return int((later_TK[..., None] == best_TK[:, None, :]).sum())


def _mean_share(found_L: NDArray[np.float64], wanted_L: NDArray[np.float64]) -> float | None:
    counted = wanted_L > 0
    return float((found_L[counted] / wanted_L[counted]).mean()) if counted.any() else None
