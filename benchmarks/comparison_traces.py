"""What the comparison of systems is replayed on: samples of recorded traces, in two prompt orders.

Where a trace lacks a signal that systems read, it is made from what the trace has, and is declared
as derived: rows of results name it. A profile trace holds other requests of the same recording.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces import RoutingTrace, SignalSpec, load, samples
from moesim.traces.schema import first_axis

# T tokens, L MoE layers, E experts of a layer, K chosen, R requests, D width, H horizons, M top-m.
Array = NDArray[Any]

RECORDED = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
SAMPLES = Path(samples.__file__).parent
SEED = 0
PROFILE_REQUESTS = 16
RECALL_H = (0.85, 0.75)
"""How often a look-ahead that is made up names an expert: about what twins show (0.76 to 0.89)."""
WIDTH = 64
"""Of made-up embeddings: a random direction for each token of the vocabulary."""
READ_TOKENS = 12
"""Of a teacher-forced sequence, what is read as its prompt."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A trace to compare systems on.

    Attributes:
        name: What results call it.
        trace: Its requests, tasks in turn.
        profile: Other requests of the same model.
        cost_of: Another model whose costs are charged; None charges its own.
        weights_format: Of the experts.
        has_probabilities: Whether the router's probabilities of experts not chosen are known.
        sample: What of the recording this is, in words.
    """

    name: str
    trace: RoutingTrace
    profile: RoutingTrace
    cost_of: str | None
    weights_format: str
    has_probabilities: bool
    sample: str

    @property
    def orders(self) -> dict[str, RoutingTrace]:
        """The trace in mixed order, and grouped by task where a task has several requests."""
        tasks = self.trace.task_R
        if len(set(tasks)) == len(tasks):
            return {"mixed": self.trace}
        grouped = sorted(range(len(tasks)), key=lambda request: tasks[request])
        return {"mixed": self.trace, "grouped": self.trace.select_requests(grouped)}


def subjects(decode_tokens: int, *, small: bool = False) -> list[Subject]:
    """Return what there is to compare on.

    Args:
        decode_tokens: Of each request, at most.
        small: Take one request of each task, not two.
    """
    each = 1 if small else 2
    steps = f"{decode_tokens} decode steps"
    gpt_oss, its_profile = _parts(load(RECORDED / "gpt-oss-20b"), each, GPT_OSS_TASKS)
    esft, esft_profile = _parts(load(RECORDED / "deepseek-v2-lite-esft"), each, ESFT_TASKS)
    own, own_profile = _parts(load(SAMPLES / "reference-12x32.npz"), 2, None)
    twin = load(SAMPLES / "twin-mixtral-8x7b-32x8.npz")
    return [
        Subject(
            "gpt-oss-20b",
            _with_signals(_cut(gpt_oss, 0, decode_tokens)),
            _with_signals(_cut(its_profile, 0, decode_tokens)),
            None,
            "mxfp4",
            has_probabilities=False,
            sample=f"of {gpt_oss.requests} requests of 5 tasks at most {steps}; "
            "prompts were not recorded, so there is no TTFT",
        ),
        Subject(
            "deepseek-v2-lite-esft",
            _with_signals(_cut(esft, READ_TOKENS, decode_tokens)),
            _with_signals(_cut(esft_profile, READ_TOKENS, decode_tokens)),
            None,
            "fp8",
            has_probabilities=False,
            sample=f"teacher-forced tokens of {esft.requests} requests of 4 tasks, {READ_TOKENS} "
            f"read as the prompt and at most {steps}",
        ),
        Subject(
            "reference-12x32",
            _with_signals(_decoded(own, decode_tokens)),
            _with_signals(own_profile),
            "deepseek-v2-lite",
            "bf16",
            has_probabilities=True,
            sample=f"ten of fifteen requests of 5 tasks, prompts whole and {steps}, at the "
            "cost of DeepSeek-V2-Lite's experts; the other five are the profile",
        ),
        Subject(
            "twin-mixtral-8x7b",
            _with_signals(_decoded(twin.select_requests([0, 1, 2, 3]), decode_tokens)),
            _with_signals(twin.select_requests([4])),
            None,
            "int4",
            has_probabilities=True,
            sample="four of the twin's five requests, one of each task, so in one order, prompts "
            f"whole and {steps}; the fifth is the profile",
        ),
    ]


GPT_OSS_TASKS = ("mmlu_test", "mmlu_validation", "sorry_bench_base", "gpqa_main", "mmlu_pro_test")
ESFT_TASKS = ("intent", "law", "summary", "translation")


def _parts(
    trace: RoutingTrace, each: int, tasks: Sequence[str] | None
) -> tuple[RoutingTrace, RoutingTrace]:
    """Return so many requests of each task, tasks in turn, and others for a profile."""
    names = list(dict.fromkeys(trace.task_R)) if tasks is None else list(tasks)
    of_task = {name: [r for r, task in enumerate(trace.task_R) if task == name] for name in names}
    chosen = [of_task[name][turn] for turn in range(each) for name in names]
    rest = [
        of_task[name][turn]
        for turn in range(each, trace.requests)
        for name in names
        if turn < len(of_task[name])
    ]
    return trace.select_requests(chosen), trace.select_requests(rest[:PROFILE_REQUESTS])


def _decoded(trace: RoutingTrace, decode_tokens: int) -> RoutingTrace:
    """Return the trace with so many decode steps of each request."""
    starts = trace.row_starts()
    place_T = np.arange(trace.tokens) - starts[:-1][trace.request_T]
    prompt_R = np.bincount(trace.request_T, weights=trace.is_prefill_T).astype(np.int64)
    rows = np.flatnonzero(place_T < prompt_R[trace.request_T] + decode_tokens)
    return _of_rows(trace, rows, np.minimum(trace.output_tokens_R, decode_tokens + 1))


def _of_rows(trace: RoutingTrace, rows: Array, output_tokens_R: Array) -> RoutingTrace:
    gates = trace.gate_TLK
    return replace(
        trace,
        expert_TLK=trace.expert_TLK[rows],
        gate_TLK=None if gates is None else gates[rows],
        step_T=trace.step_T[rows],
        request_T=trace.request_T[rows],
        position_T=trace.position_T[rows],
        is_prefill_T=trace.is_prefill_T[rows],
        output_tokens_R=output_tokens_R.astype(np.int32),
        signals={
            name: signal if first_axis(name) == "R" else signal[rows]
            for name, signal in trace.signals.items()
        },
    )


def _cut(trace: RoutingTrace, prompt_tokens: int, decode_tokens: int) -> RoutingTrace:
    """Return the first tokens of each request, so many read as its prompt, the others decoded."""
    starts = trace.row_starts()
    ends = np.minimum(starts[:-1] + prompt_tokens + decode_tokens, starts[1:])
    rows = np.concatenate([np.arange(a, b) for a, b in zip(starts[:-1], ends, strict=True)])
    place_T = np.concatenate([np.arange(b - a) for a, b in zip(starts[:-1], ends, strict=True)])
    outputs_R = np.bincount(trace.request_T[rows]) - prompt_tokens + (prompt_tokens > 0)
    prompts_R = np.full(trace.requests, prompt_tokens, np.int32)
    return replace(
        _of_rows(trace, rows, outputs_R),
        header=trace.header.model_copy(update={"teacher_forced": False}),
        step_T=np.maximum(0, place_T - max(0, prompt_tokens - 1)).astype(np.int32),
        position_T=place_T.astype(np.int32),
        is_prefill_T=place_T < prompt_tokens,
        prompt_tokens_R=prompts_R if prompt_tokens else trace.prompt_tokens_R,
    )


def _with_signals(trace: RoutingTrace) -> RoutingTrace:
    """Return the trace with what systems read and it lacks, made from what it has."""
    made: dict[str, tuple[Array, str, str]] = {}
    if "router_probs_TLE" not in trace.signals:
        made["router_probs_TLE"] = (
            _probabilities(trace),
            "gates of the experts chosen, or scores of the best, 0 for others",
            "layer_routed",
        )
    if "look_in_TLHM" not in trace.signals or trace.signals["look_in_TLHM"].shape[2] < 2:
        tap = f"the experts to come, each named with probability {RECALL_H}, others at random"
        made["look_in_TLHM"] = (_look_ahead(trace), tap, "layer_routed")
    if "embedding_TD" not in trace.signals and "token_T" in trace.signals:
        tap = "a random direction for each token"
        made["embedding_TD"] = (_embeddings(trace), tap, "step_begin")
    specs = {
        name: SignalSpec(tap=tap, known_at=known_at, producer="derived", evidence="derived")
        for name, (_, tap, known_at) in made.items()
    }
    header = trace.header.model_copy(update={"signals": {**trace.header.signals, **specs}})
    arrays = {name: array for name, (array, _, _) in made.items()}
    return replace(trace, header=header, signals={**trace.signals, **arrays})


def _probabilities(trace: RoutingTrace) -> Array:
    ids_TLM, scores_TLM = trace.expert_TLK, trace.gate_TLK
    if "router_top_TLM" in trace.signals:
        ids_TLM = trace.signals["router_top_TLM"]
        scores_TLM = trace.signals["router_top_score_TLM"]
    assert scores_TLM is not None
    probs_TLE = np.zeros((trace.tokens, trace.layers, trace.experts), np.float32)
    scores = np.where(ids_TLM >= 0, scores_TLM, 0).astype(np.float32)
    np.put_along_axis(probs_TLE, np.maximum(ids_TLM, 0).astype(np.int64), scores, axis=2)
    return probs_TLE


def _look_ahead(trace: RoutingTrace) -> Array:
    """Name the experts of layers l + 1 and l + 2, past the last layer those of the next row."""
    rng = np.random.default_rng(SEED)
    tokens, layers, top_k = trace.expert_TLK.shape
    flat_NK = trace.expert_TLK.reshape(tokens * layers, top_k)
    ahead_NHM = np.full((tokens * layers, len(RECALL_H), 2 * top_k), -1, np.int16)
    last_N = np.append(np.diff(trace.request_T) != 0, np.True_).repeat(layers)
    layer_N = np.tile(np.arange(layers), tokens)
    for horizon, recall in enumerate(RECALL_H):
        coming_NK = np.roll(flat_NK, -1 - horizon, axis=0).astype(np.int64)
        score_NE = rng.random((len(flat_NK), trace.experts), dtype=np.float32)
        seen_NK = rng.random(coming_NK.shape) < recall
        np.put_along_axis(score_NE, coming_NK, np.where(seen_NK, 2.0, -1.0), axis=1)
        ahead_NHM[:, horizon] = np.argsort(-score_NE, axis=1, kind="stable")[:, : 2 * top_k]
        ahead_NHM[last_N & (layer_N + 1 + horizon >= layers), horizon] = -1
    return ahead_NHM.reshape(tokens, layers, len(RECALL_H), 2 * top_k)


def _embeddings(trace: RoutingTrace) -> Array:
    """Return the mean direction of each step's tokens: of a decode step its token's."""
    token_T = trace.signals["token_T"].astype(np.int64)
    directions_VD = np.random.default_rng(SEED).standard_normal((int(token_T.max()) + 1, WIDTH))
    return directions_VD[token_T].astype(np.float32)
