"""Record the routing of a live model: prompts in, a trace out.

Requests run in batches, in their order (see ``generation.py``). `record` returns the trace;
``pieces.py`` writes a long one piece by piece.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
import transformers

from moesim.backends.generation import Recorded, Request, Sampling, run_batch
from moesim.backends.models import Model, ModelError, MoeParts, expert_bytes, find_moe
from moesim.backends.signals import SPECS
from moesim.backends.taps import Taps
from moesim.traces import RoutingTrace, TraceHeader
from moesim.traces.assemble import assemble

__all__ = ["Origin", "Recording", "Request", "Sampling", "record"]


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
        is_twin: Whether the model is a narrow twin of the one named; the header then leaves out the
            bytes of experts, which are not those of the model named.
    """

    model: str
    revision: str | None = None
    bytes_per_parameter: int | None = None
    tokenizer_hash: str | None = None
    licence: str | None = None
    source: str | None = None
    notes: str | None = None
    is_twin: bool = False


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What is to be recorded, all but the requests' rows.

    Attributes:
        model: A transformers causal model, on its device, in evaluation mode.
        requests: At least one.
        sampling: How tokens are chosen; ``new_tokens`` counts for requests that are not forced.
        origin: For the header.
        signals: Names of `moesim.backends.signals`, in the order of the table.
        horizons: How many layers ahead look-ahead reaches; it wraps to the next token.
        batch: Requests that run together.
    """

    model: Model
    requests: Sequence[Request]
    sampling: Sampling
    origin: Origin
    signals: tuple[str, ...] = ()
    horizons: int = 3
    batch: int = 1

    def header(self) -> TraceHeader:
        """Return the header of the trace.

        Raises:
            ModelError: The model has no MoE layer that can be watched.
        """
        header = _header(self.model, find_moe(self.model), self.sampling, self.origin, self.signals)
        forced = all(request.forced is not None for request in self.requests)
        return header.model_copy(update={"teacher_forced": forced})

    def run(
        self, start: int = 0, stop: int | None = None, on_step: Callable[[int], None] | None = None
    ) -> RoutingTrace:
        """Run some of the requests and return their routes.

        Args:
            start: The first of them; batches are counted from here.
            stop: Behind the last of them.
            on_step: Told after each forward pass how many tokens went through.

        Raises:
            ModelError: The model can't be watched, or a request is longer than its context.
        """
        _check_lengths(self.model, self.requests, self.sampling)
        header = self.header()
        taps = Taps(self.model, find_moe(self.model), self.signals, self.horizons)
        stop = len(self.requests) if stop is None else stop
        recorded: list[Recorded] = []
        try:
            for first in range(start, stop, self.batch):
                requests = self.requests[first : min(first + self.batch, stop)]
                recorded += run_batch(self.model, taps, requests, self.sampling, first, on_step)
        finally:
            taps.remove()
        return assemble(
            self.origin.model,
            header,
            [one.rows for one in recorded],
            {
                name: np.concatenate([one.signals[name] for one in recorded])
                for name in recorded[0].signals
            },
        )


def record(
    model: Model,
    requests: Sequence[Request],
    sampling: Sampling,
    origin: Origin,
    *,
    signals: tuple[str, ...] = (),
    horizons: int = 3,
    batch: int = 1,
    on_step: Callable[[int], None] | None = None,
) -> RoutingTrace:
    """Run the requests and return their routes; the arguments are those of `Recording`.

    Raises:
        ModelError: As `Recording.run`.
    """
    recording = Recording(
        model=model,
        requests=requests,
        sampling=sampling,
        origin=origin,
        signals=signals,
        horizons=horizons,
        batch=batch,
    )
    return recording.run(on_step=on_step)


def _check_lengths(model: Model, requests: Sequence[Request], sampling: Sampling) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for number, request in enumerate(requests):
        if len(request.prompt) == 0:
            raise ModelError(f"request {number}: the prompt has no tokens; give at least one")
        new = request.new_tokens(sampling)
        if new < 1:
            raise ModelError(f"request {number}: {new} new tokens; ask for at least one")
        if context is not None and len(request.prompt) + new > context:
            raise ModelError(
                f"request {number}: {len(request.prompt)} prompt and {new} new tokens exceed the"
                f" model's context of {context}; shorten it"
            )


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
        evidence="twin" if origin.is_twin else "recorded",
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
        expert_bytes=None if origin.is_twin else tuple(expert for expert, _ in sizes),
        dense_bytes=None if origin.is_twin else tuple(dense for _, dense in sizes),
        signals={name: spec for signal in signals for name, spec in SPECS[signal].items()},
    )
