"""The generation loop: one forward pass is one step, and nothing stands between model and hooks.

The requests of a batch run together, padded on the left to the longest prompt; padding is masked
for the model and never recorded. A request that has ended is carried along unrecorded until the
batch ends. A request's tokens are drawn from its own random stream, so that its routes depend on
nothing but itself, up to the rounding of a batched product.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from moesim.backends.models import Model
from moesim.backends.signals import SPECS
from moesim.backends.taps import Taps
from moesim.traces.assemble import RequestRows

# T tokens, L MoE layers, K chosen, R requests, D width, B requests of a batch, S tokens of a step.
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

    def new_tokens(self, sampling: "Sampling") -> int:
        """Return how many tokens it generates at most."""
        return sampling.new_tokens if self.forced is None else len(self.forced)


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


@dataclass(frozen=True)
class Recorded:
    """One request: its rows, and its signals by array name."""

    rows: RequestRows
    signals: Mapping[str, Array]


@torch.inference_mode()
def run_batch(
    model: Model,
    taps: Taps,
    requests: Sequence[Request],
    sampling: Sampling,
    first_number: int,
    on_step: Callable[[int], None] | None = None,
) -> list[Recorded]:
    """Run requests together and return what the taps saw of each.

    Args:
        model: In evaluation mode, on its device.
        taps: On that model.
        requests: The batch.
        sampling: How tokens are chosen.
        first_number: Number of the first request in the recording: the random streams depend on it.
        on_step: Told after each forward pass how many tokens of requests went through.
    """
    device = next(model.parameters()).device
    rngs = [np.random.default_rng([sampling.seed, first_number + b]) for b in range(len(requests))]
    ends = set() if sampling.ignore_eos else _end_tokens(model)
    cache = transformers.DynamicCache(config=model.config)
    ids_BS, live_BS = _pad_left([request.prompt for request in requests])
    attended_BS = live_BS.to(device)
    position_BS = (attended_BS.long().cumsum(dim=1) - 1).clamp(min=0)
    padded = not bool(live_BS.all())
    steps: list[list[dict[str, Array]]] = [[] for _ in requests]
    generated: list[list[int]] = [[] for _ in requests]
    running = list(range(len(requests)))
    while True:
        out = model(
            ids_BS.to(device),
            attention_mask=attended_BS.long() if padded else None,
            position_ids=position_BS,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        columns = taps.rows(live_BS.to(device)) | {
            "token_T": ids_BS[live_BS].numpy().astype(np.int32)
        }
        _share_out(columns, live_BS.sum(dim=1).tolist(), steps)
        if on_step is not None:
            on_step(int(live_BS.sum()))
        chosen_B = _choose(out.logits[:, -1], requests, generated, sampling, rngs)
        for b in running:
            generated[b].append(chosen_B[b])
        running = [
            b
            for b in running
            if len(generated[b]) < requests[b].new_tokens(sampling) and chosen_B[b] not in ends
        ]
        if not running:
            break
        live_BS = torch.zeros((len(requests), 1), dtype=torch.bool)
        live_BS[running] = True
        ids_BS = torch.tensor(chosen_B)[:, None] * live_BS
        attended_BS = torch.cat([attended_BS, torch.ones_like(attended_BS[:, :1])], dim=1)
        position_BS = position_BS[:, -1:] + live_BS.to(device)
    return [
        _as_recorded(
            {name: np.concatenate([step[name] for step in of_one]) for name in of_one[0]},
            request,
            len(tokens),
            taps.signals,
        )
        for request, of_one, tokens in zip(requests, steps, generated, strict=True)
    ]


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids_BS = torch.zeros((len(prompts), longest), dtype=torch.long)
    live_BS = torch.zeros((len(prompts), longest), dtype=torch.bool)
    for b, prompt in enumerate(prompts):
        ids_BS[b, longest - len(prompt) :] = torch.tensor(list(prompt))
        live_BS[b, longest - len(prompt) :] = True
    return ids_BS, live_BS


def _share_out(
    columns: Mapping[str, Array], counts: Sequence[int], steps: Sequence[list[dict[str, Array]]]
) -> None:
    """Give each request its rows of the step."""
    start = 0
    for count, of_one in zip(counts, steps, strict=True):
        if count:
            rows = slice(start, start + count)
            of_one.append({name: array[rows] for name, array in columns.items()})
        start += count


def _choose(
    logits_BV: Tensor,
    requests: Sequence[Request],
    generated: Sequence[Sequence[int]],
    sampling: Sampling,
    rngs: Sequence[np.random.Generator],
) -> list[int]:
    """Return each request's next token: forced, most probable, or drawn.

    It is drawn by inverting the cumulative probabilities. What stands for a request that has ended
    is never used.
    """
    if sampling.temperature == 0:
        free = logits_BV.argmax(dim=-1).tolist()
    else:
        scaled_BV = logits_BV.double().cpu().numpy() / sampling.temperature
        cumulative_BV = np.cumsum(np.exp(scaled_BV - scaled_BV.max(axis=1, keepdims=True)), axis=1)
        free = [
            int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
            for cumulative, rng in zip(cumulative_BV, rngs, strict=True)
        ]
    return [
        token if request.forced is None else request.forced[min(len(past), len(request.forced) - 1)]
        for token, request, past in zip(free, requests, generated, strict=True)
    ]


def _as_recorded(
    columns: Mapping[str, Array], request: Request, generated: int, signals: tuple[str, ...]
) -> Recorded:
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
    return Recorded(rows, kept)


def _end_tokens(model: Model) -> set[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        return set()
    return {ends} if isinstance(ends, int) else set(ends)
