"""Hooks on a live model: what its routers said, what its experts got, what could be foretold.

Routers are watched for logits and experts for what is really executed. Everything stays on the
model's device while the layers run; `Taps.rows` moves it to the host once a step.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moesim.backends.models import Model, ModelError, MoeLayer, MoeParts

# T tokens, L MoE layers, E experts of a layer, K chosen, D width, H horizons, M top-m.
Array = NDArray[Any]

SAME_ROUTER_TOLERANCE = 1e-3


@dataclass(slots=True)
class LayerTap:
    """What one layer showed in the running step, on the device."""

    logits_TE: Tensor | None = None
    expert_TK: Tensor | None = None
    gate_TK: Tensor | None = None
    residual_TD: Tensor | None = None


class Taps:
    """Watches every MoE layer of a model, and the token embeddings.

    Args:
        model: A transformers model, in evaluation mode.
        parts: What `find_moe` found in it.
        signals: Names of `moesim.backends.signals`.
        horizons: Layers that look-ahead reaches, H.
    """

    def __init__(
        self,
        model: Model,
        parts: MoeParts,
        signals: tuple[str, ...],
        horizons: int,
    ) -> None:
        if "router_probs" in signals or "look_in" in signals:
            _require_known_router(model, parts)
        if "look_in" in signals:
            _require_norms(model, parts)
        self.parts = parts
        self.signals = signals
        self.horizons = horizons
        self._model_name = type(model).__name__
        self._layers = [LayerTap() for _ in parts.layers]
        self._embedding_TD: Tensor | None = None
        self._checked_taps = False
        self._handles = []
        for tap, layer in zip(self._layers, parts.layers, strict=True):
            self._handles += _watch(tap, layer, residual="look_in" in signals)
        if "embedding" in signals or "prompt_embedding" in signals:
            embedding: nn.Module = model.get_input_embeddings()
            self._handles.append(embedding.register_forward_hook(self._keep_embedding))

    def _keep_embedding(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        del module, inputs
        self._embedding_TD = output.flatten(0, -2)

    def remove(self) -> None:
        """Take every hook off the model."""
        for handle in self._handles:
            handle.remove()

    def rows(self) -> dict[str, Array]:
        """Return the step that just ran, by array name, on the host.

        Raises:
            ModelError: The experts were not called, or the router reads something else than the
                look-ahead tap assumes.
        """
        if any(tap.expert_TK is None or tap.logits_TE is None for tap in self._layers):
            raise ModelError(f"{self._model_name}: a MoE layer did not run in this step")
        device = {
            "expert_TLK": self._stack("expert_TK").to(torch.int16),
            "gate_TLK": self._stack("gate_TK").to(torch.float16),
        }
        if "router_probs" in self.signals:
            device["router_probs_TLE"] = self._probabilities(self._stack("logits_TE")).half()
        if "look_in" in self.signals:
            if not self._checked_taps:
                self._check_taps()
            ids, scores = self._look_in()
            device |= {"look_in_TLHM": ids, "look_in_score_TLHM": scores}
        if self._embedding_TD is not None:
            mean_D = self._embedding_TD.float().mean(dim=0).half()
            device["embedding_TD"] = mean_D.expand(len(device["expert_TLK"]), -1)
        for tap in self._layers:
            tap.logits_TE = tap.expert_TK = tap.gate_TK = tap.residual_TD = None
        return {name: np.ascontiguousarray(tensor.cpu().numpy()) for name, tensor in device.items()}

    def _stack(self, key: str) -> Tensor:
        return torch.stack([getattr(tap, key) for tap in self._layers], dim=1)

    def _probabilities(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        return logits.sigmoid() if self.parts.score == "sigmoid" else logits.softmax(dim=-1)

    def _foretell(self, residual_TD: Tensor | None, target: MoeLayer) -> Tensor:
        """Return the logits that a layer's router gives on another layer's residual.

        ``forward`` is called past the hooks, so the taps do not see it.
        """
        assert residual_TD is not None
        assert target.norm is not None
        normed_TD = target.norm.forward(residual_TD)
        logits_TE: Tensor = target.router.forward(normed_TD)[0]
        return logits_TE

    def _look_in(self) -> tuple[Tensor, Tensor]:
        """Return ids and probabilities of the 2k best experts for each layer and horizon."""
        layers = self.parts.layers
        kept = min(2 * self.parts.top_k, self.parts.experts)
        bias_LE = None if self.parts.selection is None else self.parts.selection.bias_LE
        ids, scores = [], []
        for index, tap in enumerate(self._layers):
            for horizon in range(1, self.horizons + 1):
                target = (index + horizon) % len(layers)
                probs_TE = self._probabilities(self._foretell(tap.residual_TD, layers[target]))
                rank_TE = probs_TE
                if bias_LE is not None:
                    rank_TE = probs_TE + torch.tensor(bias_LE[target], device=probs_TE.device)
                best_TM = rank_TE.topk(kept, dim=-1).indices
                ids.append(best_TM)
                scores.append(probs_TE.gather(1, best_TM))
        shape = (-1, len(layers), self.horizons, kept)
        return (
            torch.stack(ids, dim=1).view(shape).to(torch.int16),
            torch.stack(scores, dim=1).view(shape).half(),
        )

    def _check_taps(self) -> None:
        """Each layer's own router, on its own residual, must give the logits it gave."""
        for tap, layer in zip(self._layers, self.parts.layers, strict=True):
            own = self._foretell(tap.residual_TD, layer)
            assert tap.logits_TE is not None
            if not torch.allclose(
                own, tap.logits_TE, rtol=SAME_ROUTER_TOLERANCE, atol=SAME_ROUTER_TOLERANCE
            ):
                raise ModelError(
                    f"{self._model_name}: layer {layer.layer_id}'s router does not read its"
                    " post_attention_layernorm; leave look_in out of --signals"
                )
        self._checked_taps = True


def _watch(tap: LayerTap, layer: MoeLayer, *, residual: bool) -> list[Any]:
    def on_router(module: nn.Module, inputs: object, output: Any) -> None:  # noqa: ANN401 - torch's signature
        del module, inputs
        if not isinstance(output, tuple) or len(output) != 3:  # noqa: PLR2004 - (logits, gates, ids)
            raise ModelError(
                f"{type(layer.router).__name__}: the router does not answer (logits, gates, ids)"
            )
        tap.logits_TE = output[0].detach()

    def on_experts(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        given = [*args, *kwargs.values()]
        tap.expert_TK, tap.gate_TK = given[1].detach(), given[2].detach()

    def on_norm(module: nn.Module, args: tuple[Any, ...]) -> None:
        del module
        tap.residual_TD = args[0].detach().flatten(0, -2)

    handles = [
        layer.router.register_forward_hook(on_router),
        layer.experts.register_forward_pre_hook(on_experts, with_kwargs=True),
    ]
    if residual and layer.norm is not None:
        handles.append(layer.norm.register_forward_pre_hook(on_norm))
    return handles


def _require_known_router(model: Model, parts: MoeParts) -> None:
    if parts.score is None:
        raise ModelError(
            f"{type(model).__name__}: how {type(parts.layers[0].router).__name__} turns logits into"
            " probabilities is not known; leave router_probs and look_in out of --signals"
        )


def _require_norms(model: Model, parts: MoeParts) -> None:
    for layer in parts.layers:
        if layer.norm is None:
            raise ModelError(
                f"{type(model).__name__}: layer {layer.layer_id} has no post_attention_layernorm;"
                " leave look_in out of --signals"
            )
