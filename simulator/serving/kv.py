"""The KV cache of a server: room of a fixed size, and what every request takes of it."""

from dataclasses import dataclass
from typing import Literal

from moesim.simulator.models.cost_shape import CostShape

Reserve = Literal["whole", "prompt"]


@dataclass(frozen=True, slots=True)
class KvShape:
    """Bytes of KV cache by length of context, over all layers.

    Grouped-query attention keeps keys and values of every KV head, latent attention (MLA) one
    compressed vector; a layer with a window keeps the positions in it.

    Attributes:
        token_bytes: Of one position in the layers that see all.
        windowed_token_bytes: Of one position in the layers that see a window.
        window_tokens: Width of the window.
    """

    token_bytes: int
    windowed_token_bytes: int
    window_tokens: int | None

    @classmethod
    def of(cls, shape: CostShape) -> "KvShape":
        """Return the KV cache of a model."""
        return cls(
            sum(layer.kv_bytes_per_token for layer in shape.layers),
            sum(layer.windowed_kv_bytes_per_token for layer in shape.layers),
            shape.window_tokens,
        )

    def size_bytes(self, context_tokens: int) -> int:
        """Return the bytes of one request at a length of context."""
        windowed = context_tokens
        if self.window_tokens is not None and windowed > self.window_tokens:
            windowed = self.window_tokens
        return self.token_bytes * context_tokens + self.windowed_token_bytes * windowed


@dataclass(frozen=True, slots=True)
class KvRoom:
    """What the requests of a server share.

    Attributes:
        shape: How a request's bytes grow.
        room_bytes: The room; nothing grows beyond it.
        reserve: What a request reserves when it begins: its ``whole`` length, as a client that
            states the most tokens it wants allows, or its ``prompt``, trusting that answers end
            before the room does; if they don't, the run ends out of memory. One of `Reserve`.
    """

    shape: KvShape
    room_bytes: int
    reserve: str = "whole"

    def reserved_bytes(self, prompt_tokens: int, output_tokens: int) -> int:
        """Return what a request reserves; its last token is never fed back."""
        whole = prompt_tokens + output_tokens - 1
        return self.shape.size_bytes(whole if self.reserve == "whole" else prompt_tokens)
