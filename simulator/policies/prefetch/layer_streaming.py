"""Copy whole layers ahead, whatever the router will choose."""

from collections.abc import Iterable

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import Demand, PrefetchPolicy, RunInfo, View, Wish

__all__ = ["LayerStreaming"]


class LayerStreaming(PrefetchPolicy):
    """All experts of the layer ``step`` layers ahead, wrapping to the first of the next step.

    Streaming needs room for ``step + 1`` whole layers. The engines that do it copy a layer to its
    end whatever the router chooses; here what was not handed over when the router has chosen is
    cancelled, unless the run's window holds a whole layer.

    Args:
        step: How many layers ahead, from 1.
    """

    paper = "vLLM model_executor/offloader/prefetch.py; SGLang OffloaderV2; SE-MoE"

    def __init__(self, run: RunInfo, *, step: int = 1) -> None:
        super().__init__(run)
        if not 1 <= step < run.layers:
            raise InputError(
                f"prefetch policy layer_streaming: option step={step}: expected 1 to "
                f"{run.layers - 1}, below the model's {run.layers} MoE layers"
            )
        self._step = step

    def wants(self, demand: Demand | None, view: View) -> Iterable[Wish]:
        """Return the experts of one layer; when a step begins, those of the layers before it."""
        layers = range(self._step) if demand is None else (demand.layer + self._step,)
        for layer in layers:
            event = view.event + (1 + layer if demand is None else self._step)
            first = layer % self.run.layers * self.run.experts
            for expert in range(first, first + self.run.experts):
                yield Wish(expert, event)
