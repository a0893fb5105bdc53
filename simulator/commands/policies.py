"""How ``--system`` and the options of the three axes become one choice of policies."""

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.simulator import registry
from moesim.simulator.errors import InputError
from moesim.simulator.registry import Axis

DEFAULTS: dict[Axis, str] = {"cache": "lru", "prefetch": "none", "schedule": "resident_first"}
DEFAULT_RUNTIME = "moesim-graph"


@dataclass(frozen=True, slots=True)
class Choice:
    """A policy for each axis, the runtime, and what the results call the whole."""

    policies: dict[Axis, str]
    runtime: str
    system: str


def choose_policies(
    system: str | None,
    runtime: str | None,
    cache: str | None,
    prefetch: str | None,
    schedule: str | None,
    modules: Sequence[str],
) -> Choice:
    """Combine a system with what overrides it.

    Args:
        system: Name or file of a bundle.
        runtime: Overrides the system's own.
        cache: Overrides the system's own.
        prefetch: Overrides the system's own.
        schedule: Overrides the system's own.
        modules: Specs of policies from elsewhere; each takes the axis of its class.

    Raises:
        InputError: Two policies are given for one axis.
    """
    given: dict[Axis, str | None] = {"cache": cache, "prefetch": prefetch, "schedule": schedule}
    for module in modules:
        axis = registry.axis_of(module)
        if given[axis] is not None:
            raise InputError(
                f"--policy-module {module} is a {axis} policy; --{axis} {given[axis]} is given too"
            )
        given[axis] = module
    chosen = {axis: text for axis, text in given.items() if text is not None}
    if system is None:
        return Choice({**DEFAULTS, **chosen}, runtime or DEFAULT_RUNTIME, "custom")
    from moesim.simulator.systems import load

    bundle = load(system)
    name = bundle.name if not chosen else f"{bundle.name} with {', '.join(chosen)} changed"
    own: dict[Axis, str] = {
        "cache": bundle.cache,
        "prefetch": bundle.prefetch,
        "schedule": bundle.schedule,
    }
    return Choice({**own, **chosen}, runtime or bundle.runtime or DEFAULT_RUNTIME, name)
