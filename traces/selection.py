"""Does the router's rule, applied to the recorded probabilities, give the recorded experts?

Probabilities kept in float16 tie where the model's own did not, so any expert whose rounded
probability reaches the k-th largest is accepted; the same goes for the choice of groups.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.header import SelectionRule

# T tokens, L MoE layers, E experts of a layer, K chosen, G groups.
GATE_ABSOLUTE = 1e-3
GATE_RELATIVE = 1e-2


def check_selection(
    rule: SelectionRule,
    probs_TLE: NDArray[Any],
    expert_TLK: NDArray[np.int16],
    gate_TLK: NDArray[Any] | None,
) -> tuple[int, int, str] | None:
    """Return the first row and layer that the rule does not give, and why; None if all agree.

    Gates may differ by 1 % and 0.001: models compute them in bfloat16.
    """
    probs_TLE = probs_TLE.astype(np.float32)
    recorded_TL = expert_TLK[..., 0] >= 0
    strange = ~np.isfinite(probs_TLE).all(axis=2) & recorded_TL
    if strange.any():
        row, layer = _first(strange)
        return row, layer, "a probability is not finite"
    rank_TLE = probs_TLE
    if rule.bias_LE is not None:
        rank_TLE = probs_TLE + np.asarray(rule.bias_LE, dtype=np.float32)
    chosen_TLK = np.maximum(expert_TLK, 0).astype(np.int64)
    bar_TL1, allowed_TLE = _bar(rule, rank_TLE, expert_TLK.shape[2])
    chosen_rank_TLK = np.take_along_axis(rank_TLE, chosen_TLK, axis=2)
    fits_TLK = chosen_rank_TLK >= bar_TL1 - _slack(bar_TL1)
    fits_TLK &= np.take_along_axis(allowed_TLE, chosen_TLK, axis=2)
    wrong_TL = ~fits_TLK.all(axis=2) & recorded_TL
    if wrong_TL.any():
        row, layer = _first(wrong_TL)
        expert = int(expert_TLK[row, layer][~fits_TLK[row, layer]][0])
        return row, layer, f"the rule does not choose expert {expert}"
    if gate_TLK is None:
        return None
    wanted_TLK = np.take_along_axis(probs_TLE, chosen_TLK, axis=2)
    if rule.normalise:
        wanted_TLK = wanted_TLK / np.maximum(wanted_TLK.sum(axis=2, keepdims=True), 1e-20)
    wanted_TLK = wanted_TLK * np.float32(rule.scale)
    off_TLK = np.abs(gate_TLK - wanted_TLK) > GATE_ABSOLUTE + GATE_RELATIVE * wanted_TLK
    off_TL = off_TLK.any(axis=2) & recorded_TL
    if off_TL.any():
        row, layer = _first(off_TL)
        place = int(off_TLK[row, layer].argmax())
        wanted, gate = wanted_TLK[row, layer, place], gate_TLK[row, layer, place]
        return row, layer, f"the rule gives the gate {wanted:.4g}, recorded is {gate:.4g}"
    return None


def _bar(
    rule: SelectionRule, rank_TLE: NDArray[np.float32], top_k: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the least rank a chosen expert can have, and who may be chosen at all.

    A group that ties with the last kept one may be chosen from; the bar is set by the groups that
    are kept beyond doubt.
    """
    if rule.groups == 1:
        return _kth_largest(rank_TLE, top_k), np.ones(rank_TLE.shape, dtype=np.bool_)
    grouped_TLGE = rank_TLE.reshape(*rank_TLE.shape[:2], rule.groups, -1)
    best = 1 if rule.group_score == "max" else min(2, grouped_TLGE.shape[3])
    score_TLG = -np.sort(-grouped_TLGE, axis=3)[..., :best].sum(axis=3)
    kept_bar_TL1 = _kth_largest(score_TLG, rule.groups_kept)
    per_group = grouped_TLGE.shape[3]
    allowed_TLG = score_TLG >= kept_bar_TL1 - _slack(kept_bar_TL1)
    surely_TLG = allowed_TLG & (
        (score_TLG > kept_bar_TL1 + _slack(kept_bar_TL1))
        | (allowed_TLG.sum(axis=2, keepdims=True) <= rule.groups_kept)
    )
    surely_TLE = np.repeat(surely_TLG, per_group, axis=2)
    sure_rank_TLE = np.where(surely_TLE, rank_TLE, np.float32(-np.inf))
    return _kth_largest(sure_rank_TLE, top_k), np.repeat(allowed_TLG, per_group, axis=2)


def _kth_largest(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    return -np.partition(-values, count - 1, axis=2)[..., count - 1 : count]


def _slack(value: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return two float16 roundings of the value."""
    return np.abs(np.where(np.isfinite(value), value, 0)) * np.float32(2**-10) + np.float32(1e-6)


def _first(wrong_TL: NDArray[np.bool_]) -> tuple[int, int]:
    row, layer = np.unravel_index(int(wrong_TL.argmax()), wrong_TL.shape)
    return int(row), int(layer)
