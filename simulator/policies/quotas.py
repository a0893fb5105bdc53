"""How a budget is shared among layers, for the policies that keep a cache for each."""

from typing import Literal

from moesim.simulator.policies.base import RunInfo

Scope = Literal["global", "per_layer"]


def split(run: RunInfo, scope: Scope, reserved_bytes: int = 0) -> list[int] | None:
    """Return each layer's bytes, or None for one pool over all layers.

    Shares are equal in slots; slots left over go to the first layers, one each. With experts of
    unequal size the shares are equal in bytes.
    """
    if scope == "global":
        return None
    budget_bytes = run.budget_bytes - reserved_bytes
    if not run.equal_experts:
        return [budget_bytes // run.layers] * run.layers
    size = run.expert_bytes_L[0]
    each, left = divmod(budget_bytes // size, run.layers)
    return [(each + (layer < left)) * size for layer in range(run.layers)]
