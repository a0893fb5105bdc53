"""Hooks on a live model: what its routers said, what its experts got, what could be foretold.

Routers are watched for logits and experts for what is really executed. Everything stays on the
model's device while the layers run; `Taps.rows` moves it to the host once a step, without the
tokens that only pad a batch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moesim.backends.models import Model, ModelError, MoeLayer, MoeParts

# T tokens, L MoE layers, E experts of a layer, K chosen, D width, H horizons, M top-m,
# B requests of a batch, S tokens of each in a step.
Array = NDArray[Any]

SAME_ROUTER_TOLERANCE = 1e-3
ROUTER_SIGNALS = {"router_logits", "router_probs", "router_top"}
NEEDS_RULE = {"router_probs", "router_top", "look_in", "look_out"}
LOOK_AHEAD = {"look_in": "residual_TD", "look_out": "output_TD"}
NEEDS_RESIDUAL = {"look_in", "look_out", "hidden"}


@dataclass(slots=True)
class LayerTap:
    """What one layer showed in the running step, on the device."""

    logits_TE: Tensor | None = None
    expert_TK: Tensor | None = None
    gate_TK: Tensor | None = None
    residual_TD: Tensor | None = None
    output_TD: Tensor | None = None

    def clear(self) -> None:
        """Forget the step."""
        self.logits_TE = self.expert_TK = self.gate_TK = self.residual_TD = self.output_TD = None


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
        wanted = set(signals)
        if wanted & NEEDS_RULE:
            _require_known_router(model, parts)
        if wanted & NEEDS_RESIDUAL:
            _require_norms(model, parts)
        self.parts = parts
        self.signals = signals
        self.horizons = horizons
        self._model_name = type(model).__name__
        self._layers = [LayerTap() for _ in parts.layers]
        self._embedding_BSD: Tensor | None = None
        self._checked_taps = False
        self._handles = []
        for tap, layer in zip(self._layers, parts.layers, strict=True):
            self._handles += _watch(
                tap,
                layer,
                residual=bool(wanted & NEEDS_RESIDUAL),
                output="look_out" in wanted,
            )
        if wanted & {"embedding", "prompt_embedding"}:
            embedding: nn.Module = model.get_input_embeddings()
            self._handles.append(embedding.register_forward_hook(self._keep_embedding))

    def _keep_embedding(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        del module, inputs
        self._embedding_BSD = output

    def remove(self) -> None:
        """Take every hook off the model."""
        for handle in self._handles:
            handle.remove()

    def rows(self, live_BS: Tensor) -> dict[str, Array]:
        """Return the step that just ran, by array name, on the host: request after request.

        Args:
            live_BS: Whether a token is a request's own and not padding.

        Raises:
            ModelError: The experts were not called, or the router reads something else than the
                look-ahead tap assumes.
        """
        if any(tap.expert_TK is None or tap.logits_TE is None for tap in self._layers):
            raise ModelError(f"{self._model_name}: a MoE layer did not run in this step")
        kept_T = live_BS.flatten().nonzero()[:, 0]

        def stack(key: str) -> Tensor:
            return torch.stack([getattr(tap, key)[kept_T] for tap in self._layers], dim=1)

        device = {
            "expert_TLK": stack("expert_TK").to(torch.int16),
            "gate_TLK": stack("gate_TK").to(torch.float16),
        }
        if set(self.signals) & ROUTER_SIGNALS:
            device |= self._router_signals(stack("logits_TE"))
        if not self._checked_taps and NEEDS_RESIDUAL & set(self.signals):
            self._check_taps()
        for signal, key in LOOK_AHEAD.items():
            if signal in self.signals:
                ids, scores = self._look_ahead([getattr(tap, key)[kept_T] for tap in self._layers])
                device |= {f"{signal}_TLHM": ids, f"{signal}_score_TLHM": scores}
        if "hidden" in self.signals:
            device["hidden_TLD"] = stack("residual_TD").half()
        if self._embedding_BSD is not None:
            live_BS1 = live_BS[..., None].double()
            sum_BD = (self._embedding_BSD.double() * live_BS1).sum(dim=1)
            mean_BD = (sum_BD / live_BS1.sum(dim=1).clamp(min=1)).half()
            device["embedding_TD"] = mean_BD.repeat_interleave(live_BS.sum(dim=1), dim=0)
        for tap in self._layers:
            tap.clear()
        return {name: np.ascontiguousarray(tensor.cpu().numpy()) for name, tensor in device.items()}

    def _router_signals(self, logits_TLE: Tensor) -> dict[str, Tensor]:
        """Return what is recorded of the routers' answers."""
        probs_TLE = self._probabilities(logits_TLE)
        ids, scores = self._best(probs_TLE, list(range(len(self._layers))))
        found = {
            "router_logits": {"router_logits_TLE": logits_TLE.float()},
            "router_probs": {"router_probs_TLE": probs_TLE.half()},
            "router_top": {"router_top_TLM": ids, "router_top_score_TLM": scores},
        }
        return {
            name: tensor
            for signal in self.signals
            for name, tensor in found.get(signal, {}).items()
        }

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

    def _best(self, probs_TLE: Tensor, layers: list[int]) -> tuple[Tensor, Tensor]:
        """Return ids and probabilities of the 2k best experts.

        Args:
            probs_TLE: Probabilities in each of ``layers``.
            layers: Whose bias decides the order, where the rule has one; its groups do not enter.
        """
        kept = min(2 * self.parts.top_k, self.parts.experts)
        rank_TLE = probs_TLE
        rule = self.parts.selection
        if rule is not None and rule.bias_LE is not None:
            rank_TLE = probs_TLE + torch.tensor(rule.bias_LE, device=probs_TLE.device)[layers]
        best_TLM = rank_TLE.topk(kept, dim=-1).indices
        return best_TLM.to(torch.int16), probs_TLE.gather(2, best_TLM).half()

    def _look_ahead(self, source_TD_of_L: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return ids and probabilities that each layer's source promises for each horizon.

        All that is asked of one target layer is asked at once.
        """
        layers = self.parts.layers
        count = len(layers)
        found: dict[tuple[int, int], Tensor] = {}
        for target, layer in enumerate(layers):
            pairs = [((target - h) % count, h) for h in range(1, self.horizons + 1)]
            logits = self._foretell(
                torch.cat([source_TD_of_L[source] for source, _ in pairs]), layer
            )
            found |= dict(zip(pairs, logits.chunk(len(pairs)), strict=True))
        order = [(source, h) for source in range(count) for h in range(1, self.horizons + 1)]
        probs = self._probabilities(torch.stack([found[pair] for pair in order], dim=1))
        ids, scores = self._best(probs, [(source + h) % count for source, h in order])
        shape = (len(ids), count, self.horizons, -1)
        return ids.view(shape), scores.view(shape)

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
                    " post_attention_layernorm; leave look_in,"
                    " look_out and hidden out of --signals"
                )
        self._checked_taps = True


def _watch(tap: LayerTap, layer: MoeLayer, *, residual: bool, output: bool) -> list[Any]:
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

    def on_layer(module: nn.Module, inputs: object, output: Any) -> None:  # noqa: ANN401 - torch's signature
        del module, inputs
        hidden = output[0] if isinstance(output, tuple) else output
        tap.output_TD = hidden.detach().flatten(0, -2)

    handles = [
        layer.router.register_forward_hook(on_router),
        layer.experts.register_forward_pre_hook(on_experts, with_kwargs=True),
    ]
    if residual and layer.norm is not None:
        handles.append(layer.norm.register_forward_pre_hook(on_norm))
    if output:
        handles.append(layer.decoder_layer.register_forward_hook(on_layer))
    return handles


def _require_known_router(model: Model, parts: MoeParts) -> None:
    if parts.score is None:
        raise ModelError(
            f"{type(model).__name__}: how {type(parts.layers[0].router).__name__} turns logits into"
            " probabilities is not known; leave router_probs, router_top, look_in and look_out"
            " out of --signals"
        )


def _require_norms(model: Model, parts: MoeParts) -> None:
    for layer in parts.layers:
        if layer.norm is None:
            raise ModelError(
                f"{type(model).__name__}: layer {layer.layer_id} has no post_attention_layernorm;"
                " leave look_in, look_out and hidden out of --signals"
            )
