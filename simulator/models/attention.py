"""Attention of one decoder layer: its weights, its KV cache, its products."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from moesim.hardware_profiles.figures import Count, Strict

Matrix = tuple[int, int]
KV_BYTES = 2


class GroupedQuery(Strict):
    """Grouped-query attention; multi-head where `kv_heads` equals `heads`.

    Attributes:
        biases: Which projections have one.
        qk_norm: Whether queries and keys are normalised, per head or over all heads.
        sinks: One learned sink per head.
        window_tokens: Width of the window of the layers in `windowed_layers`.
        windowed_layers: Decoder layers that see a window only.
    """

    kind: Literal["gqa"]
    heads: Count
    kv_heads: Count
    head_dim: Count
    biases: Literal["none", "qkv", "all"] = "none"
    qk_norm: Literal["none", "head", "all"] = "none"
    sinks: bool = False
    window_tokens: Count | None = None
    windowed_layers: tuple[int, ...] = ()

    def matrices(self, hidden: int) -> Iterator[Matrix]:
        """Yield (outputs, inputs) of each projection."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield queries, hidden
        yield keys, hidden
        yield keys, hidden
        yield hidden, queries

    def small_parameters(self, hidden: int) -> int:
        """Return how many parameters are in no matrix: biases, norms, sinks."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        biases = {"none": 0, "qkv": queries + 2 * keys, "all": queries + 2 * keys + hidden}
        norms = {"none": 0, "head": 2 * self.head_dim, "all": queries + keys}
        return biases[self.biases] + norms[self.qk_norm] + self.sinks * self.heads

    @property
    def normalises_qk(self) -> bool:
        """Whether queries and keys are normalised."""
        return self.qk_norm != "none"

    @property
    def repeated_kv_bytes_per_token(self) -> int:
        """KV cache of one position if each query head had its own; 0 where each has."""
        return 2 * self.heads * self.head_dim * KV_BYTES * (self.kv_heads < self.heads)

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one position of one layer, 16 bits each."""
        return 2 * self.kv_heads * self.head_dim * KV_BYTES

    @property
    def flops_per_pair(self) -> int:
        """Products of one (query, key) pair: scores and weighted values."""
        return 4 * self.heads * self.head_dim


class LatentAttention(Strict):
    """Multi-head latent attention (DeepSeek): the cache holds a compressed vector per position.

    Attributes:
        q_rank: Rank of the queries' compression; absent where they are not compressed.
        kv_rank: Rank of the shared compression of keys and values.
        nope_dim: Dimensions of a head without position.
        rope_dim: Dimensions with rotary position, one vector for all heads.
        v_dim: Dimensions of a head's values.
    """

    kind: Literal["mla"]
    heads: Count
    q_rank: Count | None = None
    kv_rank: Count
    nope_dim: Count
    rope_dim: Count
    v_dim: Count
    window_tokens: None = None
    windowed_layers: tuple[()] = ()

    def matrices(self, hidden: int) -> Iterator[Matrix]:
        """Yield (outputs, inputs) of each projection."""
        queries = self.heads * (self.nope_dim + self.rope_dim)
        if self.q_rank is None:
            yield queries, hidden
        else:
            yield self.q_rank, hidden
            yield queries, self.q_rank
        yield self.kv_rank + self.rope_dim, hidden
        yield self.heads * (self.nope_dim + self.v_dim), self.kv_rank
        yield hidden, self.heads * self.v_dim

    def small_parameters(self, hidden: int) -> int:  # noqa: ARG002  # the same question as GQA's
        """Return how many parameters are in no matrix: the norms of the compressed vectors."""
        return self.kv_rank + (self.q_rank or 0)

    @property
    def normalises_qk(self) -> bool:
        """Whether vectors are normalised on their way to queries and keys: the compressed are."""
        return True

    @property
    def repeated_kv_bytes_per_token(self) -> int:
        """Return 0: there is nothing to repeat."""
        return 0

    @property
    def kv_bytes_per_token(self) -> int:
        """Compressed cache of one position of one layer, 16 bits each."""
        return (self.kv_rank + self.rope_dim) * KV_BYTES

    @property
    def flops_per_pair(self) -> int:
        """Products of one (query, key) pair on the compressed vectors."""
        return 2 * self.heads * (2 * self.kv_rank + self.rope_dim)


Attention = Annotated[GroupedQuery | LatentAttention, Field(discriminator="kind")]
