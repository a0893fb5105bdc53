"""Which experts of a new set are worth bringing in, one against one of those held."""

from collections.abc import Iterable, Sequence

from moesim.simulator.policies.base import RunInfo
from moesim.simulator.policies.quotas import Scope

__all__ = ["paying"]


def paying(
    run: RunInfo,
    new: Iterable[int],
    gone: Iterable[int],
    demands: Sequence[float],
    *,
    prompts: int,
    scope: Scope,
) -> dict[int, int]:
    """Return which experts are worth an exchange, and for which of those that are held.

    In each pool the most demanded of the new goes against the least demanded of those held, the
    next against the next, and so on. An exchange pays if it is expected to save more bytes than it
    moves. One by a larger expert, for which there may be no room, is left out.

    Args:
        run: Sizes and layers.
        new: Experts that are wanted.
        gone: Experts that are held and not wanted.
        demands: What a prompt is expected to demand of every expert.
        prompts: How many prompts the saving is counted over.
        scope: Whether a layer's experts change places among themselves only.
    """
    span = run.experts if scope == "per_layer" else run.layers * run.experts

    def pools(experts: Iterable[int], sign: int) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for expert in sorted(experts, key=lambda e: (sign * demands[e], e)):
            found.setdefault(expert // span, []).append(expert)
        return found

    def pays(one: int, other: int) -> bool:
        size, freed = run.size(one), run.size(other)
        saved = demands[one] * size - demands[other] * freed
        return size <= freed and prompts * saved > size

    held = pools(gone, 1)
    return {
        one: other
        for at, ones in sorted(pools(new, -1).items())
        for one, other in zip(ones, held.get(at, ()), strict=False)
        if pays(one, other)
    }
