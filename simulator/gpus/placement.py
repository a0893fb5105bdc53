"""Which GPU of a host is an expert's home: where it is cached, copied to and run.

A placement is a pure function of the model's shape and, where it counts, of a profile trace. It is
fixed for a run. Whole layers in turn make a pipeline (``by_layer``); the others spread the experts
of each layer over all GPUs, as many on each as on any other, and at most one more.

A layer ends when its slowest GPU does, so what is chosen together is kept apart, for its copies to
come over several links at once. (Placements for experts that are all resident keep it together
instead, to exchange less.)

L MoE layers, E experts of a layer, T tokens, K chosen.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.errors import CapabilityError, InputError, UnknownNameError
from moesim.simulator.workload.foresight import CHUNK_ROWS, popularity
from moesim.traces import RoutingTrace

PLACEMENTS = ("round_robin", "by_load", "by_layer", "by_coactivation")
"""The names of all placements, the default first."""

COUNTED = frozenset({"by_load", "by_coactivation"})
"""Those that count what a profile trace chose."""


def check_name(name: str) -> None:
    """Refuse a placement that there is not.

    Raises:
        UnknownNameError: One line with those there are.
    """
    if name not in PLACEMENTS:
        raise UnknownNameError("placement", name, PLACEMENTS)


def place(
    name: str, layers: int, experts: int, gpus: int, profile_trace: RoutingTrace | None = None
) -> tuple[int, ...]:
    """Return the home of each expert, by its number.

    Args:
        name: One of `PLACEMENTS`.
        layers: L.
        experts: E.
        gpus: How many there are.
        profile_trace: Another recording of the model, of that shape.

    Raises:
        UnknownNameError: There is no such placement.
        InputError: There are fewer layers to place than GPUs.
        CapabilityError: It counts, and there is no profile trace.

    >>> place("round_robin", 2, 4, 3)
    (0, 1, 2, 0, 1, 2, 0, 1)
    >>> place("by_layer", 4, 2, 2)
    (0, 0, 0, 0, 1, 1, 1, 1)
    """
    check_name(name)
    if name == "by_layer" and layers < gpus:
        raise InputError(
            f"--gpus {gpus} --placement by_layer: {layers} layers are too few for so many GPUs"
        )
    if name == "by_layer":
        return tuple(layer * gpus // layers for layer in range(layers) for _ in range(experts))
    if name == "round_robin":
        return tuple(expert % gpus for expert in range(layers * experts))
    if profile_trace is None:
        raise CapabilityError(
            f"placement {name} counts what another trace of the model chose; give it with "
            "--profile-trace TRACE, or take --placement round_robin"
        )
    loads_LE = popularity(profile_trace)
    together_LEE = np.zeros((layers, experts, experts), np.int64)
    if name == "by_coactivation":
        together_LEE = coactivations(profile_trace)
    homes: list[int] = []
    totals_G = [0] * gpus
    for layer in range(layers):
        homes += _spread(loads_LE[layer], together_LEE[layer], totals_G)
    return tuple(homes)


def coactivations(trace: RoutingTrace) -> NDArray[np.int64]:
    """Return how often a token chose both a and b in layer l: counts[l, a, b], symmetric."""
    counts_LEE = np.zeros((trace.layers, trace.experts, trace.experts), np.int64)
    for begin in range(0, trace.tokens, CHUNK_ROWS):
        rows_TLK = np.asarray(trace.expert_TLK[begin : begin + CHUNK_ROWS])
        for layer in range(trace.layers):
            for i, j in combinations(range(trace.top_k), 2):
                a_T, b_T = rows_TLK[:, layer, i], rows_TLK[:, layer, j]
                known = (a_T >= 0) & (b_T >= 0)
                np.add.at(counts_LEE[layer], (a_T[known], b_T[known]), 1)
    return counts_LEE + counts_LEE.transpose(0, 2, 1)


def _spread(
    loads_E: NDArray[np.int64], together_EE: NDArray[np.int64], totals_G: list[int]
) -> Sequence[int]:
    """Return the homes of one layer's experts.

    The most used first, each goes where it is least often chosen with those there, then where the
    load is least, then to the first; in each round every GPU gets one. Those of a last round that
    is not whole go to GPUs with the fewest of all layers.

    Args:
        loads_E: How often each was chosen.
        together_EE: How often each two were, by one token.
        totals_G: Experts of the layers before on each GPU; this layer's are added.
    """
    experts, gpus = len(loads_E), len(totals_G)
    homes = [-1] * experts
    members: list[list[int]] = [[] for _ in range(gpus)]
    loads_G = [0] * gpus
    for turn, expert in enumerate(sorted(range(experts), key=lambda e: (-loads_E[e], e))):
        is_last = turn >= experts - experts % gpus
        ranks = [
            (
                totals_G[gpu] if is_last else 0,
                int(together_EE[expert, members[gpu]].sum()),
                loads_G[gpu],
                gpu,
            )
            for gpu in range(gpus)
            if len(members[gpu]) <= turn // gpus
        ]
        home = min(ranks)[-1]
        homes[expert] = home
        members[home].append(expert)
        loads_G[home] += int(loads_E[expert])
    for gpu, mine in enumerate(members):
        totals_G[gpu] += len(mine)
    return homes
