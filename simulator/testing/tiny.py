"""Small routing traces: from rows written by hand, or drawn from a seed with every signal.

Nothing here is recorded from a model; every trace says ``synthetic`` and passes
`RoutingTrace.validate`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moesim.traces import RoutingTrace, SelectionRule, SignalSpec, TraceHeader

# T tokens, L MoE layers, E experts of a layer, K chosen, H horizons, M top-m, D width.

Rows = Sequence[Sequence[Sequence[int]]]
"""Choices [token][layer][rank] as expert numbers of their layer."""

HORIZONS = 2
WIDTH = 8


def trace_of(
    requests: Sequence[tuple[Rows, Rows]],
    *,
    experts: int,
    tasks: Sequence[str] | None = None,
) -> RoutingTrace:
    """Return a trace of requests given as (prompt rows, decode rows).

    A prompt is one step; each decode row is a step of its own.

    Args:
        requests: At least one, with at least one row each.
        experts: Experts of each layer.
        tasks: Label of each request; all ``tiny`` by default.
    """
    rows, request_T, step_T, position_T, is_prefill_T = [], [], [], [], []
    prompts_R, outputs_R = [], []
    for request, (prompt, decode) in enumerate(requests):
        begins = max(len(prompt), 1)
        rows += [*prompt, *decode]
        request_T += [request] * (len(prompt) + len(decode))
        step_T += [0] * len(prompt) + list(range(1, len(decode) + 1))
        position_T += [*range(len(prompt)), *range(begins, begins + len(decode))]
        is_prefill_T += [True] * len(prompt) + [False] * len(decode)
        prompts_R.append(begins)
        outputs_R.append(len(decode) + 1)
    expert_TLK = np.asarray(rows, np.int16)
    _, layers, top_k = expert_TLK.shape
    return RoutingTrace(
        header=TraceHeader(
            model="tiny",
            layer_ids=tuple(range(layers)),
            experts=experts,
            top_k=top_k,
            evidence="synthetic",
        ),
        expert_TLK=expert_TLK,
        gate_TLK=None,
        step_T=np.asarray(step_T, np.int32),
        request_T=np.asarray(request_T, np.int32),
        position_T=np.asarray(position_T, np.int32),
        is_prefill_T=np.asarray(is_prefill_T, np.bool_),
        task_R=tuple(tasks or ["tiny"] * len(requests)),
        arrival_ns_R=np.zeros(len(requests), np.int64),
        prompt_tokens_R=np.asarray(prompts_R, np.int32),
        output_tokens_R=np.asarray(outputs_R, np.int32),
    )


def tiny_trace(
    *,
    layers: int = 3,
    experts: int = 6,
    top_k: int = 2,
    prompt_tokens: int = 4,
    decode_tokens: int = 8,
    seed: int = 0,
) -> RoutingTrace:
    """Return two requests of two tasks, each a prompt and decode steps, with gates and signals.

    The tasks prefer different experts and a token resembles the one before it, so that caches have
    something to keep. ``look_in_TLHM`` promises the next two layers, its first k about four times
    in five rightly; ``router_probs_TLE`` and the ``router_top`` pair reproduce ids and gates;
    ``embedding_TD`` is random; ``predicted_use_RLE`` tells each request's uses when it arrives.

    >>> tiny_trace().validate("tiny")
    """
    rng = np.random.default_rng(seed)
    per_request = prompt_tokens + decode_tokens
    logits_TLE = np.concatenate([_walk(rng, per_request, layers, experts) for _ in range(2)])
    ranked_TLE = np.argsort(-logits_TLE, axis=2, kind="stable")
    expert_TLK = ranked_TLE[..., :top_k].astype(np.int16)
    rows = expert_TLK.tolist()
    requests = [
        (rows[begin : begin + prompt_tokens], rows[begin + prompt_tokens : begin + per_request])
        for begin in (0, per_request)
    ]
    trace = trace_of(requests, experts=experts, tasks=["alpha", "beta"])
    weight_TLE = np.exp(logits_TLE - logits_TLE.max(axis=2, keepdims=True))
    probs_TLE = (weight_TLE / weight_TLE.sum(axis=2, keepdims=True)).astype(np.float32)
    chosen_TLK = np.take_along_axis(probs_TLE, expert_TLK.astype(np.int64), axis=2)
    width = min(2 * top_k, experts)
    noisy_TLE = logits_TLE + rng.normal(0.0, 0.7, logits_TLE.shape)
    look_TLHM, score_TLHM = _look_ahead(trace, noisy_TLE, width)
    embedding_TD = rng.normal(0.0, 1.0, (trace.tokens, WIDTH)).astype(np.float32)
    spec = SignalSpec(tap="residual after attention", known_at="layer_routed", producer="router")
    top_TLM = ranked_TLE[..., :width].astype(np.int16)
    routed = {
        "router_probs_TLE": probs_TLE,
        "router_top_TLM": top_TLM,
        "router_top_score_TLM": np.take_along_axis(probs_TLE, top_TLM.astype(np.int64), axis=2),
        "look_in_TLHM": look_TLHM,
        "look_in_score_TLHM": score_TLHM,
    }
    use_RLE = np.zeros((trace.requests, layers, experts), np.float16)
    np.add.at(use_RLE, (trace.request_T[:, None, None], np.arange(layers)[:, None], expert_TLK), 1)
    header = trace.header.model_copy(
        update={
            "selection": SelectionRule(score="softmax", normalise=True),
            "signals": {
                **dict.fromkeys(routed, spec),
                "embedding_TD": spec.model_copy(update={"known_at": "step_begin"}),
                "predicted_use_RLE": spec.model_copy(update={"known_at": "request_arrived"}),
            },
        }
    )
    return replace(
        trace,
        header=header,
        gate_TLK=chosen_TLK / chosen_TLK.sum(axis=2, keepdims=True),
        signals={**routed, "embedding_TD": embedding_TD, "predicted_use_RLE": use_RLE},
    )


def rename_experts(trace: RoutingTrace, new_LE: NDArray[np.int64]) -> RoutingTrace:
    """Return the trace with expert e of layer l called ``new_LE[l, e]``, in choices and signals."""
    layers = trace.layers
    old_LE = np.argsort(new_LE, axis=1)
    at_L1 = np.arange(layers)[:, None]
    signals = dict(trace.signals)
    for name in signals.keys() & {"router_probs_TLE", "predicted_use_RLE"}:
        signals[name] = signals[name][:, at_L1, old_LE]
    if "router_top_TLM" in signals:
        signals["router_top_TLM"] = new_LE[at_L1, signals["router_top_TLM"]].astype(np.int16)
    if "look_in_TLHM" in signals:
        look_TLHM = signals["look_in_TLHM"]
        renamed_TLHM = np.full_like(look_TLHM, -1)
        for layer in range(layers):
            for horizon in range(look_TLHM.shape[2]):
                ids = look_TLHM[:, layer, horizon]
                target = (layer + 1 + horizon) % layers
                renamed_TLHM[:, layer, horizon] = np.where(ids < 0, -1, new_LE[target][ids])
        signals["look_in_TLHM"] = renamed_TLHM
    expert_TLK = trace.expert_TLK
    renamed_TLK = np.where(expert_TLK < 0, -1, new_LE[at_L1, expert_TLK]).astype(np.int16)
    return replace(trace, expert_TLK=renamed_TLK, signals=signals)


def _walk(rng: np.random.Generator, tokens: int, layers: int, experts: int) -> NDArray[np.float64]:
    """Return logits of one request: a taste of its own, and a memory of the token before."""
    taste_LE = rng.normal(0.0, 1.0, (layers, experts))
    logits_TLE = rng.normal(0.0, 1.0, (tokens, layers, experts))
    for t in range(1, tokens):
        logits_TLE[t] = 0.6 * logits_TLE[t - 1] + 0.8 * logits_TLE[t]
    return np.asarray(taste_LE + logits_TLE)


def _look_ahead(
    trace: RoutingTrace, logits_TLE: NDArray[np.float64], width: int
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Return ids and probabilities of the best experts of the layers ahead; -1 past the request."""
    tokens, layers, _ = logits_TLE.shape
    look_TLHM = np.full((tokens, layers, HORIZONS, width), -1, np.int16)
    score_TLHM = np.zeros((tokens, layers, HORIZONS, width), np.float32)
    for t in range(tokens):
        for layer in range(layers):
            for horizon in range(HORIZONS):
                later, target = divmod(layer + 1 + horizon, layers)
                row = t + later
                if row >= tokens or trace.request_T[row] != trace.request_T[t]:
                    continue
                logits_E = logits_TLE[row, target]
                best_M = np.argsort(-logits_E, kind="stable")[:width]
                weights_E = np.exp(logits_E - logits_E.max())
                look_TLHM[t, layer, horizon] = best_M
                score_TLHM[t, layer, horizon] = weights_E[best_M] / weights_E.sum()
    return look_TLHM, score_TLHM
