"""Record the routing of a live model: prompts in, a trace out.

The generation loop is our own: one forward pass is one step, and nothing stands between the model
and the hooks. Requests run one after another at batch 1, so that a request's routes depend on
nothing but itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from moesim.backends.models import Model, ModelError, MoeParts, expert_bytes, find_moe
from moesim.backends.signals import SPECS
from moesim.backends.taps import Taps
from moesim.traces import RoutingTrace, TraceHeader
from moesim.traces.assemble import RequestRows, assemble

# T tokens, L MoE layers, K chosen, R requests, D width.
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt as the model reads it.

    Attributes:
        prompt: Token ids, at least one.
        task: Label for the trace.
        forced: The tokens to feed in place of what the model would choose: the same text again.
    """

    prompt: Sequence[int]
    task: str = ""
    forced: Sequence[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        new_tokens: Tokens to generate for each request; the last is never fed back.
        temperature: 0 takes the most probable token.
        seed: With the request's number, the seed of its own random stream.
        ignore_eos: Go on after the end-of-text token.
    """

    new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    ignore_eos: bool = False

    def describe(self) -> dict[str, str | float | int | bool]:
        """Return what the header says of it."""
        shown: dict[str, str | float | int | bool] = {
            "method": "greedy" if self.temperature == 0 else "temperature",
            "new_tokens": self.new_tokens,
            "ignore_eos": self.ignore_eos,
        }
        if self.temperature > 0:
            shown |= {"temperature": self.temperature, "seed": self.seed}
        return shown


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What the header says of model and texts, and the live model can't tell.

    Attributes:
        model: Id, or the name of the folder.
        revision: Commit of the hub, or a hash of the weights.
        bytes_per_parameter: As stored, where all are stored alike; None takes it as it is loaded.
        tokenizer_hash: SHA-256 of the tokenizer's file.
        licence: Of the texts and the model.
        source: Of the texts.
        notes: Whatever else a reader should know.
    """

    model: str
    revision: str | None = None
    bytes_per_parameter: int | None = None
    tokenizer_hash: str | None = None
    licence: str | None = None
    source: str | None = None
    notes: str | None = None


@dataclass(frozen=True)
class _Recorded:
    rows: RequestRows
    signals: Mapping[str, Array]


def record(
    model: Model,
    requests: Sequence[Request],
    sampling: Sampling,
    origin: Origin,
    *,
    signals: tuple[str, ...] = (),
    horizons: int = 2,
    on_step: Callable[[int], None] | None = None,
) -> RoutingTrace:
    """Run the requests and return their routes.

    Args:
        model: A transformers causal model, on its device, in evaluation mode.
        requests: At least one.
        sampling: How tokens are chosen; ``new_tokens`` counts for requests that are not forced.
        origin: For the header.
        signals: Names of `moesim.backends.signals`, in the order of the table.
        horizons: How many layers ahead ``look_in`` reaches; it wraps to the next token.
        on_step: Told after each forward pass how many tokens went through.

    Raises:
        ModelError: The model has no MoE layer that can be watched, or a request is longer than its
            context.
    """
    parts = find_moe(model)
    _check_lengths(model, requests, sampling)
    taps = Taps(model, parts, signals, horizons)
    try:
        recorded = [
            _record_one(model, taps, request, sampling, number, on_step)
            for number, request in enumerate(requests)
        ]
    finally:
        taps.remove()
    header = _header(model, parts, sampling, origin, signals)
    if all(request.forced is not None for request in requests):
        header = header.model_copy(update={"teacher_forced": True})
    names = recorded[0].signals
    return assemble(
        origin.model,
        header,
        [one.rows for one in recorded],
        {name: np.concatenate([one.signals[name] for one in recorded]) for name in names},
    )


def _check_lengths(model: Model, requests: Sequence[Request], sampling: Sampling) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for number, request in enumerate(requests):
        if len(request.prompt) == 0:
            raise ModelError(f"request {number}: the prompt has no tokens; give at least one")
        new = sampling.new_tokens if request.forced is None else len(request.forced)
        if new < 1:
            raise ModelError(f"request {number}: {new} new tokens; ask for at least one")
        if context is not None and len(request.prompt) + new > context:
            raise ModelError(
                f"request {number}: {len(request.prompt)} prompt and {new} new tokens exceed the"
                f" model's context of {context}; shorten it"
            )


@torch.inference_mode()
def _record_one(
    model: Model,
    taps: Taps,
    request: Request,
    sampling: Sampling,
    number: int,
    on_step: Callable[[int], None] | None,
) -> _Recorded:
    device = next(model.parameters()).device
    rng = np.random.default_rng([sampling.seed, number])
    ends = set() if sampling.ignore_eos else _end_tokens(model)
    cache = transformers.DynamicCache(config=model.config)
    wanted = sampling.new_tokens if request.forced is None else len(request.forced)
    fed = list(request.prompt)
    steps: list[dict[str, Array]] = []
    generated: list[int] = []
    while True:
        ids = torch.tensor([fed], device=device)
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        steps.append(taps.rows() | {"token_T": np.array(fed, dtype=np.int32)})
        if on_step is not None:
            on_step(len(fed))
        if request.forced is None:
            token = _choose(out.logits[0, -1], sampling.temperature, rng)
        else:
            token = request.forced[len(generated)]
        generated.append(token)
        if len(generated) == wanted or token in ends:
            break
        fed = [token]
    columns = {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}
    return _as_recorded(columns, request, len(generated), taps.signals)


def _as_recorded(
    columns: Mapping[str, Array], request: Request, generated: int, signals: tuple[str, ...]
) -> _Recorded:
    rows = RequestRows(
        expert_TLK=columns["expert_TLK"],
        gate_TLK=columns["gate_TLK"],
        is_prefill_T=np.arange(len(columns["token_T"])) < len(request.prompt),
        task=request.task,
        prompt_tokens=len(request.prompt),
        output_tokens=generated,
    )
    kept = {}
    for signal in signals:
        for name in SPECS[signal]:
            is_prompt_mean = name == "prompt_embedding_RD"
            kept[name] = columns["embedding_TD"][:1] if is_prompt_mean else columns[name]
    return _Recorded(rows, kept)


def _choose(logits: torch.Tensor, temperature: float, rng: np.random.Generator) -> int:
    """Take the most probable token, or draw one by inverting the cumulative probabilities."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.double().cpu().numpy() / temperature
    cumulative = np.cumsum(np.exp(scaled - scaled.max()))
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def _end_tokens(model: Model) -> set[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        return set()
    return {ends} if isinstance(ends, int) else set(ends)


def _header(
    model: Model,
    parts: MoeParts,
    sampling: Sampling,
    origin: Origin,
    signals: tuple[str, ...],
) -> TraceHeader:
    parameter = next(model.parameters())
    sizes = [expert_bytes(layer, origin.bytes_per_parameter) for layer in parts.layers]
    return TraceHeader(
        model=origin.model,
        revision=origin.revision,
        layer_ids=tuple(layer.layer_id for layer in parts.layers),
        experts=parts.experts,
        top_k=parts.top_k,
        evidence="recorded",
        dtype=str(parameter.dtype).removeprefix("torch."),
        tokenizer_hash=origin.tokenizer_hash,
        sampling=sampling.describe(),
        recorder=(
            f"moesim {version('moesim')}, torch {torch.__version__},"
            f" transformers {transformers.__version__}, {parameter.device.type}"
        ),
        source=origin.source,
        licence=origin.licence,
        notes=origin.notes,
        selection=parts.selection,
        expert_bytes=tuple(expert for expert, _ in sizes),
        dense_bytes=tuple(dense for _, dense in sizes),
        signals={name: spec for signal in signals for name, spec in SPECS[signal].items()},
    )
