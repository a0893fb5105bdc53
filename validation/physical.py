"""What a token must take, whoever decides: the bytes that this execution moved, and what waits.

The floor of a token is its bytes at the bandwidth of copies measured right beside the execution
(before or after it, whichever was faster: a floor is what the machine can do, not what a burst let
it do), plus attention and router of every layer, the head, and one expert of each layer that waited
for a copy: a demand is known once the router has ended, so none of that runs beside copies. Where
experts are prefetched, copies and kernels may run side by side; the longer of the two is the floor.
"""

from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean

from moesim.simulator.costs import CostModel
from moesim.simulator.messages import Copy
from moesim.simulator.terms import ALL, Cause
from moesim.validation.anchoring import COPY, COPY_BYTES
from moesim.validation.machine import Executed


def fastest(before_ns: Mapping[str, int], after_ns: Mapping[str, int]) -> dict[str, int]:
    """Return the shorter time of each anchor."""
    return {name: min(before_ns[name], after_ns[name]) for name in before_ns}


def floor_ms(
    done: Executed,
    costs: CostModel,
    experts: int,
    anchors_ns: Mapping[str, int],
    counted: tuple[int, int],
) -> float | None:
    """Return the mean floor of the tokens that count, where one says something.

    None where experts moved in parts, or tokens of several requests were made together.

    Args:
        done: The execution.
        costs: Of the model's kernels on this machine.
        experts: Of a layer.
        anchors_ns: Measured beside it; without the anchor of copies the profile's time counts.
        counted: Decode tokens that do not count, and that do.
    """
    copies = sorted(
        ((begin, label) for _, label, begin, _ in done.spans or [] if isinstance(label, Copy)),
        key=lambda pair: pair[0],
    )
    if any(copy.part != ALL for _, copy in copies):
        return None
    windows = [
        (begin, end, request.prompt_tokens + token)
        for request in done.timings.requests
        for token, (begin, end) in enumerate(pairwise(request.token_ends_ns), 1)
    ]
    if any(later[0] < earlier[1] for earlier, later in pairwise(windows)):
        return None
    warm, tokens = counted
    byte_ns = anchors_ns[COPY] / COPY_BYTES if COPY in anchors_ns else None
    at, floors_ns = 0, []
    for begin_ns, end_ns, context in windows:
        while at < len(copies) and copies[at][0] < begin_ns:
            at += 1
        copy_ns, waited, overlaps = 0.0, set(), False
        while at < len(copies) and copies[at][0] < end_ns:
            layer = copies[at][1].expert // experts
            nbytes = costs.shape.layers[layer].expert_bytes
            copy_ns += costs.copy_ns(nbytes) if byte_ns is None else nbytes * byte_ns
            if copies[at][1].cause is Cause.DEMAND:
                waited.add(layer)
            else:
                overlaps = True
            at += 1
        kernels_ns = sum(
            costs.attention_ns(layer, 1, context) for layer in range(len(costs.shape.layers))
        )
        experts_ns = sum(costs.experts_gpu_ns(layer, [1]) for layer in waited)
        kernels_ns += experts_ns + costs.head_ns(1)
        floors_ns.append(max(copy_ns, kernels_ns) if overlaps else copy_ns + kernels_ns)
    return fmean(floors_ns[warm : warm + tokens]) / 1e6
