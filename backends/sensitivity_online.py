"""Estimates of how much each layer's routing matters, from what a model shows while it serves.

Nothing is corrupted and no pass is spent. Of each MoE layer these *signs* are watched, means over
the tokens: the entropy of the router's probabilities, the gate of the first choice, the length of
the block's output over that of the residual it is added to (``change``), and how little that
output points where the residual points already (``turn``). An estimate is a sign taken as it is,
one of the products below, or a line through all signs that was fitted on other tasks' profiles.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moesim.backends.models import Model, find_moe

# T tokens, L MoE layers, E experts of a layer, D width.
Signs = Mapping[str, Sequence[float]]
"""Values of L layers by name."""

RIDGE = 1e-2


@torch.no_grad()
def watch(model: Model, rows: NDArray[np.uint16]) -> dict[str, list[float]]:
    """Return the signs of each MoE layer over one pass of these rows."""
    parts = find_moe(model)
    signs: dict[str, list[float]] = {
        name: [0.0] * len(parts.layers) for name in ("entropy", "first_gate", "change", "turn")
    }
    handles = []
    for at, layer in enumerate(parts.layers):
        residual: list[Tensor] = []
        assert layer.norm is not None, f"layer {layer.layer_id} has no norm before its experts"
        handles += [
            layer.norm.register_forward_pre_hook(
                lambda _module, inputs, kept=residual: kept.append(inputs[0])
            ),
            layer.router.register_forward_hook(_router_hook(signs, at)),
            layer.experts.register_forward_hook(_experts_hook(signs, at, residual)),
        ]
    try:
        model(torch.from_numpy(rows[:, :-1].astype(np.int64)), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return signs


def estimates(
    mine: Signs, others: Sequence[Signs], profiles: Sequence[Sequence[float]]
) -> dict[str, list[float]]:
    """Return what each estimate says of every layer of a task.

    Args:
        mine: The task's own signs.
        others: The signs of other tasks.
        profiles: What those tasks' layers were profiled to cost.
    """
    change, sure = np.asarray(mine["change"]), np.asarray(mine["first_gate"])
    told = {name: list(value_L) for name, value_L in mine.items()}
    told["change x first_gate"] = (change * sure).tolist()
    told["change x certainty"] = (change * (1 - np.asarray(mine["entropy"]))).tolist()
    told["line of other tasks"] = _line(mine, others, profiles)
    return told


def _line(mine: Signs, others: Sequence[Signs], profiles: Sequence[Sequence[float]]) -> list[float]:
    """Fit log cost on log signs by ridge regression, and apply it."""
    fit = np.concatenate([_features(signs) for signs in others])
    cost = np.log(np.maximum(np.concatenate([np.asarray(p) for p in profiles]), 1e-4))
    mean, spread = fit.mean(axis=0), fit.std(axis=0) + 1e-9
    scaled = (fit - mean) / spread
    gram = scaled.T @ scaled + RIDGE * len(scaled) * np.eye(scaled.shape[1])
    slope = np.linalg.solve(gram, scaled.T @ (cost - cost.mean()))
    told: list[float] = (((_features(mine) - mean) / spread) @ slope).tolist()
    return told


def _features(signs: Signs) -> NDArray[np.float64]:
    values = [np.log(np.maximum(np.asarray(signs[name]), 1e-6)) for name in sorted(signs)]
    return np.stack(values, axis=1)


def _router_hook(signs: dict[str, list[float]], at: int) -> Any:  # noqa: ANN401 - torch's signature
    def hook(_module: object, _inputs: object, output: Any) -> None:  # noqa: ANN401
        logits_TE, gates_TK, _ = output
        log_TE = logits_TE.float().log_softmax(dim=-1)
        entropy_T = -(log_TE.exp() * log_TE).sum(dim=-1) / float(np.log(log_TE.shape[1]))
        signs["entropy"][at] = float(entropy_T.mean())
        signs["first_gate"][at] = float(gates_TK.max(dim=-1).values.mean())

    return hook


def _experts_hook(signs: dict[str, list[float]], at: int, residual: list[Tensor]) -> Any:  # noqa: ANN401 - torch's signature
    def hook(_module: object, _inputs: object, output: Tensor) -> None:
        before_TD = residual.pop().flatten(0, -2).float()
        out_TD = output.flatten(0, -2).float()
        change_T = out_TD.norm(dim=-1) / before_TD.norm(dim=-1)
        along_T = torch.nn.functional.cosine_similarity(out_TD, before_TD, dim=-1)
        signs["change"][at] = float(change_T.mean())
        signs["turn"][at] = float((1 - along_T.abs()).mean())

    return hook
