"""From what a user asks for to cells: every system at every budget."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Literal

from moesim.backends.batches import batched
from moesim.backends.controllers import Deciding
from moesim.hardware_profiles import HardwareProfile, RuntimeProfile
from moesim.simulator import registry, systems
from moesim.simulator.commands.policies import Choice, choose_policies
from moesim.simulator.errors import InputError, UnknownNameError
from moesim.simulator.registry import Axis
from moesim.traces import RoutingTrace
from moesim.validation.evidence import Cell

Routing = Literal["forced", "own"]
Batching = tuple[int | None, int | None]
"""What ``--max-batch`` and ``--chunk`` say."""
ALONE: Batching = (None, None)


def choose_system(text: str) -> Choice:
    """Return the policies of a system's name or file, or of ``cache[+prefetch[+schedule]]``.

    >>> choose_system("lru+next_gate:horizon=1").policies["prefetch"]
    'next_gate:horizon=1'

    Raises:
        InputError: Neither a system nor policies are called so.
    """
    if text in systems.names() or text.endswith((".yaml", ".yml")):
        return choose_policies(text, None, None, None, None, ())
    parts = text.split("+")
    if len(parts) > len(registry.AXES):
        raise InputError(f"--system {text}: give a system, or cache+prefetch+schedule")
    cache, prefetch, schedule = [*parts, None, None][: len(registry.AXES)]
    known = {*systems.names(), *registry.names("cache")}
    name = "" if cache is None else cache.partition("/")[0].partition(":")[0]
    if cache is not None and name not in known and ".py" not in cache:
        raise UnknownNameError("system or cache policy", cache, known)
    chosen = choose_policies(None, None, cache, prefetch, schedule, ())
    return Choice(chosen.policies, chosen.runtime, text)


def split_list(option: str, text: str) -> list[str]:
    """Return the items of a comma-separated option; a comma before ``key=`` belongs to the item.

    >>> split_list("--system", "lru,lru+next_gate:horizon=1,width=4,on-demand")
    ['lru', 'lru+next_gate:horizon=1,width=4', 'on-demand']

    Raises:
        InputError: One is empty or given twice.
    """
    items: list[str] = []
    for piece in text.split(","):
        is_option = (
            items and ":" in items[-1] and "=" in piece and "+" not in piece.partition("=")[0]
        )
        if is_option and ":" not in piece:
            items[-1] += f",{piece}"
        else:
            items.append(piece.strip())
    for item in items:
        if not item or items.count(item) > 1:
            what = f"'{item}' is given twice" if item else "an item is empty"
            raise InputError(f"{option} {text}: {what}; separate different ones by commas")
    return items


def policies_of(cell: Cell) -> dict[Axis, str]:
    """Return a cell's policies by axis."""
    return {"cache": cell.cache, "prefetch": cell.prefetch, "schedule": cell.schedule}


def is_slots(budget: str) -> bool:
    """Return whether a budget is room for experts, a number or a share, not a size of VRAM."""
    return budget.endswith("%") or budget.isdecimal()


def profile_hash(machine: HardwareProfile, runtime: RuntimeProfile) -> str:
    """Return a hash of every figure of a machine and a runtime."""
    tree = [profile.model_dump(mode="json") for profile in (machine, runtime)]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def check_disjoint(fitted: RoutingTrace, tested: RoutingTrace) -> None:
    """Refuse a request that is both fitted on and tested.

    Raises:
        InputError: There is one; its number in the tested trace is named.
    """
    seen = {fitted.select_requests([n]).expert_TLK[:].tobytes() for n in range(fitted.requests)}
    for number in range(tested.requests):
        if tested.select_requests([number]).expert_TLK[:].tobytes() in seen:
            raise InputError(
                f"request {number} of the tested trace was fitted on; a claim is made on others"
            )


def make_cell(
    choice: Choice,
    budget: str,
    budget_bytes: int,
    *,
    backend: str,
    profiles: tuple[HardwareProfile, RuntimeProfile],
    fit_traces: Sequence[str],
    model: str,
    trace: RoutingTrace,
    trace_name: str,
    routing: Routing,
    lengths: tuple[int, int, int],
    batching: Batching = ALONE,
    arrivals: tuple[str, int] | None = None,
    ask_ns: Mapping[str, int] | None = None,
) -> Cell:
    """Return one cell.

    Args:
        choice: The system.
        budget: As the user gave it, and in bytes for experts.
        budget_bytes: The same in bytes.
        backend: Of the machine.
        profiles: Of the machine and its runtime.
        fit_traces: Hashes of the traces that the profiles were fitted on.
        model: What executes.
        trace: The requests that are served.
        trace_name: What evidence calls it.
        routing: Forced from the trace, or the model's own.
        lengths: Warm tokens, tokens that count, executions.
        batching: Requests that run together, prompt tokens of a step.
        arrivals: Who comes when, and the seed; what is decided then depends on times.
        ask_ns: How long what its policies ask for takes.
    """
    hardware, runtime = profiles
    warm_tokens, tokens, repeats = lengths
    trace_hash = trace.content_hash()
    deciding = Deciding(policies=choice.policies, budget_bytes=budget_bytes)
    return Cell(
        backend=backend,
        hardware=hardware.name,
        runtime=runtime.name,
        profile_hash=profile_hash(hardware, runtime),
        fit_traces=tuple(fit_traces),
        model=model,
        trace=trace_name,
        trace_hash=trace_hash,
        system=choice.system,
        **{str(axis): text for axis, text in batched(choice.policies, *batching).items()},
        timing_free=deciding.timing_free and arrivals is None,
        budget=budget,
        expert_budget_bytes=budget_bytes,
        routing=routing,
        warm_tokens=warm_tokens,
        tokens=tokens,
        repeats=repeats,
        held_out=trace_hash not in fit_traces,
        moesim=version("moesim"),
        arrivals=None if arrivals is None else arrivals[0],
        seed=None if arrivals is None else arrivals[1],
        ask_ns=None if ask_ns is None else dict(ask_ns),
    )
