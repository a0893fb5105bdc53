"""When each signal of a trace is told: never before the event from which it is known.

A signal declares in the trace's header the event at which its values exist. A driver learns of
events only when it reports, so they are told at the first fact after that event:

    request_arrived   with each step of the request, one value per request
    step_begin        when the step begins, one value per token
    layer_routed      with the router's choice of the same layer, one value per token
    layer_end         with the router's choice of the next layer; past the last, with the next step
    step_end          when the request's next step begins
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.errors import CapabilityError
from moesim.traces import RoutingTrace
from moesim.traces.schema import first_axis

Rows = tuple[int, int]
"""First and last + 1 of a request's rows."""


class RequestSignals:
    """The signals of one request, read as they are told.

    Args:
        trace: Where they are.
        request: Whose they are.
        rows: The request's rows in the trace.
        names: Those to tell.

    Raises:
        CapabilityError: A signal of one layer's event has no axis of layers.
    """

    def __init__(
        self,
        trace: RoutingTrace,
        request: int,
        rows: slice | NDArray[np.int64],
        names: Sequence[str],
    ) -> None:
        self.names = tuple(names)
        self._known_at = {name: trace.header.signals[name].known_at for name in names}
        self._values: dict[str, np.ndarray[Any, Any]] = {}
        for name in names:
            axes = name.rpartition("_")[2]
            if self._known_at[name].startswith("layer") and not axes.startswith("TL"):
                raise CapabilityError(
                    f"signal '{name}' is known at {self._known_at[name]} and has no axis of layers"
                )
            values = trace.signals[name]
            self._values[name] = (
                np.asarray(values)[request : request + 1]
                if first_axis(name) == "R"
                else values[rows]
            )

    def at_step(self, rows: Rows, before: Rows | None) -> dict[str, list[Any]]:
        """Return what is known when a step begins; ``before`` are the rows of the step before."""
        told: dict[str, list[Any]] = {}
        for name, known_at in self._known_at.items():
            values = self._values[name]
            if known_at == "request_arrived":
                told[name] = values.tolist()
            elif known_at == "step_begin":
                told[name] = values[slice(*rows)].tolist()
            elif before is not None and known_at == "step_end":
                told[name] = values[slice(*before)].tolist()
            elif before is not None and known_at == "layer_end":
                told[name] = values[slice(*before), -1].tolist()
        return told

    def at_layer(self, layer: int, rows: Rows) -> dict[str, list[Any]]:
        """Return what is known when a layer has been routed."""
        told: dict[str, list[Any]] = {}
        for name, known_at in self._known_at.items():
            if known_at == "layer_routed":
                told[name] = self._values[name][slice(*rows), layer].tolist()
            elif known_at == "layer_end" and layer > 0:
                told[name] = self._values[name][slice(*rows), layer - 1].tolist()
        return told


def merge(parts: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Return the signals of several requests as one, in the order of the requests.

    A signal that some of them do not have yet is told by none.
    """
    if len(parts) == 1:
        return parts[0]
    common = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: [value for part in parts for value in part[name]] for name in common}
