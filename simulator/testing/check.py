"""One call that puts a policy through everything that moesim promises of policies.

`check_policy` serves tiny traces under the adversarial driver, with plain companions and with bad
ones, at the tightest budget that the policy accepts and at a roomy one; the `Witness` checks laws
1 to 6 on the way. Then it looks at the policy as such: documented options, answers that depend on
nothing but what it was told, ties broken by age and not by name.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter_ns

import numpy as np

from moesim.simulator import registry
from moesim.simulator.controller import Controller
from moesim.simulator.errors import (
    BudgetError,
    CapabilityError,
    InputError,
    MoesimError,
    PolicyError,
    UnknownNameError,
)
from moesim.simulator.messages import Copy, Fact, LayerRouted
from moesim.simulator.policies.base import CachePolicy, Policy
from moesim.simulator.registry import AXES, Axis, PolicySpec
from moesim.simulator.runs import GRANTS, Prepared
from moesim.simulator.testing.adversary import seeded
from moesim.simulator.testing.companions import KEEP_AT_RANDOM, SPLIT_AT_RANDOM, WISH_AT_RANDOM
from moesim.simulator.testing.small_runs import (
    AnyPolicy,
    adversarial,
    as_spec,
    counted,
    decisions,
    logged,
    small_run,
)
from moesim.simulator.testing.tiny import rename_experts, tiny_trace
from moesim.traces import RoutingTrace

# L MoE layers, E experts of a layer.

PROFILE_TOKENS = 400
PLAIN: Mapping[Axis, AnyPolicy] = {
    "cache": "lru",
    "prefetch": "none",
    "schedule": "resident_first",
}
BAD: Mapping[Axis, PolicySpec] = {
    "cache": KEEP_AT_RANDOM,
    "prefetch": WISH_AT_RANDOM,
    "schedule": SPLIT_AT_RANDOM,
}


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
    _check_options(spec)
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
        _check_same_answers(spec, trace, roomy)
        _check_nothing_shared(spec, trace, roomy)
        skipped += _check_timing_free(spec, trace, roomy)
        skipped += _check_tie_order(spec, trace, roomy)
        us_per_event = _us_per_event(_run(spec, trace, PLAIN, roomy, 0))
    return PolicyReport(spec.text, axis, slots, runs, us_per_event, tuple(skipped))


def _drive_every_way(spec: PolicySpec, trace: RoutingTrace, slots: int, seeds: int) -> int:
    """Drive the policy over a trace in every setting, and return how often."""
    runs = 0
    for setting in (PLAIN, BAD):
        for room in sorted({slots, _roomy(slots, trace)}):
            for seed in range(seeds):
                with _naming(spec, f"{room} slots, seed {seed}, {_beside(spec.axis, setting)}"):
                    _drive(_run(spec, trace, setting, room, seed), seed)
                    runs += 1
    return runs


def _roomy(slots: int, trace: RoutingTrace) -> int:
    """Return the room halfway between the tightest and that for all experts."""
    return (slots + trace.layers * trace.experts + 1) // 2


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


def _run(
    spec: PolicySpec, trace: RoutingTrace, setting: Mapping[Axis, AnyPolicy], slots: int, seed: int
) -> Prepared:
    chosen = {**setting, spec.axis: spec}
    return small_run(
        trace,
        cache=chosen["cache"],
        prefetch=chosen["prefetch"],
        schedule=chosen["schedule"],
        slots=slots,
        window_bytes=1 if seed % 2 else None,  # prefetches one by one, or as many as fit
        seed=seed,
    )


def _drive(run: Prepared, seed: int) -> list[tuple[object, ...]]:
    driver = adversarial(run, seeded(seed))
    driver.run()
    return decisions(driver.commands)


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
                _run(spec, trace, setting, slots, 0).controller()
        except BudgetError as error:
            refusal = error
        else:
            return slots
    raise PolicyError(f"{spec.text} accepts no budget, not even twice the model: {refusal}")


def _check_options(spec: PolicySpec) -> None:
    """Check that the class and each of its options are documented and have defaults."""
    cls = spec.cls
    text = cls.__doc__ or ""
    assert text.strip(), f"{cls.__name__} has no docstring"
    for name, option in registry.options(cls).items():
        assert option.default is not inspect.Parameter.empty, (
            f"{cls.__name__}: option {name} has no default"
        )
        assert f"{name}:" in text, f"{cls.__name__}: option {name} is not in the docstring's Args"


def _check_same_answers(spec: PolicySpec, trace: RoutingTrace, slots: int) -> None:
    """Check that two fresh objects answer alike, and a fresh controller fed a log too."""
    for setting in (PLAIN, BAD):
        run = _run(spec, trace, setting, slots, 1)
        first, second = (run.controller(keep_log=True) for _ in range(2))
        adversarial(run, seeded(1), controller=first).run()
        adversarial(run, seeded(1), controller=second).run()
        assert logged(first) == logged(second), "two fresh objects do not answer alike"
        assert first.log is not None
        again = run.controller()
        again.initial()
        for facts, now_ns, commands in first.log:
            assert again.handle(facts, now_ns) == commands, "fed the log of a run it answers else"


def _check_nothing_shared(spec: PolicySpec, trace: RoutingTrace, slots: int) -> None:
    """Check that two runs, call by call in turn, answer as they do alone."""
    runs = [_run(spec, trace, BAD, slots, seed) for seed in (0, 1)]
    alone = [_drive(run, seed) for seed, run in enumerate(runs)]
    drivers = [adversarial(run, seeded(seed)) for seed, run in enumerate(runs)]
    playing = [driver.play() for driver in drivers]
    while playing:
        playing = [play for play in playing if next(play, "over") is None]
    together = [decisions(driver.commands) for driver in drivers]
    assert together == alone, "two objects share state: run in turn they answer otherwise"


def _check_timing_free(spec: PolicySpec, trace: RoutingTrace, slots: int) -> list[str]:
    """Check the claim that decisions depend on the order of demands alone."""
    if not spec.timing_free:
        return ["timing: the class says that it looks at times"]
    run = _run(spec, trace, PLAIN, slots, 2)
    expected = decisions(logged(counted(run)))
    for seed in range(3):
        assert _drive(run, seed) == expected, "timing_free, and yet times change its decisions"
    return []


def _check_tie_order(spec: PolicySpec, trace: RoutingTrace, slots: int) -> list[str]:
    """Check that renaming the experts of each layer renames what a cache policy gives up.

    So ties in a score are broken by age, never by name. Popularities of the profile trace are all
    distinct here, since between equals that were never touched the name may decide.
    """
    if not issubclass(spec.cls, CachePolicy):
        return []
    if "transitions" in spec.needs:
        return ["tie order: pairs of equal transition counts are ordered by name"]
    rng = np.random.default_rng(0)
    new_LE = np.stack([rng.permutation(trace.experts) for _ in range(trace.layers)])
    profile = _distinct_profile(trace) if "profile" in spec.needs else None
    run = _run(spec, trace, PLAIN, slots, 3)
    run.spec = replace(run.spec, profile_trace=profile)
    renamed = _run(spec, rename_experts(trace, new_LE), PLAIN, slots, 3)
    if profile is not None:
        renamed.spec = replace(renamed.spec, profile_trace=rename_experts(profile, new_LE))
    if _drew(counted(run)):
        return ["tie order: the policy draws from its random stream"]
    new = (new_LE + np.arange(trace.layers)[:, None] * trace.experts).ravel().tolist()
    placed = {new[expert] for expert in run.controller().initial()}
    if placed != set(renamed.controller().initial()):
        return ["tie order: the policy places experts by name before the start"]
    expected = [new[expert] for expert in _copied(run)]
    assert expected == _copied(renamed), (
        "renaming experts changes what is evicted: a tie is broken by name, not by age"
    )
    return []


def _copied(run: Prepared) -> list[int]:
    """Return the experts copied, in order: what was evicted shows in what is copied again."""
    return [command.expert for command in logged(counted(run)) if isinstance(command, Copy)]


def _drew(controller: Controller) -> bool:
    """Return whether the cache policy has drawn from its random stream."""
    policy = controller._cache  # noqa: SLF001  no driver ever asks for it
    untouched = np.random.default_rng(np.random.SeedSequence(3).spawn(3)[0])
    return bool(policy.run.rng.bit_generator.state != untouched.bit_generator.state)


def _distinct_profile(trace: RoutingTrace) -> RoutingTrace:
    """Return a trace of the same shape in which no two experts are equally popular."""
    seed = 0
    while True:
        profile = tiny_trace(
            layers=trace.layers,
            experts=trace.experts,
            top_k=trace.top_k,
            decode_tokens=PROFILE_TOKENS,
            seed=seed,
        )
        offsets_L1 = np.arange(trace.layers)[:, None] * trace.experts
        counts = np.bincount((profile.expert_TLK + offsets_L1).ravel())
        if len(np.unique(counts)) == trace.layers * trace.experts:
            return profile
        seed += 1


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
