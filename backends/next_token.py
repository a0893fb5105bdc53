"""Which token comes next, when a text is over, and what fits a model's context."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from moesim.backends.generation import Request, Sampling
from moesim.backends.models import Model, ModelError


def draw_token(logits: Tensor, temperature: float, rng: np.random.Generator) -> int:
    """Draw a token by inverting the cumulative probabilities."""
    scaled = logits.double().cpu().numpy() / temperature
    cumulative = np.cumsum(np.exp(scaled - scaled.max()))
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def end_tokens(model: Model) -> frozenset[int]:
    """Return the tokens after which the model's text is over."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset({ends} if isinstance(ends, int) else ends)


def check_lengths(model: Model, requests: Sequence[Request], sampling: Sampling) -> None:
    """Refuse requests that are empty or longer than the model's context.

    Raises:
        ModelError: One line that names the request and the way out.
    """
    config: Any = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    for number, request in enumerate(requests):
        new = request.new_tokens(sampling)
        if len(request.prompt) == 0 or new < 1:
            raise ModelError(
                f"request {number}: {len(request.prompt)} prompt and {new} new tokens; "
                "give at least one of each"
            )
        if context is not None and len(request.prompt) + new > context:
            raise ModelError(
                f"request {number}: {len(request.prompt)} prompt and {new} new tokens exceed the"
                f" model's context of {context}; shorten it"
            )
