"""Made-up routing for tests and benchmarks, never for claims: evidence ``synthetic``.

Each generator makes whole requests, prompt and decode, from one seed. `uniform` has no structure,
`zipf` has popular experts that differ by layer and task, `sticky` repeats the last token's experts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from moesim.traces.assemble import RequestRows, assemble
from moesim.traces.header import SignalSpec, TraceHeader
from moesim.traces.schema import RoutingTrace

# T tokens of one request, L MoE layers, E experts of a layer, K chosen, H horizons, M = 2K listed.
Array = NDArray[Any]
FloatArray = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], Array]

LOOK_AHEAD = SignalSpec(
    tap="made from the next layers' own choices",
    known_at="layer_routed",
    producer="synthetic",
    evidence="derived",
)


class Shape(TypedDict, total=False):
    """What every generator takes; see `Plan` for meaning and defaults."""

    layers: int
    experts: int
    top_k: int
    requests: int
    prompt_tokens: int
    decode_tokens: int
    tasks: int
    horizons: int
    recall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The size of a synthetic trace.

    Attributes:
        prompt_tokens: Of each request; 0 gives a trace of decode steps only.
        decode_tokens: Decode rows of each request; 0 gives a trace of prompts only.
        tasks: Request r belongs to task r modulo this.
        horizons: Layers that the look-ahead signal sees ahead; 0 leaves it out.
        recall: Chance that one of the k experts of a layer ahead is among the first k listed.
    """

    layers: int = 4
    experts: int = 8
    top_k: int = 2
    requests: int = 2
    prompt_tokens: int = 4
    decode_tokens: int = 8
    tasks: int = 1
    horizons: int = 0
    recall: float = 1.0


def uniform(*, seed: int, **shape: Unpack[Shape]) -> RoutingTrace:
    """Draw every token's experts independently, all equally likely."""
    return zipf(seed=seed, exponent=0.0, **shape)


def zipf(*, seed: int, exponent: float = 1.0, **shape: Unpack[Shape]) -> RoutingTrace:
    """Draw independently with popularity 1/rank**exponent; each layer and task ranks anew."""
    plan = Plan(**shape)
    rng = np.random.default_rng(seed)
    weight_E = -exponent * np.log(np.arange(1, plan.experts + 1))
    ranked = np.tile(weight_E, (plan.tasks, plan.layers, 1))
    weight_ALE = rng.permuted(ranked, axis=2)

    def draw(rng: np.random.Generator, tokens: int, task: int) -> Array:
        noise_TLE = rng.gumbel(size=(tokens, plan.layers, plan.experts))
        return _largest(weight_ALE[task] + noise_TLE, plan.top_k)

    return _make(rng, plan, draw)


def sticky(*, seed: int, reuse: float = 0.5, **shape: Unpack[Shape]) -> RoutingTrace:
    """Keep each of the last token's experts with a probability, draw the rest uniformly."""
    plan = Plan(**shape)

    def draw(rng: np.random.Generator, tokens: int, task: int) -> Array:
        del task
        score_TLE = rng.random((tokens, plan.layers, plan.experts))
        kept_TLK = rng.random((tokens, plan.layers, plan.top_k)) < reuse
        chosen_TLK = np.empty((tokens, plan.layers, plan.top_k), dtype=np.int64)
        chosen_TLK[:1] = _largest(score_TLE[:1], plan.top_k)
        for token in range(1, tokens):
            bonus_LE = np.zeros((plan.layers, plan.experts))
            np.put_along_axis(bonus_LE, chosen_TLK[token - 1], kept_TLK[token], axis=1)
            chosen_TLK[token] = _largest(score_TLE[token] + bonus_LE, plan.top_k)
        return chosen_TLK

    return _make(np.random.default_rng(seed), plan, draw)


def _make(rng: np.random.Generator, plan: Plan, draw: Draw) -> RoutingTrace:
    tokens = plan.prompt_tokens + plan.decode_tokens
    is_prefill_T = np.arange(tokens) < plan.prompt_tokens
    requests, look_ahead = [], []
    for request in range(plan.requests):
        expert_TLK = draw(rng, tokens, request % plan.tasks)
        gate_TLK = -np.sort(-rng.exponential(size=expert_TLK.shape), axis=2)
        gate_TLK /= gate_TLK.sum(axis=2, keepdims=True)
        requests.append(
            RequestRows(
                expert_TLK=expert_TLK,
                gate_TLK=gate_TLK.astype(np.float16),
                is_prefill_T=is_prefill_T,
                task=f"task {request % plan.tasks}",
                prompt_tokens=plan.prompt_tokens,
            )
        )
        if plan.horizons:
            look_ahead.append(_look_ahead(rng, plan, expert_TLK, is_prefill_T))
    signals = {"look_in_TLHM": np.concatenate(look_ahead)} if look_ahead else {}
    header = TraceHeader(
        model="synthetic",
        layer_ids=tuple(range(plan.layers)),
        experts=plan.experts,
        top_k=plan.top_k,
        evidence="synthetic",
        recorder="moesim.traces.synthetic",
        signals=dict.fromkeys(signals, LOOK_AHEAD),
    )
    return assemble("synthetic", header, requests, signals)


def _largest(score: FloatArray, count: int) -> Array:
    """Return the indices of the largest along the last axis, largest first."""
    return np.argsort(-score, axis=-1, kind="stable")[..., :count]


def _look_ahead(
    rng: np.random.Generator, plan: Plan, expert_TLK: Array, is_prefill_T: Array
) -> NDArray[np.int16]:
    """List experts for layer l + 1 + h, wrapping into the next decode row; -1 past the end."""
    tokens, layers = len(expert_TLK), plan.layers
    listed = min(2 * plan.top_k, plan.experts)
    ahead_TLHM = np.full((tokens, layers, plan.horizons, listed), -1, dtype=np.int16)
    token_T1 = np.arange(tokens)[:, None]
    for horizon in range(plan.horizons):
        layer_L = np.arange(layers) + 1 + horizon
        row_TL = np.minimum(token_T1 + layer_L // layers, tokens)
        known_TL = (row_TL == token_T1) | ~np.append(is_prefill_T, np.True_)[row_TL]
        known_TL &= row_TL < tokens
        truth_TLK = expert_TLK[np.minimum(row_TL, tokens - 1), layer_L % layers]
        score_TLE = rng.random((tokens, layers, plan.experts))
        seen_TLK = rng.random(truth_TLK.shape) < plan.recall
        np.put_along_axis(score_TLE, truth_TLK, np.where(seen_TLK, 2.0, -1.0), axis=2)
        ahead_TLHM[:, :, horizon] = _largest(score_TLE, listed)
        ahead_TLHM[:, :, horizon][~known_TL] = -1
    return ahead_TLHM
