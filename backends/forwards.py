"""Sends a step's tokens through a model: one request by itself, several packed, decode by rows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from moesim.backends.base import Decoder, RealDriver
from moesim.backends.models import Model
from moesim.backends.packed import Share, forward_packed
from moesim.backends.served import Served
from moesim.simulator.terms import Phase

# R requests of a step, V vocabulary.


class Forwards:
    """The forward passes of one run.

    Args:
        model: Whose.
        driver: Reads what the device computes.
        decoder: Takes the steps that are all decode, and keeps the caches; None where the model
            takes them itself.
        keeps_prompt_logits: Whether to keep the logits of every position of a prompt.
    """

    def __init__(
        self,
        model: Model,
        driver: RealDriver[Any],
        decoder: Decoder | None,
        *,
        keeps_prompt_logits: bool,
    ) -> None:
        self._model = model
        self._driver = driver
        self._decoder = decoder
        self._keeps_prompt_logits = keeps_prompt_logits

    def open(self) -> Any:  # noqa: ANN401  a cache of transformers
        """Return the cache of a request that begins."""
        if self._decoder is None:
            return transformers.DynamicCache(config=self._model.config)
        return self._decoder.open()

    def close(self, cache: Any) -> None:  # noqa: ANN401  likewise
        """Take the cache of a request that has ended."""
        if self._decoder is not None:
            self._decoder.close(cache)

    def places(self, together: Sequence[Served]) -> tuple[int, Sequence[int]] | None:
        """Return of how many rows the decoder's step is, and which are whose; None elsewhere."""
        decoder = self._decoder_of(together)
        return None if decoder is None else decoder.places([one.cache for one in together])

    def run(
        self, together: Sequence[Served], compute: Callable[[int, Any, Any], None]
    ) -> tuple[Sequence[Tensor] | Tensor, Sequence[int]]:
        """Return the logits [R, V] after each request's last token, computed, and the best tokens.

        Args:
            together: The requests of the step, fed.
            compute: Has the experts of a layer of a decoder's step computed.
        """
        driver, decoder = self._driver, self._decoder_of(together)
        if decoder is not None:
            fed = [(one.cache, one.fed[0]) for one in together]
            return decoder.step(fed, compute, driver.wait_until)
        if len(together) == 1:
            logits_RV = self._alone(together[0])
        else:
            shares = [Share(one.cache, one.position, one.fed) for one in together]
            logits_RV = forward_packed(self._model, shares)
        best: list[int] = driver.read(logits_RV.argmax(-1)).tolist()
        return logits_RV, best

    def _decoder_of(self, together: Sequence[Served]) -> Decoder | None:
        is_decode = all(one.phase is Phase.DECODE for one in together)
        return self._decoder if is_decode else None

    def _alone(self, one: Served) -> Tensor:
        ids = _token_ids(one.fed, next(self._model.parameters()).device)
        keeps = self._keeps_prompt_logits and one.phase is Phase.PREFILL
        out = self._model(
            ids, past_key_values=one.cache, use_cache=True, logits_to_keep=0 if keeps else 1
        )
        if keeps:
            one.prompt_logits.append(out.logits[0].clone())
        logits_RV: Tensor = out.logits[:, -1]
        return logits_RV


def _token_ids(tokens: Sequence[int], device: torch.device) -> Tensor:
    """Return a step's tokens; a single one without a copy, which would queue behind an expert's."""
    if len(tokens) == 1:
        return torch.full((1, 1), tokens[0], dtype=torch.long, device=device)
    return torch.tensor([tokens], device=device)
