"""What the next layers' routers would choose from the present layer's residual, while it runs.

The same numbers as the recorder's ``look_in`` signal, but layer by layer, in time for a policy.
"""

from typing import Any

import torch
from torch import Tensor, nn

from moesim.backends.models import ModelError, MoeLayer, MoeParts

# T tokens, H horizons, M top-m.


class LookAhead:
    """Watches the residual after each layer's attention and asks later gates about it.

    Args:
        parts: The model's MoE blocks.
        horizons: How many layers ahead to look; past the last come the next token's first.

    Raises:
        ModelError: The router's rule is not known, or a layer has no norm before its router.
    """

    def __init__(self, parts: MoeParts, horizons: int) -> None:
        if parts.score is None or any(layer.norm is None for layer in parts.layers):
            kind = type(parts.layers[0].router).__name__
            raise ModelError(
                f"{kind}: its rule is not known or no post_attention_layernorm stands before it; "
                "run it without policies that read look_in_TLHM"
            )
        self._parts = parts
        self._horizons = horizons
        device = next(parts.layers[0].router.parameters()).device
        self._bias_LE = (
            None
            if parts.selection is None or parts.selection.bias_LE is None
            else torch.tensor(parts.selection.bias_LE, device=device)
        )
        self._residual_TD: list[Tensor | None] = [None] * len(parts.layers)
        self._handles = [
            layer.norm.register_forward_pre_hook(self._keep(number))
            for number, layer in enumerate(parts.layers)
            if layer.norm is not None
        ]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def ids(self, layer: int) -> Tensor:
        """Return the 2k best experts of each horizon for each token: [T, H, M], best first."""
        parts = self._parts
        kept = min(2 * parts.top_k, parts.experts)
        residual_TD = self._residual_TD[layer]
        assert residual_TD is not None
        ids = []
        for ahead in range(1, self._horizons + 1):
            number = (layer + ahead) % len(parts.layers)
            rank_TE = self._probabilities(residual_TD, parts.layers[number])
            if self._bias_LE is not None:
                rank_TE = rank_TE + self._bias_LE[number]
            ids.append(rank_TE.topk(kept, dim=-1).indices)
        return torch.stack(ids, dim=1)

    def best(self, layer: int) -> list[list[list[int]]]:
        """Return the same where the host reads it."""
        best: list[list[list[int]]] = self.ids(layer).tolist()
        return best

    def _probabilities(self, residual_TD: Tensor, target: MoeLayer) -> Tensor:
        """Return what a layer's router makes of another's residual, past every hook."""
        assert target.norm is not None
        logits_TE: Tensor = target.router.forward(target.norm.forward(residual_TD))[0].float()
        return logits_TE.sigmoid() if self._parts.score == "sigmoid" else logits_TE.softmax(dim=-1)

    def _keep(self, number: int) -> Any:  # noqa: ANN401  a hook of torch
        def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            del module
            self._residual_TD[number] = inputs[0].detach().flatten(0, -2)

        return keep
