"""One validation, from the user's wishes to the evidence, on whichever rig.

Open the model, assert equal decisions and logits on its own routes, take figures (those named,
those of the folder, or fresh ones), then predict and execute the cells.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import typer

from moesim.backends.sources import cut
from moesim.backends.suiting import suited
from moesim.simulator import models, registry
from moesim.simulator.commands.policies import Choice
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import MoesimError
from moesim.traces import RoutingTrace, load, samples
from moesim.validation.all_resident import AllResident
from moesim.validation.anchoring import Anchors
from moesim.validation.beside import Check
from moesim.validation.cells import Routing, check_disjoint, choose_system, make_cell
from moesim.validation.evidence import Cell, Evidence
from moesim.validation.figures import Figures, keep_calibration, take_figures, with_decisions
from moesim.validation.interventions import made_so, predicted
from moesim.validation.loads import Load, load_of, rest_of
from moesim.validation.own_routes import Trying, try_systems
from moesim.validation.protocol import Origin, Pace, run_cells
from moesim.validation.provenance import command_given, commit_of
from moesim.validation.rig import Rig, RiggedMachine
from moesim.validation.routes import check_topology
from moesim.validation.subject import Subject
from moesim.validation.wishes import Wishes

PROFILED = frozenset({"profile", "transitions"})


@dataclass(frozen=True, slots=True)
class Session:
    """What a validation found; ``passed`` is what it asserts, times not among it."""

    checks: tuple[Check, ...]
    found: list[Evidence]

    @property
    def passed(self) -> bool:
        """Whether every check passed and timing-free systems decided as predicted."""
        return all(check.passed for check in self.checks) and all(
            one.judged.decisions_right for one in self.found
        )


def run_session(wishes: Wishes) -> Session:
    """Carry a validation out.

    Raises:
        UnavailableError: The backend's device is not on this machine.
        MoesimError, TraceError, ProfileError: A name, a file or a budget is wrong, or an execution
            failed; evidence of cells that ended stays.
    """
    began_s, commit = monotonic(), commit_of(wishes.commit)
    rig = _rig(wishes.backend)
    minutes = rig.minutes if wishes.minutes is None else wishes.minutes
    trace_path = wishes.trace or Path(samples.__path__[0]) / "reference-12x32.npz"
    trace, trace_name = load(trace_path), trace_path.name
    _check_shape(wishes, trace, trace_path)
    fitted = rig.fitted_on(trace)
    loads = [
        load_of(setting, trace, trace_name, fitted, sum(wishes.lengths[:2]))
        for setting in wishes.settings
    ]
    tested = loads[0].trace
    profile = _profile(wishes, trace, fitted, loads)
    with ExitStack() as stack:
        if wishes.output is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            _say("evidence is thrown away; keep it with -o DIR")
        else:
            folder = wishes.output
            folder.mkdir(exist_ok=True)
        taken = None
        if not rig.measures_on_the_model:
            taken = take_figures(wishes, rig, None, fitted, folder, minutes, _say)
        subject = rig.open(wishes, tested)
        parts = subject.opened.store.parts
        ours = len(parts.layers), parts.experts, parts.top_k
        check_topology(ours, subject.name, trace, trace_path)
        _say(f"{subject.name}: open after {monotonic() - began_s:.0f} s")
        choices = _choices(wishes, trace, trace_name)
        rig.warm_up(subject, tested)
        if taken is None:
            taken = take_figures(wishes, rig, subject, fitted, folder, minutes, _say)
        costs = CostModel(*taken.profiles, subject.opened.costs_of)
        checks, executed = try_systems(
            Trying(subject, costs, tested, fitted, profile, commit, taken.charged),
            choices,
            folder,
            _say,
        )
        choices = _without_broken(choices, checks)
        taken, decided = with_decisions(taken, choices, fitted, executed)
        calibration = keep_calibration(taken, decided, rig, subject, folder)
        all_resident = AllResident.of(rig, subject, taken.profiles, tested, _say)
        if taken.fit_traces:
            for each in loads:
                check_disjoint(fitted, each.drawn_from or each.trace)
        origin = Origin(
            command_given(), commit, all_resident.measured_ms, all_resident.predicted_ms
        )
        pace = Pace(None if minutes is None else began_s + 60 * minutes)
        anchors, found = Anchors(), list[Evidence]()
        try:
            for each in loads:
                if each.setting.told:
                    _say(f"{each.setting.told}:")
                machine, cells = _machine(
                    wishes, rig, subject, choices, each, taken, decided.asks_ns, profile
                )
                found += run_cells(
                    machine,
                    cells,
                    folder,
                    origin,
                    anchors_ns=calibration.anchors_ns,
                    anchors=anchors,
                    pace=pace,
                    say=_say,
                )
        except (KeyboardInterrupt, MoesimError):
            if wishes.output is not None:
                _say(f"every execution that ended is kept in {folder}; the same command goes on")
            raise
    return Session(checks, found)


def _rig(backend: str) -> Rig:
    if backend == "cpu":
        from moesim.validation.cpu import CpuRig  # noqa: PLC0415  either rig alone

        return CpuRig()
    from moesim.validation.cuda import CudaRig  # noqa: PLC0415  either rig alone

    return CudaRig(backend)


def _machine(
    wishes: Wishes,
    rig: Rig,
    subject: Subject,
    choices: Sequence[Choice],
    load: Load,
    taken: Figures,
    asks_ns: Mapping[str, dict[str, int]],
    profile: RoutingTrace | None,
) -> tuple[RiggedMachine, list[Cell]]:
    """Return the machine of a setting, and its cells: every system at every budget."""
    setting, profiles, make_driver = load.setting, taken.profiles, subject.make_driver
    if setting.intervention is not None:
        profiles = predicted(setting.intervention, profiles, rig.cpu_threads)
        make_driver = made_so(setting.intervention, make_driver)
    routing: Routing = "own" if wishes.routing == "own" else "forced"
    costs = CostModel(*profiles, subject.opened.costs_of)
    fit_traces = (
        taken.fit_traces if profile is None else (*taken.fit_traces, profile.content_hash())
    )
    cells = [
        make_cell(
            choice,
            budget,
            subject.budget_bytes(budget, load.trace, setting.batching),
            backend=wishes.backend,
            profiles=profiles,
            fit_traces=fit_traces,
            model=subject.name,
            trace=load.trace,
            trace_name=load.name,
            routing=routing,
            lengths=load.lengths(wishes.lengths),
            batching=setting.batching,
            arrivals=None if load.stream is None else (load.stream.text, setting.seed),
            ask_ns=asks_ns.get(choice.system) or None,
        )
        for budget in wishes.budgets
        for choice in choices
    ]
    return RiggedMachine(rig, subject, costs, load, routing, make_driver, profile), cells


def _profile(
    wishes: Wishes, trace: RoutingTrace, fitted: RoutingTrace, loads: Sequence[Load]
) -> RoutingTrace | None:
    """Return what systems look at that are profiled offline; None where nobody is or can be.

    Raises:
        InputError: It is served too.
    """
    needs = frozenset().union(
        *(
            registry.parse(axis, text).needs
            for system in wishes.systems
            for axis, text in choose_system(system).policies.items()
        )
    )
    if not needs & PROFILED:
        return None
    if wishes.profile_trace is None:
        return rest_of(trace, fitted, loads)
    profile = load(wishes.profile_trace)
    for each in loads:
        check_disjoint(profile, each.drawn_from or each.trace)
    return profile


def _check_shape(wishes: Wishes, trace: RoutingTrace, path: Path) -> None:
    """Refuse a shape of another topology than the trace's before anything is measured."""
    if wishes.source is not None and wishes.source.is_shape:
        shape = cut(models.load(wishes.source.model), wishes.source.layers)
        ours = len(shape.moe_layers), shape.experts, shape.top_k
        check_topology(ours, f"{shape.name} random weights", trace, path)


def _choices(wishes: Wishes, trace: RoutingTrace, trace_name: str) -> list[Choice]:
    """Return the systems asked for, with the options that suit what the trace kept."""
    found = []
    for text in wishes.systems:
        choice = choose_system(text)
        policies = suited(choice.policies, trace.header.signals)
        for axis, policy in policies.items():
            if policy != choice.policies[axis]:
                _say(f"{text}: {trace_name} lacks what it reads by default; {axis} is {policy}")
        found.append(replace(choice, policies=policies))
    return found


def _without_broken(choices: Sequence[Choice], checks: Sequence[Check]) -> list[Choice]:
    """Return the systems whose checks could be carried through: no cell takes the others along."""
    broken = {check.system for check in checks if check.fault is not None}
    return [choice for choice in choices if choice.system not in broken]


def _say(line: str) -> None:
    typer.echo(line, err=True)
