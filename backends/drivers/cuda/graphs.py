"""Decode of one request as captured graphs."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from moesim.backends.drivers.cuda.captured import WAY_OUT, Compute, Experts, Look, Pieces, Until
from moesim.backends.drivers.cuda.pinned import mapped, pinned_bytes, words
from moesim.backends.models import Model, MoeParts
from moesim.simulator.errors import CapabilityError

# B rows, here one, V vocabulary.

CONTEXT_STEP = 128
"""Static caches are cut to multiples of it; attention reads all of one."""


class GraphedDecode(Pieces):
    """Decode of one request.

    Args:
        model: Its experts may have been taken.
        parts: Its MoE blocks.
        longest: Tokens of the longest request, prompt and generation.
        experts: What computes them.
        look: Looks ahead inside the pieces; None does not.

    Attributes:
        cache: Of the one request that is served.

    Raises:
        CapabilityError: The family's forward cannot be captured.
    """

    def __init__(
        self,
        model: Model,
        parts: MoeParts,
        longest: int,
        experts: Experts,
        look: Look | None = None,
    ) -> None:
        self.cache: Any = transformers.StaticCache(
            config=model.config, max_cache_len=rounded(longest)
        )
        check_capturable(model, self.cache)
        super().__init__(parts, 1, experts, look, next(model.parameters()).device)
        token_1 = pinned_bytes(8).view(torch.long)
        self._token = words(token_1)
        self._token_11 = mapped(token_1).view(1, 1)

        def run() -> Tensor:
            ids = self._token_11 + 0  # by a kernel: a copy would queue behind an expert's
            out = model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            logits_BV: Tensor = out.logits[:, -1]
            return logits_BV

        self.capture(model, run)

    def open(self) -> Any:  # noqa: ANN401  a cache of transformers
        """Return the cache, emptied."""
        self.cache.reset()
        return self.cache

    def close(self, cache: Any) -> None:  # noqa: ANN401  likewise
        """Keep the cache for the next request."""

    def places(self, caches: Sequence[Any]) -> tuple[int, list[int]]:
        """Return that there is one row."""
        del caches
        return 1, self._rows

    def step(
        self, fed: Sequence[tuple[Any, int]], compute: Compute, until: Until
    ) -> tuple[Tensor, list[int]]:
        """Return the logits [1, V] after one more token, computed, and the most probable one."""
        ((_, token),) = fed
        self._token[0] = token
        return self.replay(self._rows, compute, until)


def rounded(longest: int) -> int:
    """Return the room for the tokens of a request in a cache that graphs read."""
    return -(-longest // CONTEXT_STEP) * CONTEXT_STEP


def check_capturable(model: Model, cache: Any) -> None:  # noqa: ANN401  a cache of transformers
    """Refuse a family whose cache moves on the host.

    Raises:
        CapabilityError: One line with the way out.
    """
    if any(cache.is_sliding):
        raise CapabilityError(
            f"{type(model).__name__}: its sliding windows move on the host, which no graph repeats;"
            f" {WAY_OUT}"
        )
