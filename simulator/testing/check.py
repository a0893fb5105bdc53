"""One call that puts a policy through everything that moesim promises of policies.

`check_policy` serves tiny traces under the adversarial driver, with plain companions and with bad
ones, at the tightest budget that the policy accepts and at a roomy one; the `Witness` checks laws
1 to 6 on the way. Then it holds the policy to its own promises (``promises.py``).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns

from moesim.simulator import registry
from moesim.simulator.errors import (
    BudgetError,
    CapabilityError,
    InputError,
    MoesimError,
    PolicyError,
    UnknownNameError,
)
from moesim.simulator.messages import Fact, LayerRouted
from moesim.simulator.policies.base import Policy
from moesim.simulator.registry import AXES, Axis, PolicySpec
from moesim.simulator.run_spec import GRANTS
from moesim.simulator.runs import Prepared
from moesim.simulator.testing.promises import (
    check_nothing_shared,
    check_options,
    check_same_answers,
    check_tie_order,
    check_timing_free,
)
from moesim.simulator.testing.settings import BAD, PLAIN, driven, run_beside
from moesim.simulator.testing.small_runs import AnyPolicy, as_spec, counted
from moesim.simulator.testing.tiny import tiny_trace
from moesim.traces import RoutingTrace


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """What `check_policy` found; it has passed if there is one.

    Attributes:
        policy: The spec.
        axis: Its axis.
        slots: The tightest room it was run in, in experts.
        runs: How many runs were driven.
        us_per_event: Decision time of one layer event in a plain run, controller included.
        skipped: Checks that do not apply, and why.
    """

    policy: str
    axis: Axis
    slots: int
    runs: int
    us_per_event: float
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = (
            f"{self.axis} policy {self.policy}: {self.runs} runs, from {self.slots} slots up; "
            f"{self.us_per_event:.1f} us per event"
        )
        return "\n  skipped: ".join([text, *self.skipped])


def check_policy(
    policy: AnyPolicy,
    axis: Axis | None = None,
    *,
    trace: RoutingTrace | None = None,
    seeds: int = 6,
) -> PolicyReport:
    """Check a policy against the laws, and itself against itself.

    Args:
        policy: A class, or a spec as on the command line; a guard's class guards the plainest.
        axis: ``cache``, ``prefetch`` or ``schedule``; by default the one that knows the policy.
        trace: What is served, if the policy reads a signal that `tiny_trace` does not have; by
            default one of three layers and one of a single layer.
        seeds: How many orders of completion are tried in each setting.

    Raises:
        AssertionError: A law or a promise is broken; the message says which and where.
        PolicyError: The policy answered with what it was not offered, or failed.
        CapabilityError: The trace lacks a signal that the policy declares.
    """
    axis = axis or _axis_of(policy)
    spec = as_spec(axis, policy)
    flat_trace = None if trace else tiny_trace(layers=1, experts=4)
    trace = trace or tiny_trace()
    lacking = spec.needs - GRANTS - {"gates"} - trace.header.signals.keys()
    if lacking:
        raise CapabilityError(
            f"{spec.text} reads {sorted(lacking)}, which the trace of check_policy lacks; give one "
            "that has it: check_policy(policy, trace=...)"
        )
    check_options(spec)
    slots = _tightest(spec, trace)
    runs = _drive_every_way(spec, trace, slots, seeds)
    skipped = []
    if flat_trace:
        try:
            flat_slots = _tightest(spec, flat_trace)
        except InputError as error:
            skipped.append(f"one layer: {error}")
        else:
            runs += _drive_every_way(spec, flat_trace, flat_slots, seeds)
    roomy = _roomy(slots, trace)
    with _naming(spec, f"{roomy} slots"):
        check_same_answers(spec, trace, roomy)
        check_nothing_shared(spec, trace, roomy)
        skipped += check_timing_free(spec, trace, roomy)
        skipped += check_tie_order(spec, trace, roomy)
        us_per_event = _us_per_event(run_beside(spec, trace, PLAIN, roomy, 0))
    return PolicyReport(spec.text, axis, slots, runs, us_per_event, tuple(skipped))


def _drive_every_way(spec: PolicySpec, trace: RoutingTrace, slots: int, seeds: int) -> int:
    """Drive the policy over a trace in every setting, and return how often."""
    runs = 0
    for setting in (PLAIN, BAD):
        for room in sorted({slots, _roomy(slots, trace)}):
            for seed in range(seeds):
                with _naming(spec, f"{room} slots, seed {seed}, {_beside(spec.axis, setting)}"):
                    driven(run_beside(spec, trace, setting, room, seed), seed)
                    runs += 1
    return runs


def _roomy(slots: int, trace: RoutingTrace) -> int:
    """Return the room halfway between the tightest and that for all experts, if that is more."""
    return max(slots, (slots + trace.layers * trace.experts + 1) // 2)


def _axis_of(policy: AnyPolicy) -> Axis:
    if isinstance(policy, PolicySpec):
        return policy.axis
    if isinstance(policy, str):
        name = policy.split("/")[0].split(":")[0]
        named = [axis for axis in AXES if name in registry.names(axis)]
        if len(named) > 1:
            raise InputError(f"'{name}' is a policy of {' and '.join(named)}; say which: axis=...")
        if not named and ":" not in policy:
            everyone = [known for axis in AXES for known in registry.names(axis)]
            raise UnknownNameError("policy", name, everyone)
        return named[0] if named else registry.axis_of(policy)
    for axis, base in AXES.items():
        if issubclass(policy, base):
            return axis
    raise InputError(f"{policy.__name__} derives from none of the bases of a policy")


def _beside(axis: Axis, setting: Mapping[Axis, AnyPolicy]) -> str:
    names = [as_spec(other, policy).text for other, policy in setting.items() if other != axis]
    return f"with {' and '.join(names)}"


@contextmanager
def _naming(spec: PolicySpec, where: str) -> Iterator[None]:
    """Let every error say of which policy and setting it is; a policy's own become PolicyErrors."""
    name = f"{spec.axis} policy {spec.text} ({where})"
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from error
    except MoesimError as error:
        raise type(error)(f"{name}: {error}") from error
    except Exception as error:
        raise PolicyError(f"{name} failed with {type(error).__name__}: {error}") from error


