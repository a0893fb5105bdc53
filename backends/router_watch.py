"""What each router thought of all its experts, layer by layer, in time for a policy.

The same numbers as the recorder's ``router_probs`` signal, in half precision where policies read
them, so that a replay of the recording tells them the same.
"""

from typing import Any

import torch
from torch import Tensor, nn

from moesim.backends.models import ModelError, MoeParts

# T tokens, L MoE layers, E experts of a layer.


class RouterWatch:
    """Hooks on every router that keep its last logits.

    What a router answered while a graph of so many tokens was captured stays beside what it answers
    else: a replay fills it anew and runs no hook.

    Args:
        parts: The model's MoE blocks.

    Raises:
        ModelError: The router's rule is not known.
    """

    def __init__(self, parts: MoeParts) -> None:
        if parts.score is None or parts.selection is None:
            kind = type(parts.layers[0].router).__name__
            raise ModelError(
                f"{kind}: how it makes gates of logits is not known; run it without policies that "
                "read router_probs_TLE"
            )
        self._score = parts.score
        self._logits: dict[int, Tensor] = {}
        self._captured: dict[tuple[int, int], Tensor] = {}  # by layer and tokens
        self._handles = [
            layer.router.register_forward_hook(self._keep(number))
            for number, layer in enumerate(parts.layers)
        ]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def probabilities(self, layer: int, captured_tokens: int = 0) -> Tensor:
        """Return what a layer's router answered in the running step: [T, E], in float32.

        Args:
            layer: The layer.
            captured_tokens: Of the graph that is replayed; 0 where the model's own forward runs.
        """
        logits_TE = (
            self._captured[layer, captured_tokens] if captured_tokens else self._logits[layer]
        ).float()
        return logits_TE.sigmoid() if self._score == "sigmoid" else logits_TE.softmax(dim=-1)

    def _keep(self, number: int) -> Any:  # noqa: ANN401  a hook of torch
        def keep(module: nn.Module, inputs: object, output: Any) -> None:  # noqa: ANN401
            del module, inputs
            logits_TE: Tensor = output[0].detach().flatten(0, -2)
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                self._captured[number, len(logits_TE)] = logits_TE
            else:
                self._logits[number] = logits_TE

        return keep
