"""What a lossy schedule looks at: who of a layer is here, and what the router thought of all.

*Here* is resident or loading: what is on its way will be there when it is computed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.errors import CapabilityError
from moesim.simulator.policies.base import RunInfo, View

# T tokens, E experts of a layer, K chosen, M top-m.
ALL_SCORES = "router_probs_TLE"
BEST_IDS = "router_top_TLM"
Changes = list[tuple[int, int | None]]
"""By place in the touch order: another expert, or None."""


def is_here(expert: int, view: View) -> bool:
    """Return whether an expert is resident or loading."""
    return view.residency.is_resident(expert) or view.residency.is_loading(expert)


def here_of(run: RunInfo, view: View) -> list[bool]:
    """Return of each expert of the layer just routed whether it is here."""
    begin = view.layer * run.experts
    return [is_here(expert, view) for expert in range(begin, begin + run.experts)]


def absent_among(chosen: Sequence[int], view: View) -> frozenset[int]:
    """Return those of the choices that are not here."""
    return frozenset(expert for expert in dict.fromkeys(chosen) if not is_here(expert, view))


def rows_of(run: RunInfo, view: View, signal: str, chosen: Sequence[int]) -> NDArray[Any]:
    """Return what the router said of each token of the layer just routed, [T, E] or [T, M].

    Raises:
        CapabilityError: It does not say it of the tokens whose choices these are.
    """
    rows = np.asarray(view.signals[signal])
    if len(rows) * run.top_k != len(chosen):
        raise CapabilityError(
            f"layer {view.layer}: {len(chosen)} choices and {len(rows)} rows of {signal}; a lossy "
            f"system needs both of every token, {run.top_k} choices each"
        )
    return rows