def _tightest(spec: PolicySpec, trace: RoutingTrace) -> int:
    """Return the least slots that the policy can be run in, whatever runs beside it."""
    most = trace.layers * trace.experts
    refusal: BudgetError | None = None
    for slots in range(trace.top_k, 2 * most):
        try:
            for setting in (PLAIN, BAD):
                run_beside(spec, trace, setting, slots, 0).controller()
        except BudgetError as error:
            refusal = error
        else:
            return slots
    raise PolicyError(f"{spec.text} accepts no budget, not even twice the model: {refusal}")


def _us_per_event(run: Prepared) -> float:
    """Measure decision time per layer event by feeding a log to a fresh controller."""
    log = counted(run).log
    assert log is not None
    controller = run.controller()
    controller.initial()
    calls: list[tuple[list[Fact], int]] = [(facts, now_ns) for facts, now_ns, _ in log]
    events = sum(isinstance(fact, LayerRouted) for facts, _ in calls for fact in facts)
    began_ns = perf_counter_ns()
    for facts, now_ns in calls:
        controller.handle(facts, now_ns)
    return (perf_counter_ns() - began_ns) / events / 1000


def sample_spec(axis: Axis, name: str) -> PolicySpec:
    """Return a policy of the listing, ready to be built; a guard guards the axis's plainest."""
    cls: type[Policy] = registry.find(axis, name)
    if not registry.guards(cls):
        return registry.parse(axis, name)
    inner = {"cache": "lru", "prefetch": "next_gate", "schedule": "resident_first"}[axis]
    return registry.parse(axis, f"{name}/{inner}")
