"""The VRAM of each of several GPUs: what it keeps beside experts, and how much is left for them.

``--vram`` is what each GPU gives; ``--slots`` and ``--expert-budget`` are totals, shared out evenly
as far as each GPU has room. Then the KV caches of a server get what experts leave them, on the GPU
where they lie, as on one GPU (``memory.plan``).
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import OutOfMemoryError
from moesim.simulator.memory import Fixed, MemorySpec, Server, beside_experts


def divide_vram(
    spec: MemorySpec,
    costs: CostModel,
    context_tokens: int,
    server: Server | None,
    router_L: Sequence[int],
    homed_G: Sequence[int],
) -> tuple[tuple[Fixed, ...], tuple[int, ...]]:
    """Return what each GPU keeps beside experts, and its room for experts.

    Args:
        spec: What the user said of memory.
        costs: Machine, runtime and model.
        context_tokens: Longest context of the run.
        server: What requests that run together need; None for one at a time.
        router_L: The GPU of each layer's attention.
        homed_G: Bytes of the experts that live on each.

    Raises:
        BudgetError: Nothing is left for experts.
        OutOfMemoryError: The whole does not fit.
    """
    gpus, whole = len(homed_G), beside_experts(spec, costs, context_tokens, server)
    fixed_G = _fixed(gpus, router_L, costs, whole)
    if not spec.gives_experts:
        return fixed_G, _rest(spec, costs, fixed_G, homed_G)
    if server is not None and spec.kv is None:
        fixed_G = _as_much_kv_as_fits(gpus, router_L, costs, whole, spec, homed_G)
    return fixed_G, _rooms(spec, costs, fixed_G, homed_G)


def _fixed(gpus: int, router_L: Sequence[int], costs: CostModel, whole: Fixed) -> tuple[Fixed, ...]:
    """Return what each GPU keeps of the whole: its layers, embedding or head, KV, workspace."""
    shape = costs.shape
    dense_G, layers_G = [0] * gpus, [0] * gpus
    for layer, gpu in zip(shape.layers, router_L, strict=True):
        dense_G[gpu] += layer.dense_bytes
        layers_G[gpu] += 1
    rest_bytes = whole.dense_bytes - sum(dense_G)
    head_bytes = min(shape.head_bytes, rest_bytes)
    dense_G[router_L[-1]] += head_bytes
    dense_G[router_L[0]] += rest_bytes - head_bytes
    layers = len(router_L)
    done = [0, *accumulate(layers_G)]
    kv_G = [whole.kv_bytes * b // layers - whole.kv_bytes * a // layers for a, b in pairwise(done)]
    return tuple(
        Fixed(dense_bytes, part_bytes, whole.workspace_bytes)
        for dense_bytes, part_bytes in zip(dense_G, kv_G, strict=True)
    )


def _as_much_kv_as_fits(
    gpus: int,
    router_L: Sequence[int],
    costs: CostModel,
    whole: Fixed,
    spec: MemorySpec,
    homed_G: Sequence[int],
) -> tuple[Fixed, ...]:
    """Return what each GPU keeps where KV caches get what experts leave them, as on one GPU."""
    asked_bytes = _asked(spec, costs, whole)

    def fixed_with(kv_bytes: int) -> tuple[Fixed, ...]:
        return _fixed(gpus, router_L, costs, replace(whole, kv_bytes=kv_bytes))

    def is_too_much(kv_bytes: int) -> bool:
        return sum(_limits(costs, fixed_with(kv_bytes), homed_G)) < asked_bytes

    most_bytes = bisect_left(range(1, whole.kv_bytes + 1), x=True, key=is_too_much)
    return fixed_with(most_bytes)


def _asked(spec: MemorySpec, costs: CostModel, fixed: Fixed) -> int:
    """Return the room for experts of all GPUs together that was asked for."""
    shape = costs.shape
    return spec.expert_bytes(
        experts=len(shape.layers) * shape.experts,
        largest_bytes=max(layer.expert_bytes for layer in shape.layers),
        all_bytes=shape.expert_bytes_total,
        fixed=fixed,
        usable_bytes=costs.profile.vram_usable_bytes,
    )


def _limits(costs: CostModel, fixed_G: Sequence[Fixed], homed_G: Sequence[int]) -> list[int]:
    """Return the most that experts can take of each GPU: no more than what lives there."""
    usable_bytes = costs.profile.vram_usable_bytes
    return [
        min(homed_bytes, max(0, usable_bytes - fixed.total_bytes))
        for homed_bytes, fixed in zip(homed_G, fixed_G, strict=True)
    ]


def _rest(
    spec: MemorySpec, costs: CostModel, fixed_G: Sequence[Fixed], homed_G: Sequence[int]
) -> tuple[int, ...]:
    """Return the room for experts that all else leaves on each GPU."""
    shape = costs.shape
    return tuple(
        spec.expert_bytes(
            experts=len(shape.layers) * shape.experts,
            largest_bytes=max(layer.expert_bytes for layer in shape.layers),
            all_bytes=homed_bytes,
            fixed=fixed,
            usable_bytes=costs.profile.vram_usable_bytes,
        )
        for homed_bytes, fixed in zip(homed_G, fixed_G, strict=True)
    )


def _rooms(
    spec: MemorySpec, costs: CostModel, fixed_G: Sequence[Fixed], homed_G: Sequence[int]
) -> tuple[int, ...]:
    """Return the room for experts on each GPU, of what was asked for all."""
    total_bytes, limits_G = _asked(spec, costs, fixed_G[0]), _limits(costs, fixed_G, homed_G)
    if total_bytes > sum(limits_G):
        raise OutOfMemoryError(
            f"{format_bytes(total_bytes)} of experts are asked for; beside dense weights, KV cache "
            f"and workspace the {len(fixed_G)} GPUs have room for {format_bytes(sum(limits_G))}; "
            "give fewer slots, or KV caches less room (--kv)"
        )
    return share_out(total_bytes, max(layer.expert_bytes for layer in costs.shape.layers), limits_G)


def share_out(total_bytes: int, slot_bytes: int, limits_G: Sequence[int]) -> tuple[int, ...]:
    """Divide room evenly in whole slots, up to each one's limit; a rest goes where there is room.

    >>> share_out(50, 10, [10, 100, 100])
    (10, 20, 20)
    """
    rooms_G = [0] * len(limits_G)
    left_bytes = total_bytes
    while left_bytes:
        piece_bytes = min(slot_bytes, left_bytes)
        open_G = [g for g, at in enumerate(limits_G) if rooms_G[g] + piece_bytes <= at]
        if open_G:
            gpu = min(open_G, key=rooms_G.__getitem__)
        else:
            gpu = max(range(len(limits_G)), key=lambda g: limits_G[g] - rooms_G[g])
            piece_bytes = min(piece_bytes, limits_G[gpu] - rooms_G[gpu])
        rooms_G[gpu] += piece_bytes
        left_bytes -= piece_bytes
    return tuple(rooms_G)
