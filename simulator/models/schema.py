"""The shape of a Mixture-of-Experts model: enough to know its bytes and products, no weights.

Routed experts are what offloading moves. Everything else (attention, router, shared experts, dense
layers, embedding, head) is *dense* here: it always stays in VRAM.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from moesim.hardware_profiles import ProfileError
from moesim.hardware_profiles.figures import Count, NamedFile, Strict
from moesim.simulator.models.attention import Attention, Matrix
from moesim.simulator.models.cost_shape import CostLayer, CostShape
from moesim.simulator.models.formats import Format, Storage, weight_format

_SMALL_BYTES = 2
_FLOPS = 2


def _known_format(name: object) -> str:
    return weight_format(str(name)).name


FormatName = Annotated[str, BeforeValidator(_known_format)]


class SharedExperts(Strict):
    """Experts that every token uses.

    Attributes:
        count: How many.
        width: Of each.
        gate: Whether a sigmoid gate of its own scales their sum.
    """

    count: Count
    width: Count
    gate: bool = False


class ModelShape(NamedFile):
    """A model, as its public configuration describes it.

    Attributes:
        hf_id: Its id on the Hugging Face hub.
        aliases: Other ways in which traces write its name.
        formats: What its users run, the usual one first.
        decoder_layers: All layers, those without experts included.
        moe_layers: Decoder layers with experts. In a file also ``all``, or ``{from: 1}``.
        experts: Routed experts of a layer (E).
        top_k: Chosen per token (K).
        hidden: Width of the residual stream (D).
        expert_width: Inner width of one routed expert.
        dense_width: Inner width of the layers without experts.
        gated: Three matrices (gate, up, down), else two.
        expert_biases: Whether experts and router have biases.
        norm_biases: Whether norms do.
        head_bias: Whether the LM head does.
        tied_embeddings: Whether the LM head is the embedding.
    """

    hf_id: str
    aliases: tuple[str, ...] = ()
    formats: tuple[FormatName, ...] = Field(min_length=1)
    decoder_layers: Count
    moe_layers: tuple[int, ...] = Field(min_length=1)
    experts: Count
    top_k: Count
    hidden: Count
    expert_width: Count
    dense_width: Count | None = None
    shared: SharedExperts | None = None
    gated: bool = True
    expert_biases: bool = False
    norm_biases: bool = False
    head_bias: bool = False
    vocab: Count
    tied_embeddings: bool = False
    attention: Attention

    @model_validator(mode="before")
    @classmethod
    def _spell_out_layers(cls, data: Any) -> Any:  # noqa: ANN401  # whatever the file holds
        """Turn ``all`` and ``{from: n}`` into a list of layers."""
        if not isinstance(data, Mapping) or not str(data.get("decoder_layers")).isdecimal():
            return data
        rule, count = data.get("moe_layers"), int(data["decoder_layers"])
        if rule == "all":
            return {**data, "moe_layers": tuple(range(count))}
        if isinstance(rule, Mapping) and set(rule) == {"from"} and str(rule["from"]).isdecimal():
            return {**data, "moe_layers": tuple(range(int(rule["from"]), count))}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.moe_layers) != sorted(set(self.moe_layers)):
            raise ProfileError(f"moe_layers: expected growing numbers, got {self.moe_layers}")
        if not 0 <= self.moe_layers[0] <= self.moe_layers[-1] < self.decoder_layers:
            raise ProfileError(
                f"moe_layers: expected layers of 0 to {self.decoder_layers - 1}, "
                f"got {self.moe_layers}"
            )
        if self.top_k > self.experts:
            raise ProfileError(f"top_k: expected at most {self.experts} experts, got {self.top_k}")
        if len(self.moe_layers) < self.decoder_layers and self.dense_width is None:
            raise ProfileError("dense_width: missing; layers without experts need it")
        return self

    @property
    def expert_parameters(self) -> int:
        """Parameters of one routed expert."""
        return _elements(self._expert_matrices()) + self._expert_bias_elements

    @property
    def parameters(self) -> int:
        """All parameters, embedding and head included."""
        layers = sum(
            _elements(self._dense_matrices(layer)) + self._small_elements(layer)
            for layer in range(self.decoder_layers)
        )
        experts = len(self.moe_layers) * self.experts * self.expert_parameters
        tables = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        return layers + experts + tables + self._final_elements

    @property
    def active_parameters(self) -> int:
        """Parameters that one token uses, embedding and head included."""
        idle = len(self.moe_layers) * (self.experts - self.top_k) * self.expert_parameters
        return self.parameters - idle

    @property
    def expert_flops_per_token(self) -> int:
        """Products and sums of one routed expert for one token."""
        return _FLOPS * _elements(self._expert_matrices())

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one position over all layers, 16 bits each."""
        return self.decoder_layers * self.attention.kv_bytes_per_token

    def expert_bytes(self, format_name: str | None = None) -> int:
        """Return the bytes of one routed expert; the format is the model's usual one if None.

        >>> from moesim.simulator.models import load
        >>> load("mixtral-8x7b").expert_bytes("bf16") // 2**20
        336
        """
        storage = self._format(format_name).expert
        return _bytes(self._expert_matrices(), storage) + _SMALL_BYTES * self._expert_bias_elements

    def layer_dense_bytes(self, layer: int, format_name: str | None = None) -> int:
        """Return the bytes of decoder layer `layer` without its routed experts."""
        storage = self._format(format_name).dense
        router = _SMALL_BYTES * self._router_elements(layer)
        matrices = _bytes(self._quantised_matrices(layer), storage)
        return matrices + router + _SMALL_BYTES * self._small_elements(layer)

    def dense_bytes(self, format_name: str | None = None) -> int:
        """Return the bytes of all that is no routed expert, embedding and head included."""
        layers = sum(
            self.layer_dense_bytes(layer, format_name) for layer in range(self.decoder_layers)
        )
        tables = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        return layers + _SMALL_BYTES * (tables + self._final_elements)

    def total_bytes(self, format_name: str | None = None) -> int:
        """Return the bytes of the whole model."""
        experts = len(self.moe_layers) * self.experts * self.expert_bytes(format_name)
        return self.dense_bytes(format_name) + experts

    def cost_shape(self, format_name: str | None = None) -> CostShape:
        """Return what the cost model needs, in one format."""
        chosen = self._format(format_name)
        layers, first = [], 0
        for moe_layer in self.moe_layers:
            layers.append(self._cost_layer(range(first, moe_layer + 1), chosen))
            first = moe_layer + 1
        trailing = self._cost_layer(range(first, self.decoder_layers), chosen)
        head_elements = self.vocab * self.hidden
        return CostShape(
            name=f"{self.name} {chosen.name}",
            layers=tuple(layers),
            experts=self.experts,
            top_k=self.top_k,
            hidden=self.hidden,
            head_bytes=trailing.dense_bytes + _SMALL_BYTES * (head_elements + self._final_elements),
            head_flops_per_token=trailing.dense_flops_per_token + _FLOPS * head_elements,
            resident_bytes=self.dense_bytes(chosen.name),
            weight_format=chosen.name,
            window_tokens=self.attention.window_tokens,
        )

    def _cost_layer(self, decoder_layers: range, chosen: Format) -> CostLayer:
        """Return the last of these layers with the dense layers before it folded in."""
        windowed = sum(layer in self.attention.windowed_layers for layer in decoder_layers)
        full = len(decoder_layers) - windowed
        return CostLayer(
            expert_bytes=self.expert_bytes(chosen.name),
            expert_flops_per_token=self.expert_flops_per_token,
            dense_bytes=sum(self.layer_dense_bytes(layer, chosen.name) for layer in decoder_layers),
            dense_flops_per_token=_FLOPS
            * sum(_elements(self._dense_matrices(layer)) for layer in decoder_layers),
            kv_bytes_per_token=full * self.attention.kv_bytes_per_token,
            attention_flops_per_pair=full * self.attention.flops_per_pair,
            windowed_kv_bytes_per_token=windowed * self.attention.kv_bytes_per_token,
            windowed_flops_per_pair=windowed * self.attention.flops_per_pair,
            qk_norms=len(decoder_layers) * self.attention.normalises_qk,
            kv_repeats=len(decoder_layers) * (self.attention.repeated_kv_bytes_per_token > 0),
            repeated_kv_bytes_per_token=full * self.attention.repeated_kv_bytes_per_token,
        )

    def _format(self, name: str | None) -> Format:
        return weight_format(self.formats[0] if name is None else name)

    def _feed_forward(self, width: int) -> Iterator[Matrix]:
        yield from [(width, self.hidden)] * (2 if self.gated else 1)
        yield self.hidden, width

    def _expert_matrices(self) -> Iterator[Matrix]:
        return self._feed_forward(self.expert_width)

    def _quantised_matrices(self, layer: int) -> Iterator[Matrix]:
        """Yield the large matrices of a layer that are no routed expert."""
        yield from self.attention.matrices(self.hidden)
        if layer not in self.moe_layers:
            yield from self._feed_forward(self.dense_width or 0)
        elif self.shared is not None:
            for _ in range(self.shared.count):
                yield from self._feed_forward(self.shared.width)

    def _dense_matrices(self, layer: int) -> Iterator[Matrix]:
        """Yield all matrices of a layer that are no routed expert, the router included."""
        yield from self._quantised_matrices(layer)
        if layer in self.moe_layers:
            yield self.experts, self.hidden
            if self.shared is not None and self.shared.gate:
                yield 1, self.hidden

    def _router_elements(self, layer: int) -> int:
        return _elements(self._dense_matrices(layer)) - _elements(self._quantised_matrices(layer))

    def _small_elements(self, layer: int) -> int:
        """Return a layer's parameters that are in no matrix."""
        norms = 2 * self._norm_elements
        router = self.experts if self.expert_biases and layer in self.moe_layers else 0
        return norms + router + self.attention.small_parameters(self.hidden)

    @property
    def _norm_elements(self) -> int:
        return self.hidden * (2 if self.norm_biases else 1)

    @property
    def _final_elements(self) -> int:
        return self._norm_elements + (self.vocab if self.head_bias else 0)

    @property
    def _expert_bias_elements(self) -> int:
        if not self.expert_biases:
            return 0
        return (2 if self.gated else 1) * self.expert_width + self.hidden


def _elements(matrices: Iterator[Matrix]) -> int:
    return sum(rows * columns for rows, columns in matrices)


def _bytes(matrices: Iterator[Matrix], storage: Storage) -> int:
    return sum(storage.matrix_bytes(rows, columns) for rows, columns in matrices)
