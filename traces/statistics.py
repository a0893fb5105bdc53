"""How skewed and how local the routing is, per layer; and the summary that `trace info` prints.

Real routing is near-uniform over long runs and strongly local: these are the figures that tell a
trace from a synthetic one. Absent rows count nowhere.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.checks import blocks
from moesim.traces.correlation import correlation, uses_of
from moesim.traces.recall import LOOK_AHEAD, look_ahead_recall, popular_recall, table_recall
from moesim.traces.schema import RoutingTrace

# T tokens, L MoE layers, E experts of a layer, K chosen; A tasks.
Array = NDArray[Any]
FloatArray = NDArray[np.float64]

LAGS = (1, 2, 8)
TOP_FRACTION = 0.1


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """One entry per MoE layer; NaN where the layer has nothing to count.

    Attributes:
        entropy_L: Entropy of the experts' popularity over that of equal popularity, H/Hmax.
        gini_L: Gini coefficient of the popularity; 0 is equal.
        top_share_L: Share of choices that the most popular tenth of experts (rounded up) got.
        reuse_L_by_lag: Share of a token's experts that are chosen again so many tokens later in
            the same layer and request.
        iid_reuse_L: The same if tokens drew independently from the popularity, at any lag.
    """

    entropy_L: FloatArray
    gini_L: FloatArray
    top_share_L: FloatArray
    reuse_L_by_lag: dict[int, FloatArray]
    iid_reuse_L: FloatArray


def layer_statistics(trace: RoutingTrace) -> LayerStatistics:
    """Measure every layer in passes that hold few rows at a time."""
    count_LE = popularity_ALE(trace, [""] * trace.requests)[0].astype(np.float64)
    total_L = count_LE.sum(axis=1)
    share_LE = count_LE / np.where(total_L > 0, total_L, np.nan)[:, None]
    rising_LE = np.sort(share_LE, axis=1)
    experts = trace.experts
    log_LE = np.log(np.where(share_LE > 0, share_LE, 1.0))
    ranks_E = 2 * np.arange(1, experts + 1) - experts - 1
    top = -int(np.ceil(experts * TOP_FRACTION))
    return LayerStatistics(
        entropy_L=-(share_LE * log_LE).sum(axis=1) / np.log(max(experts, 2)),
        gini_L=rising_LE @ ranks_E / experts,
        top_share_L=rising_LE[:, top:].sum(axis=1),
        reuse_L_by_lag={lag: _reuse_L(trace, lag) for lag in LAGS},
        iid_reuse_L=trace.top_k * (share_LE**2).sum(axis=1),
    )


def popularity_ALE(trace: RoutingTrace, label_R: list[str]) -> NDArray[np.int64]:
    """Return how often each expert was chosen under each label, labels in sorted order."""
    labels = sorted(set(label_R))
    label_of_R = np.array([labels.index(label) for label in label_R])
    cells = trace.layers * trace.experts
    count = np.zeros(len(labels) * cells, dtype=np.int64)
    offset_L = (np.arange(trace.layers) * trace.experts)[:, None]
    for rows in blocks(trace.tokens, trace.layers * trace.top_k):
        expert_TLK = trace.expert_TLK[rows]
        label_T = label_of_R[trace.request_T[rows]]
        place = label_T[:, None, None] * cells + offset_L + expert_TLK
        count += np.bincount(place[expert_TLK >= 0], minlength=len(count))
    return count.reshape(len(labels), trace.layers, trace.experts)


def task_cosine(trace: RoutingTrace) -> float | None:
    """Return the mean cosine of the experts' popularity between tasks, over layers and pairs.

    None if the trace has fewer than two tasks.
    """
    count_ALE = popularity_ALE(trace, list(trace.task_R)).astype(np.float64)
    if len(count_ALE) == 1:
        return None
    unit_ALE = count_ALE / np.maximum(np.linalg.norm(count_ALE, axis=2, keepdims=True), 1e-12)
    cosine_AA = np.einsum("ale,ble->ab", unit_ALE, unit_ALE) / trace.layers
    return float(cosine_AA[np.triu_indices(len(count_ALE), k=1)].mean())


def describe(trace: RoutingTrace) -> dict[str, str | int | float | None]:
    """Return what `trace info` prints: flat keys, in print order.

    ``task: NAME`` counts the requests of a task, ``signal: NAME`` says tap and event. Statistics
    are means over layers; None where there is nothing to average. ``recall_1`` is that of the next
    layer's experts, see `recall`; ``id_correlation`` is of sorted ids, see `correlation`.
    """
    header = trace.header
    facts: dict[str, str | int | float | None] = {
        "model": header.model,
        "evidence": header.evidence,
        "layers": trace.layers,
        "experts": trace.experts,
        "top_k": trace.top_k,
        "tokens": trace.tokens,
        "prefill_tokens": trace.prefill_tokens,
        "decode_tokens": trace.tokens - trace.prefill_tokens,
        "requests": trace.requests,
    }
    facts |= {f"task: {task}": count for task, count in sorted(Counter(trace.task_R).items())}
    facts["gates"] = "none" if trace.gate_TLK is None else trace.gate_TLK.dtype.name
    for name, spec in sorted(header.signals.items()):
        facts[f"signal: {name}"] = f"{spec.tap}; known at {spec.known_at}; {spec.evidence}"
    facts["size_bytes"] = sum(array.nbytes for array in trace.arrays().values())
    measured = layer_statistics(trace)
    facts["entropy"] = _mean(measured.entropy_L)
    facts["gini"] = _mean(measured.gini_L)
    facts["top_tenth_share"] = _mean(measured.top_share_L)
    facts |= {f"reuse_{lag}": _mean(values) for lag, values in measured.reuse_L_by_lag.items()}
    facts["reuse_iid"] = _mean(measured.iid_reuse_L)
    facts["task_cosine"] = task_cosine(trace)
    alike = correlation(uses_of(trace), trace.top_k, trace.experts)
    facts["id_correlation_layers"] = alike.layers
    facts["id_correlation_requests"] = alike.requests
    facts["id_correlation_independent"] = alike.independent
    facts["table_recall_1"] = table_recall(trace)
    facts["popular_recall"] = popular_recall(trace)
    for signal in LOOK_AHEAD:
        for horizon, recall in enumerate(look_ahead_recall(trace, signal), start=1):
            facts[f"{signal}_recall_{horizon}"] = recall
    for key in ("source", "licence", "recorder", "notes"):
        facts[key] = getattr(header, key)
    return facts


def _reuse_L(trace: RoutingTrace, lag: int) -> FloatArray:
    again_L = np.zeros(trace.layers, dtype=np.int64)
    chosen_L = np.zeros(trace.layers, dtype=np.int64)
    for earlier in blocks(trace.tokens - lag, trace.layers * trace.top_k**2):
        later = slice(earlier.start + lag, earlier.stop + lag)
        same_request = trace.request_T[earlier] == trace.request_T[later]
        before_KLT = np.ascontiguousarray(trace.expert_TLK[earlier][same_request].T)
        after_KLT = np.ascontiguousarray(trace.expert_TLK[later][same_request].T)
        for before_LT, later_LT in zip(before_KLT, after_KLT, strict=True):
            counted_LT = (before_LT >= 0) & (later_LT >= 0)
            again_LT = before_LT == after_KLT[0]
            for after_LT in after_KLT[1:]:  # one comparison for many tokens, not one for each
                again_LT |= before_LT == after_LT
            again_L += [np.count_nonzero(row) for row in again_LT & counted_LT]
            chosen_L += [np.count_nonzero(row) for row in counted_LT]
    share_L: FloatArray = again_L / np.where(chosen_L > 0, chosen_L, np.nan)
    return share_L


def _mean(values: FloatArray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
