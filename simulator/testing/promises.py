"""What a policy promises of itself, one check for each promise.

Documented options; answers that depend on nothing but what it was told; ties broken by age and not
by name; times that do not matter where it says so.
"""

import inspect
from dataclasses import replace

import numpy as np

from moesim.simulator import registry
from moesim.simulator.controller import Controller
from moesim.simulator.messages import Copy
from moesim.simulator.policies.base import CachePolicy
from moesim.simulator.registry import PolicySpec
from moesim.simulator.runs import Prepared
from moesim.simulator.testing.adversary import seeded
from moesim.simulator.testing.settings import BAD, PLAIN, driven, run_beside
from moesim.simulator.testing.small_runs import adversarial, counted, decisions, logged
from moesim.simulator.testing.tiny import rename_experts, tiny_trace
from moesim.traces import RoutingTrace

# L MoE layers, E experts of a layer.

PROFILE_TOKENS = 400


def check_options(spec: PolicySpec) -> None:
    """Check that the class and each of its options are documented and have defaults."""
    cls = spec.cls
    text = cls.__doc__ or ""
    assert text.strip(), f"{cls.__name__} has no docstring"
    for name, option in registry.options(cls).items():
        assert option.default is not inspect.Parameter.empty, (
            f"{cls.__name__}: option {name} has no default"
        )
        assert f"{name}:" in text, f"{cls.__name__}: option {name} is not in the docstring's Args"


def check_same_answers(spec: PolicySpec, trace: RoutingTrace, slots: int) -> None:
    """Check that two fresh objects answer alike, and a fresh controller fed a log too."""
    for setting in (PLAIN, BAD):
        run = run_beside(spec, trace, setting, slots, 1)
        first, second = (run.controller(keep_log=True) for _ in range(2))
        adversarial(run, seeded(1), controller=first).run()
        adversarial(run, seeded(1), controller=second).run()
        assert logged(first) == logged(second), "two fresh objects do not answer alike"
        assert first.log is not None
        again = run.controller()
        again.initial()
        for facts, now_ns, commands in first.log:
            assert again.handle(facts, now_ns) == commands, "fed the log of a run it answers else"


def check_nothing_shared(spec: PolicySpec, trace: RoutingTrace, slots: int) -> None:
    """Check that two runs, call by call in turn, answer as they do alone."""
    runs = [run_beside(spec, trace, BAD, slots, seed) for seed in (0, 1)]
    alone = [driven(run, seed) for seed, run in enumerate(runs)]
    drivers = [adversarial(run, seeded(seed)) for seed, run in enumerate(runs)]
    playing = [driver.play() for driver in drivers]
    while playing:
        playing = [play for play in playing if next(play, "over") is None]
    together = [decisions(driver.commands) for driver in drivers]
    assert together == alone, "two objects share state: run in turn they answer otherwise"


def check_timing_free(spec: PolicySpec, trace: RoutingTrace, slots: int) -> list[str]:
    """Check the claim that decisions depend on the order of demands alone."""
    if not spec.timing_free:
        return ["timing: the class says that it looks at times"]
    run = run_beside(spec, trace, PLAIN, slots, 2)
    expected = decisions(logged(counted(run)))
    for seed in range(3):
        assert driven(run, seed) == expected, "timing_free, and yet times change its decisions"
    return []


def check_tie_order(spec: PolicySpec, trace: RoutingTrace, slots: int) -> list[str]:
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
    run = run_beside(spec, trace, PLAIN, slots, 3)
    run.spec = replace(run.spec, profile_trace=profile)
    renamed = run_beside(spec, rename_experts(trace, new_LE), PLAIN, slots, 3)
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
