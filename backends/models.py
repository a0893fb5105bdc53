"""The seam into transformers: where a model's routers and experts are, and how it selects.

Every MoE family of transformers 5 that can be served here has the same two modules in each MoE
block: a router whose forward returns ``(logits, gates, ids)`` and an experts module called with
``(hidden, ids, gates)``. They are found by that shape. The one table of this file says what a
router's class does between logits and ids; a router that it does not list can be recorded, but
nothing is claimed about its rule.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from moesim.simulator.errors import InputError
from moesim.traces import SelectionRule

# L MoE layers, E experts of a layer.
# transformers' classes differ by family and carry attributes that no base class declares.
Model = Any
Router = Any
Score = Literal["softmax", "sigmoid"]
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
REFUSED = {
    "Llama4TextMoe": (
        "Llama 4 computes all its experts densely, and its router returns scores of all of them"
    ),
}


class ModelError(InputError):
    """A model cannot be used; one line names it, the reason and what would do."""


@dataclass(frozen=True)
class MoeLayer:
    """One MoE block.

    Attributes:
        layer_id: Index of the layer in the decoder.
        decoder_layer: The whole layer.
        norm: What the block's input went through after the attention was added; None where the
            layer has no ``post_attention_layernorm``.
        router: Returns ``(logits, gates, ids)``.
        experts: Called with ``(hidden, ids, gates)``.
    """

    layer_id: int
    decoder_layer: nn.Module
    norm: nn.Module | None
    router: nn.Module
    experts: nn.Module


@dataclass(frozen=True)
class MoeParts:
    """What a recorder or a backend needs to know of a model.

    Attributes:
        layers: The MoE blocks, in order.
        experts: Routed experts of a layer.
        top_k: Experts chosen for a token.
        score: What makes probabilities of logits; None for a router that isn't in the table.
        selection: The rule from probabilities to ids and gates; None where it is not of the form
            that `SelectionRule` can say.
    """

    layers: tuple[MoeLayer, ...]
    experts: int
    top_k: int
    score: Score | None
    selection: SelectionRule | None


def _softmax(router: Router) -> SelectionRule:
    return SelectionRule(score="softmax", normalise=bool(getattr(router, "norm_topk_prob", True)))


def _deepseek_v2(router: Router) -> SelectionRule:
    grouped = router.topk_method == "group_limited_greedy"
    return SelectionRule(
        score="softmax",
        normalise=False,
        scale=router.routed_scaling_factor,
        groups=router.num_group if grouped else 1,
        groups_kept=router.topk_group if grouped else 1,
    )


def _deepseek_v3(router: Router) -> SelectionRule:
    return SelectionRule(
        score="sigmoid",
        normalise=bool(router.norm_topk_prob),
        scale=router.routed_scaling_factor,
        groups=router.num_group,
        groups_kept=router.topk_group,
        group_score="top2_sum",
    )


def _sparsemixer(router: Router) -> None:
    """Phi-MoE masks by a threshold and takes each gate from a softmax of its own."""
    del router


# gpt-oss takes the softmax of the chosen logits: the same gates as normalised probabilities.
ROUTERS: dict[str, tuple[Score, Callable[[Router], SelectionRule | None]]] = {
    "MixtralTopKRouter": ("softmax", _softmax),
    "Qwen2MoeTopKRouter": ("softmax", _softmax),
    "Qwen3MoeTopKRouter": ("softmax", _softmax),
    "Qwen3NextTopKRouter": ("softmax", _softmax),
    "OlmoeTopKRouter": ("softmax", _softmax),
    "GptOssTopKRouter": ("softmax", _softmax),
    "DeepseekV2TopkRouter": ("softmax", _deepseek_v2),
    "DeepseekV3TopkRouter": ("sigmoid", _deepseek_v3),
    "PhimoeTopKRouter": ("softmax", _sparsemixer),
}


def find_moe(model: Model) -> MoeParts:
    """Find the MoE blocks of a transformers model.

    Raises:
        ModelError: There are none, they differ in shape, or the family is refused.
    """
    name = type(model).__name__
    layers = tuple(_find_layers(model))
    if not layers:
        raise ModelError(f"{name}: no MoE layer found; give a Mixture-of-Experts model")
    shapes = {
        (_whole(layer.router, "num_experts"), _whole(layer.router, "top_k")) for layer in layers
    }
    if len(shapes) != 1:
        raise ModelError(f"{name}: layers differ in (experts, top-k): {sorted(shapes)}")
    experts, top_k = shapes.pop()
    router = layers[0].router
    score, rule_of = ROUTERS.get(type(router).__name__, (None, _sparsemixer))
    selection = rule_of(router)
    if selection is not None and hasattr(router, "e_score_correction_bias"):
        routers: list[Router] = [layer.router for layer in layers]
        bias_LE = tuple(tuple(each.e_score_correction_bias.tolist()) for each in routers)
        selection = selection.model_copy(update={"bias_LE": bias_LE})
    return MoeParts(layers, experts, top_k, score, selection)


def _find_layers(model: Model) -> list[MoeLayer]:
    modules = dict(model.named_modules())
    found = []
    for path, block in modules.items():
        children = dict(block.named_children())
        router = children.get("gate", children.get("router"))
        if "experts" not in children or router is None:
            continue
        kind = type(block).__name__
        if kind in REFUSED:
            raise ModelError(f"{type(model).__name__}: {REFUSED[kind]}; not supported")
        place = LAYER.search(path + ".")
        if place is None:
            raise ModelError(f"{type(model).__name__}: MoE block {path!r} is in no numbered layer")
        decoder_layer = modules[path[: place.end() - 1]]
        found.append(
            MoeLayer(
                layer_id=int(place.group(1)),
                decoder_layer=decoder_layer,
                norm=getattr(decoder_layer, "post_attention_layernorm", None),
                router=router,
                experts=children["experts"],
            )
        )
    return sorted(found, key=lambda layer: layer.layer_id)


def _whole(module: nn.Module, key: str) -> int:
    value = getattr(module, key, None)
    if not isinstance(value, int):
        raise ModelError(
            f"{type(module).__name__}: the router has no whole number {key!r};"
            f" routers known: {sorted(ROUTERS)}"
        )
    return value


def expert_bytes(layer: MoeLayer, bytes_per_parameter: int | None = None) -> tuple[int, int]:
    """Return the bytes of one expert and of all else in the decoder layer.

    Args:
        layer: One of `find_moe`.
        bytes_per_parameter: As the weights are stored; None takes each as it is in memory.
    """

    def size_bytes(module: nn.Module) -> int:
        return sum(
            parameter.numel() * (bytes_per_parameter or parameter.element_size())
            for parameter in module.parameters()
        )

    in_experts = size_bytes(layer.experts)
    experts = _whole(layer.router, "num_experts")
    return in_experts // experts, size_bytes(layer.decoder_layer) - in_experts
