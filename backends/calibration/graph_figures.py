"""The kernels' figures under graphs, fitted as the cost model writes them: multiples of floors."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moesim.backends.calibration import sheet as write
from moesim.backends.calibration.fitting import Check, fit, fit_line
from moesim.backends.calibration.graph_points import (
    CONTEXTS,
    FEWEST_RUN,
    HELD_CONTEXTS,
    HELD_PROMPTS,
    HELD_RUNS,
    LARGE,
    PROMPTS,
    dense_name,
    head_name,
    prompt_name,
    run_name,
)
from moesim.backends.calibration.pieces import HORIZONS, LOOKING, Pieces
from moesim.backends.calibration.rates import Rates
from moesim.backends.calibration.sampling import summarise
from moesim.backends.calibration.scale import Scale
from moesim.backends.calibration.sheet import Sheet
from moesim.simulator.models.cost_shape import CostLayer

WORDS = "attention and router of a layer in one CUDA graph, experts by Triton in another"
_SECOND_NS = 1e9


class GraphFigures:
    """Fits of what some models' pieces took.

    Args:
        models: Whose pieces were timed.
        scale: Of the plain pass and product that give the rates.
    """

    def __init__(self, models: Sequence[Pieces], scale: Scale) -> None:
        self._models = models
        self._scale = scale

    def rates(self, sheet: Sheet) -> Rates:
        """Return the best rates seen: of a plain pass, or of one more expert in a run."""
        plain = Rates.of(sheet, self._scale)
        few, many = FEWEST_RUN[LARGE]
        more_ns = sheet.median(run_name(LARGE, many)) - sheet.median(run_name(LARGE, few))
        more_bytes = (many - few) * self._layers()[LARGE].expert_bytes
        return Rates(max(plain.bytes_per_s, more_bytes * _SECOND_NS / more_ns), plain.flop_per_s)

    def _layers(self) -> dict[str, CostLayer]:
        return {model.name: model.shape.cost_shape("bf16").layers[0] for model in self._models}

    def dense(self, sheet: Sheet) -> dict[str, Any]:
        """Fit heads, which read the most, then what attention pieces take beyond their weights."""
        rates, layers = self.rates(sheet), self._layers()
        heads = {model.name: model.shape.cost_shape("bf16").head_bytes for model in self._models}
        multiple, _ = fit_line(
            [rates.reading_ns(nbytes) for nbytes in heads.values()],
            [sheet.median(head_name(name)) for name in heads],
            least_slope=1.0,
        )

        def weights_ns(name: str) -> float:
            return multiple * rates.reading_ns(layers[name].dense_bytes)

        def columns(name: str, context: int) -> tuple[float, ...]:
            layer = layers[name]
            cache_ns = rates.reading_ns(context * layer.kv_bytes_per_token)
            repeated_ns = rates.reading_ns(context * layer.repeated_kv_bytes_per_token)
            return 1.0, float(layer.qk_norms), float(layer.kv_repeats), cache_ns, repeated_ns

        points = [(name, context) for name in layers for context in CONTEXTS]
        found = fit(
            list(zip(*(columns(*point) for point in points), strict=True)),
            [sheet.median(dense_name(*point)) - weights_ns(point[0]) for point in points],
        )
        checks = [
            Check(
                dense_name(name, context),
                weights_ns(name)
                + sum(a * b for a, b in zip(found, columns(name, context), strict=True)),
                sheet.median(dense_name(name, context)),
            )
            for name in layers
            for context in HELD_CONTEXTS
        ]
        source = sheet.source(
            "dense", f"{WORDS}: the first", [dense_name(*point) for point in points], checks
        )
        head = sheet.source(
            "heads", "what follows the last layer", [head_name(name) for name in heads]
        )
        fixed_ns, norm_ns, repeat_ns, cache, repeated = found
        return {
            "dense_multiple": [_multiple(multiple), head],
            "dense_fixed": [write.ns(fixed_ns), source],
            "qk_norm": [write.ns(norm_ns), source],
            "kv_repeat": [write.ns(repeat_ns), source],
            "attention_multiple": [_multiple(cache), source],
            "kv_repeat_multiple": [_multiple(repeated), source],
            "look_ahead": self._looking_figure(sheet),
        }

    def _looking_figure(self, sheet: Sheet) -> list[Any]:
        """Return by how much pieces that look ahead are longer, the median of the models."""
        pairs = [
            (dense_name(one.name, LOOKING), dense_name(one.name, CONTEXTS[0]))
            for one in self._models
        ]
        extra_ns = summarise([sheet.median(a) - sheet.median(b) for a, b in pairs]).median
        text = f"attention pieces with a look ahead of {HORIZONS} layers, less those without"
        source = sheet.source("look-ahead", text, [name for pair in pairs for name in pair])
        return [write.ns(extra_ns), source]

    def experts(self, sheet: Sheet) -> dict[str, Any]:
        """Fit runs of experts by their number, and the products of prompts by their tokens."""
        rates, layers = self.rates(sheet), self._layers()
        one_ns = {name: rates.reading_ns(layer.expert_bytes) for name, layer in layers.items()}
        points = [(name, experts) for name in one_ns for experts in FEWEST_RUN[name]]
        multiple, fixed_ns = fit_line(
            [experts * one_ns[name] for name, experts in points],
            [sheet.median(run_name(*point)) for point in points],
            least_slope=1.0,
        )
        checks = [
            Check(
                run_name(name, experts),
                multiple * experts * one_ns[name] + fixed_ns,
                sheet.median(run_name(name, experts)),
            )
            for name in one_ns
            for experts in HELD_RUNS[name]
        ]
        source = sheet.source(
            "experts", f"{WORDS}: the second", [run_name(*point) for point in points], checks
        )
        return {
            "expert_multiple": [_multiple(multiple), source],
            "expert_fixed": [write.ns(fixed_ns), source],
            "expert_compute_multiple": self._prompt_figure(sheet, rates, multiple, fixed_ns),
        }

    def _prompt_figure(
        self, sheet: Sheet, rates: Rates, multiple: float, fixed_ns: float
    ) -> list[Any]:
        """Fit the one multiple with which prompts take what they took, where products bind."""
        layers = self._layers()

        def says(model: Pieces, tokens: int, compute_multiple: float) -> float:
            layer = layers[model.name]
            read_ns = rates.reading_ns(layer.expert_bytes)
            flops = model.prompt_tokens(tokens) * layer.expert_flops_per_token
            one_ns = max(read_ns * multiple, rates.floor_ns(0, flops) * compute_multiple)
            return fixed_ns + model.experts * one_ns

        def took(model: Pieces, tokens: int) -> float:
            return sheet.median(prompt_name(model.name, tokens))

        points = [(model, tokens) for model in self._models for tokens in PROMPTS[model.name]]
        found = min(
            np.geomspace(1.0, 20.0, 400).tolist(),
            key=lambda value: sum((says(*at, value) / took(*at) - 1) ** 2 for at in points),
        )
        checks = [
            Check(prompt_name(model.name, tokens), says(model, tokens, found), took(model, tokens))
            for model in self._models
            for tokens in HELD_PROMPTS[model.name]
        ]
        names = [prompt_name(model.name, tokens) for model, tokens in points]
        source = sheet.source("prompt-experts", "grouped products of prompts", names, checks)
        return [_multiple(found), source]


def _multiple(value: float) -> str:
    return f"{min(100.0, max(1.0, value)):.4f}"
