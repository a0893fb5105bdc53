"""Has the model learned, and do its routes matter? The gates that an untrained model fails.

Each figure is taken on held-out documents, task by task: bits per byte beside a uniform, a bigram
and a gzip baseline; what it costs to send each token to random experts, or to let a task use only
its own half of the experts or the globally busiest half; how even the load is; and how often the
next token uses the same experts again, beside independent draws from the task's own popularity.
"""

import gzip
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moesim.backends.models import Model, find_moe
from moesim.backends.reference.texts import pack_rows
from moesim.backends.reference.vocabulary import BYTES, SEPARATOR, VOCABULARY_TOKENS

# T tokens, L MoE layers, E experts of a layer, K chosen, B rows of a batch, S tokens of a row.
ROW_TOKENS = 1_025
BATCH_ROWS = 32
BIGRAM_PRIOR = 0.05
Reroute = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Routes:
    """Watches, and on request replaces, what a model's routers answer.

    Attributes:
        chosen: Ids of the last forward pass, a [T, K] tensor for each MoE layer.
    """

    def __init__(self, model: Model, reroute: Reroute | None = None) -> None:
        """Attach to every router; ``reroute(layer, logits, gates, ids)`` returns gates and ids."""
        self.chosen: list[Tensor] = []
        self._reroute = reroute
        self._handles = [
            layer.router.register_forward_hook(self._hook(index))
            for index, layer in enumerate(find_moe(model).layers)
        ]

    def _hook(self, index: int) -> Callable[[Any, Any, Any], tuple[Tensor, Tensor, Tensor]]:
        def hook(module: object, inputs: object, output: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401 - torch's signature
            del module, inputs
            logits, gates, ids = output
            if self._reroute is not None:
                gates, ids = self._reroute(index, logits, gates, ids)
            if index == 0:
                self.chosen.clear()
            self.chosen.append(ids)
            return logits, gates, ids

        return hook

    def remove(self) -> None:
        """Detach from the model."""
        for handle in self._handles:
            handle.remove()


def random_routes(experts: int, generator: torch.Generator) -> Reroute:
    """Return a reroute that keeps the gates and gives them to distinct random experts."""

    def reroute(layer: int, logits: Tensor, gates: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        del layer, logits
        noise = torch.rand((len(ids), experts), generator=generator, device=ids.device)
        return gates, noise.argsort(dim=1)[:, : ids.shape[1]]

    return reroute


def only_experts(allowed_LE: Tensor) -> Reroute:
    """Return a reroute that chooses again, by the same rule, among the allowed experts alone."""

    def reroute(layer: int, logits: Tensor, gates: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        masked = logits.float().masked_fill(~allowed_LE[layer], float("-inf"))
        top, new_ids = masked.softmax(dim=-1).topk(ids.shape[1], dim=-1)
        return (top / top.sum(dim=-1, keepdim=True)).to(gates.dtype), new_ids

    return reroute


@torch.no_grad()
def measure(
    model: Model,
    rows: NDArray[np.uint16],
    *,
    reroute: Reroute | None = None,
) -> tuple[float, NDArray[np.int16]]:
    """Return bits per byte over the rows, and the routes.

    Separators are read but not counted: bits of byte targets over number of byte targets.

    Returns:
        bits: Bits per byte.
        expert_BSLK: int16 ids of every input token.
    """
    device = next(model.parameters()).device
    routes = Routes(model, reroute)
    bits, count, batches = 0.0, 0, []
    try:
        for start in range(0, len(rows), BATCH_ROWS):
            batch = torch.from_numpy(rows[start : start + BATCH_ROWS].astype(np.int64)).to(device)
            logits = model(batch[:, :-1], use_cache=False).logits.float()
            targets = batch[:, 1:]
            nats = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), reduction="none"
            )
            is_byte = targets.flatten() < BYTES
            bits += float(nats[is_byte].sum()) / math.log(2)
            count += int(is_byte.sum())
            ids = torch.stack(routes.chosen, dim=1).to(torch.int16)
            batches.append(ids.view(*targets.shape, *ids.shape[1:]).cpu().numpy())
    finally:
        routes.remove()
    return bits / count, np.concatenate(batches)


def bigram_bits(train: Sequence[bytes], rows: NDArray[np.uint16]) -> float:
    """Return bits per byte of a bigram model counted on the task's training text."""
    counts = np.full((VOCABULARY_TOKENS, VOCABULARY_TOKENS), BIGRAM_PRIOR)
    for document in train:
        tokens = np.concatenate([[SEPARATOR], np.frombuffer(document, dtype=np.uint8)])
        np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    before, after = rows[:, :-1].ravel(), rows[:, 1:].ravel()
    return float(bits[before, after][after < BYTES].mean())


def gzip_bits(documents: Sequence[bytes]) -> float:
    """Return bits per byte of the held-out text packed with gzip -9."""
    text = b"".join(documents)
    return 8 * len(gzip.compress(text, 9, mtime=0)) / len(text)


def usage(expert_BSLK: NDArray[np.int16], experts: int) -> NDArray[np.float64]:
    """Return the probability that a token uses an expert: [L, E], rows sum to K."""
    layers = expert_BSLK.shape[2]
    tokens = expert_BSLK.shape[0] * expert_BSLK.shape[1]
    counts = [
        np.bincount(expert_BSLK[:, :, layer].ravel(), minlength=experts) for layer in range(layers)
    ]
    shares: NDArray[np.float64] = np.stack(counts) / tokens
    return shares


def reuse(expert_BSLK: NDArray[np.int16]) -> float:
    """Return the share of a token's experts that the next token uses again in the same layer."""
    now, later = expert_BSLK[:, :-1, :, :, None], expert_BSLK[:, 1:, :, None, :]
    return float((now == later).any(axis=4).mean())


def judge(
    model: Model,
    train: Mapping[str, Sequence[bytes]],
    held_out: Mapping[str, Sequence[bytes]],
    *,
    seed: int,
    most_rows: int | None = None,
) -> dict[str, Any]:
    """Measure a model on held-out text.

    Args:
        model: In evaluation mode, on the device to use.
        train: Training documents by task, for the bigram baseline.
        held_out: Documents by task; at least one row of text each.
        seed: Of the random routes.
        most_rows: Rows of a task at most; None takes all.

    Returns:
        report: ``tasks`` with the figures of each, and ``overall``: means over tasks, and load.
    """
    experts = find_moe(model).experts
    rows = {task: pack_rows(held_out[task], ROW_TOKENS)[:most_rows] for task in sorted(held_out)}
    own = {task: measure(model, of_task) for task, of_task in rows.items()}
    usage_LE = {task: usage(expert_BSLK, experts) for task, (_, expert_BSLK) in own.items()}
    mean_usage_LE = np.mean(list(usage_LE.values()), axis=0)
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    global_half = _busiest_half(mean_usage_LE, device)
    tasks = {}
    for task, of_task in rows.items():
        bits, expert_BSLK = own[task]
        own_half = _busiest_half(usage_LE[task], device)
        top_k = expert_BSLK.shape[3]
        tasks[task] = {
            "held_out_bytes": int((of_task[:, 1:] < BYTES).sum()),
            "bits_per_byte": bits,
            "bigram": bigram_bits(train[task], of_task),
            "gzip": gzip_bits(held_out[task]),
            "random_routing": measure(model, of_task, reroute=random_routes(experts, generator))[0],
            "own_half": measure(model, of_task, reroute=only_experts(own_half))[0],
            "global_half": measure(model, of_task, reroute=only_experts(global_half))[0],
            "reuse_at_lag_1": reuse(expert_BSLK),
            "reuse_if_independent": float((usage_LE[task] ** 2).sum(axis=1).mean() / top_k),
        }
    share_LE = mean_usage_LE / mean_usage_LE.sum(axis=1, keepdims=True)
    entropy = -(share_LE * np.log2(np.maximum(share_LE, 1e-12))).sum(axis=1) / math.log2(experts)
    overall = {
        key: float(np.mean([figures[key] for figures in tasks.values()]))
        for key in tasks[min(tasks)]
    }
    overall["least_load_over_even"] = float(share_LE.min() * experts)
    overall["most_load_over_even"] = float(share_LE.max() * experts)
    overall["load_entropy"] = float(entropy.mean())
    return {"uniform": 8.0, "overall": overall, "tasks": tasks}


def _busiest_half(usage_LE: NDArray[np.float64], device: torch.device) -> Tensor:
    half = usage_LE.shape[1] // 2
    allowed_LE = np.zeros(usage_LE.shape, dtype=bool)
    np.put_along_axis(
        allowed_LE, np.argsort(-usage_LE, axis=1, kind="stable")[:, :half], True, axis=1
    )
    return torch.from_numpy(allowed_LE).to(device)
