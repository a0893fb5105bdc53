"""One validation, from the user's wishes to the evidence, on whichever rig.

Open the model, assert equal decisions and logits on its own routes, take figures (those named,
those of the folder, or fresh ones), then predict and execute the cells.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import typer

from moesim.backends.controllers import Deciding
from moesim.backends.sources import cut
from moesim.simulator import models
from moesim.simulator.costs import CostModel
from moesim.traces import RoutingTrace, load, samples
from moesim.validation.cells import Routing, check_disjoint, choose_system, make_cell
from moesim.validation.evidence import Cell, Check, Checks, Evidence
from moesim.validation.evidence_files import CHECKS, read_checks, write
from moesim.validation.figures import keep_calibration, take_figures
from moesim.validation.intervening import parse_intervention
from moesim.validation.interventions import made_so, predicted
from moesim.validation.long_prompts import with_prompts
from moesim.validation.own_routes import BUDGET, check_system
from moesim.validation.protocol import Origin, run_cells
from moesim.validation.provenance import command_given, commit_of
from moesim.validation.rig import Rig, RiggedMachine
from moesim.validation.routes import check_topology, held_out
from moesim.validation.subject import Subject
from moesim.validation.wishes import Wishes


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
        NotAvailableError: The backend's device is not on this machine.
        MoesimError, TraceError, ProfileError: A name, a file or a budget is wrong, or an execution
            failed; evidence of cells that ended stays.
    """
    began_s = monotonic()
    rig = _rig(wishes.backend)
    minutes = rig.minutes if wishes.minutes is None else wishes.minutes
    trace_path = wishes.trace or Path(samples.__path__[0]) / "reference-12x32.npz"
    trace, trace_name = load(trace_path), trace_path.name
    if wishes.source is not None and wishes.source.is_shape:  # before anything is measured
        shape = cut(models.load(wishes.source.model), wishes.source.layers)
        ours = len(shape.moe_layers), shape.experts, shape.top_k
        check_topology(ours, f"{shape.name} random weights", trace, trace_path)
    fitted = rig.fitted_on(trace)
    tested = held_out(trace, fitted, sum(wishes.lengths[:2]), wishes.batch or 1)
    routing: Routing = "own" if wishes.routing == "own" else "forced"
    with ExitStack() as stack:
        if wishes.output is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            _say("evidence is thrown away; keep it with -o DIR")
        else:
            folder = wishes.output
            folder.mkdir(exist_ok=True)
        if wishes.prompt is not None:
            tested, how = with_prompts(tested, wishes.prompt)
            trace_name = f"{trace_name}, {how}"
        taken = None
        if not rig.measures_on_the_model:
            taken = take_figures(wishes, rig, None, fitted, folder, minutes, _say)
        if wishes.batch is not None:
            trace_name = f"{trace_name}, batch {wishes.batch}"
        subject = rig.open(wishes, tested)
        parts = subject.opened.store.parts
        ours = len(parts.layers), parts.experts, parts.top_k
        check_topology(ours, subject.name, trace, trace_path)
        _say(f"{subject.name}: open after {monotonic() - began_s:.0f} s")
        checks = _check_all(subject, wishes, tested, folder)
        rig.warm_up(subject, tested)
        resident_ms = subject.resident_ms(tested)
        if taken is None:
            taken = take_figures(wishes, rig, subject, fitted, folder, minutes, _say)
        calibration = keep_calibration(taken, rig, subject, folder)
        if taken.fit_traces:
            check_disjoint(fitted, tested)
        profiles = taken.profiles
        if wishes.intervene is not None:
            intervention = parse_intervention(wishes.intervene)
            profiles = predicted(intervention, profiles, rig.cpu_threads)
            subject.make_driver = made_so(intervention, subject.make_driver)
        costs = CostModel(*profiles, subject.opened.costs_of)
        machine = RiggedMachine(rig, subject, costs, tested, routing)
        cells: list[Cell] = [
            make_cell(
                choose_system(text),
                budget,
                subject.budget_bytes(budget, tested, wishes.batching),
                backend=wishes.backend,
                profiles=profiles,
                fit_traces=taken.fit_traces,
                model=subject.name,
                trace=tested,
                trace_name=trace_name,
                routing=routing,
                lengths=wishes.lengths,
                batching=wishes.batching,
            )
            for budget in wishes.budgets
            for text in wishes.systems
        ]
        found = run_cells(
            machine,
            cells,
            folder,
            Origin(command_given(), commit_of(wishes.commit), resident_ms),
            anchors_ns=calibration.anchors_ns,
            until_s=None if minutes is None else began_s + 60 * minutes,
            say=_say,
        )
    return Session(checks, found)


def _rig(backend: str) -> Rig:
    if backend == "cpu":
        from moesim.validation.cpu import CpuRig  # noqa: PLC0415  either rig alone

        return CpuRig()
    from moesim.validation.cuda import CudaRig  # noqa: PLC0415  either rig alone

    return CudaRig(backend)


def _check_all(
    subject: Subject, wishes: Wishes, trace: RoutingTrace, folder: Path
) -> tuple[Check, ...]:
    """Check the systems that the folder has no check of; return those of all asked for."""
    known = {check.system: check for check in read_checks(folder)}
    if subject.resident is None:
        _say("own routes: not checked, nothing here holds every expert at once")
        return ()
    for text in wishes.systems:
        choice = choose_system(text)
        deciding = Deciding(
            policies=choice.policies,
            budget_bytes=subject.budget_bytes(BUDGET, trace),
            system=choice.system,
        )
        check = check_system(subject, subject.resident, deciding)
        known[check.system] = check
        passed = "passed" if check.passed else "FAILED"
        _say(f"{text}: own routes, {check.decisions} decisions, {passed}")
    write(folder / CHECKS, Checks(checks=tuple(known.values())))
    return tuple(known[choose_system(text).system] for text in wishes.systems)


def _say(line: str) -> None:
    typer.echo(line, err=True)
