"""What the cost model must know about a model: bytes and FLOPs of each MoE layer.

A `CostShape` comes from a `ModelShape` in a chosen format, or from a trace that carries nothing
but ``expert_bytes`` and ``dense_bytes``. Costs never look further than this.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

Origin = Literal["config", "bytes"]


@dataclass(frozen=True, slots=True)
class CostLayer:
    """One MoE layer and everything between the experts before it and its own router.

    Decoder layers without experts that precede a MoE layer are folded into it, so that the
    *dense* figures cover attention, router, shared experts and those layers.

    Attributes:
        expert_bytes: Bytes of one routed expert in the chosen format.
        expert_flops_per_token: Of one routed expert; a multiply and an add are two.
        dense_bytes: Weights read before the experts run.
        dense_flops_per_token: Of those weights.
        kv_bytes_per_token: KV cache read and kept per position of context.
        attention_flops_per_pair: Per (query, key) pair, all heads.
        windowed_kv_bytes_per_token: The same for attention that sees a window only.
        windowed_flops_per_pair: The same for attention that sees a window only.
        qk_norms: How many of its decoder layers normalise queries and keys.
        kv_repeats: How many have fewer heads of keys and values than of queries.
        repeated_kv_bytes_per_token: KV cache per position if these had as many of both.
    """

    expert_bytes: int
    expert_flops_per_token: int
    dense_bytes: int
    dense_flops_per_token: int
    kv_bytes_per_token: int = 0
    attention_flops_per_pair: int = 0
    windowed_kv_bytes_per_token: int = 0
    windowed_flops_per_pair: int = 0
    qk_norms: int = 0
    kv_repeats: int = 0
    repeated_kv_bytes_per_token: int = 0


@dataclass(frozen=True, slots=True)
class CostShape:
    """Bytes and FLOPs of a whole model, MoE layer by MoE layer.

    Attributes:
        name: What reports call it, the format included.
        layers: One entry per MoE layer, in order.
        experts: Routed experts of a layer (E).
        top_k: Chosen per token (K).
        hidden: Width of the residual stream (D).
        head_bytes: What is read after the last experts: trailing dense layers, final norm, LM head.
        head_flops_per_token: Of those weights.
        resident_bytes: All that always stays in VRAM: dense weights, embedding and head.
        weight_format: Name of the experts' format; the peak of the tensor cores follows it.
        origin: ``config`` where the model's own shape gave the figures, ``bytes`` where they are
            guessed from byte counts.
        window_tokens: Width of the attention window, if some layers have one.
    """

    name: str
    layers: tuple[CostLayer, ...]
    experts: int
    top_k: int
    hidden: int
    head_bytes: int
    head_flops_per_token: int
    resident_bytes: int
    weight_format: str = "bf16"
    origin: Origin = "config"
    window_tokens: int | None = None

    @property
    def expert_bytes_total(self) -> int:
        """Bytes of all routed experts of all layers."""
        return self.experts * sum(layer.expert_bytes for layer in self.layers)

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one position over all layers, windowed ones counted in full."""
        return sum(
            layer.kv_bytes_per_token + layer.windowed_kv_bytes_per_token for layer in self.layers
        )

    @classmethod
    def from_bytes(
        cls,
        expert_bytes: Sequence[int],
        dense_bytes: Sequence[int],
        *,
        experts: int,
        top_k: int,
        name: str = "from bytes",
        hidden: int = 4096,
        head_bytes: int = 0,
        bits_per_weight: int = 16,
    ) -> Self:
        """Guess a shape from the byte counts that a trace carries.

        Decode at small batch reads every weight once, so bytes alone give its time; FLOPs (they
        matter in prefill) follow from `bits_per_weight`, and the KV cache is left out.

        Args:
            expert_bytes: Of one expert, one entry per MoE layer.
            dense_bytes: Read before the experts of each MoE layer.
            experts: Routed experts of a layer.
            top_k: Chosen per token.
            name: What reports call it.
            hidden: Width of an activation that travels to a CPU expert.
            head_bytes: Bytes of the LM head, 0 where the trace counts it nowhere.
            bits_per_weight: Width of a stored weight.

        Raises:
            ValueError: If the two lists differ in length or a size is not positive.

        >>> shape = CostShape.from_bytes([2_000], [500], experts=4, top_k=2)
        >>> shape.layers[0].expert_flops_per_token
        2000
        """
        _check_sizes(expert_bytes, dense_bytes)

        def flops(weight_bytes: int) -> int:
            return 2 * 8 * weight_bytes // bits_per_weight

        layers = tuple(
            CostLayer(
                expert_bytes=int(expert),
                expert_flops_per_token=flops(int(expert)),
                dense_bytes=int(dense),
                dense_flops_per_token=flops(int(dense)),
            )
            for expert, dense in zip(expert_bytes, dense_bytes, strict=True)
        )
        return cls(
            name=name,
            layers=layers,
            experts=experts,
            top_k=top_k,
            hidden=hidden,
            head_bytes=head_bytes,
            head_flops_per_token=flops(head_bytes),
            resident_bytes=sum(layer.dense_bytes for layer in layers) + head_bytes,
            origin="bytes",
        )

    def with_bytes(self, expert_bytes: Sequence[int], dense_bytes: Sequence[int]) -> Self:
        """Return the shape with sizes that a trace carries, such as those of a GGUF file.

        Products, KV cache and head stay the model's own.

        Args:
            expert_bytes: Of one expert, one entry per MoE layer.
            dense_bytes: Read before the experts of each MoE layer.

        Raises:
            ValueError: If a list has not one entry per MoE layer or a size is not positive.
        """
        _check_sizes(expert_bytes, dense_bytes)
        if len(expert_bytes) != len(self.layers):
            raise ValueError(
                f"expert_bytes has {len(expert_bytes)} layers and {self.name} {len(self.layers)}; "
                "give one entry per MoE layer"
            )
        layers = tuple(
            replace(layer, expert_bytes=int(expert), dense_bytes=int(dense))
            for layer, expert, dense in zip(self.layers, expert_bytes, dense_bytes, strict=True)
        )
        fixed_bytes = self.resident_bytes - sum(layer.dense_bytes for layer in self.layers)
        return replace(
            self,
            name=f"{self.name.split()[0]}, sizes of the trace",
            layers=layers,
            resident_bytes=fixed_bytes + sum(layer.dense_bytes for layer in layers),
        )

    def for_trace(self, layers: int, experts: int, top_k: int) -> Self:
        """Return the shape stretched over a trace of another model (``--cost-of``).

        Layer l of the trace costs what layer ``l * L // layers`` of this shape does; every expert
        keeps its size. Totals therefore differ from the model's own, and the name says so.

        >>> small = CostShape.from_bytes([10, 20], [1, 1], experts=8, top_k=2, name="m")
        >>> [layer.expert_bytes for layer in small.for_trace(4, 16, 2).layers]
        [10, 10, 20, 20]
        """
        if (layers, experts) == (len(self.layers), self.experts):
            if top_k == self.top_k:
                return self
            return replace(self, name=f"{self.name} with top-{top_k}", top_k=top_k)
        own = len(self.layers)
        stretched = tuple(self.layers[layer * own // layers] for layer in range(layers))
        fixed_bytes = self.resident_bytes - sum(layer.dense_bytes for layer in self.layers)
        return replace(
            self,
            name=f"{self.name} costs on {layers}x{experts} top-{top_k}",
            layers=stretched,
            experts=experts,
            top_k=top_k,
            resident_bytes=fixed_bytes + sum(layer.dense_bytes for layer in stretched),
        )


def _check_sizes(expert_bytes: Sequence[int], dense_bytes: Sequence[int]) -> None:
    if len(expert_bytes) != len(dense_bytes):
        raise ValueError(
            f"expert_bytes has {len(expert_bytes)} layers and dense_bytes {len(dense_bytes)}; "
            "give one entry per MoE layer in both"
        )
    for layer, size in enumerate(expert_bytes):
        if size <= 0:
            raise ValueError(f"expert_bytes[{layer}]: expected a size above 0, got {size}")
    for layer, size in enumerate(dense_bytes):
        if size < 0:
            raise ValueError(f"dense_bytes[{layer}]: expected a size of 0 or more, got {size}")
