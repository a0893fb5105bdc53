"""One validation on the CPU, from the user's wishes to the evidence.

Load the model, assert equal decisions and logits on its own routes, take quick figures (or go on
with those of the folder), then predict and execute the cells.
"""

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch
import typer

from moesim.backends import reference
from moesim.backends.controllers import Deciding
from moesim.backends.forcing import TOKENS
from moesim.backends.loading import load_checkpoint
from moesim.hardware_profiles import HardwareProfile, RuntimeProfile, load_runtime
from moesim.hardware_profiles import load as load_hardware
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import InputError
from moesim.traces import RoutingTrace, load, samples
from moesim.validation import quick_files, quick_profile
from moesim.validation.cells import Routing, check_disjoint, choose_system, make_cell
from moesim.validation.cpu import CpuMachine, Subject, fingerprint
from moesim.validation.evidence import Calibration, Cell, Check, Checks, Evidence
from moesim.validation.evidence_files import CALIBRATION, CHECKS, read, read_checks, write
from moesim.validation.own_routes import check_system
from moesim.validation.protocol import Origin, run_cells
from moesim.validation.wishes import Wishes

CHECK_PROMPTS, CHECK_PROMPT_TOKENS, CHECK_NEW_TOKENS = 2, 24, 12
CHECK_BUDGET = "25%"
CPU_MINUTES = 1.5
"""What a validation without ``--minutes`` takes at most, but for cells already begun."""


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
        MoesimError, TraceError, ProfileError: A name, a file or a budget is wrong, or an execution
            failed; evidence of cells that ended stays.
    """
    began_s = monotonic()
    minutes = CPU_MINUTES if wishes.minutes is None else wishes.minutes
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    trace_path = wishes.trace or Path(samples.__path__[0]) / "reference-12x32.npz"
    trace = load(trace_path)
    tested, fitted = split_trace(trace, sum(wishes.lengths[:2]))
    with ExitStack() as stack:
        if wishes.output is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            _say("evidence is thrown away; keep it with -o DIR")
        else:
            folder = wishes.output
            folder.mkdir(exist_ok=True)
        subject = _load(wishes, trace)
        checks = tuple(_check(subject, text, trace) for text in wishes.systems)
        before = [one for one in read_checks(folder) if one.system not in wishes.systems]
        write(folder / CHECKS, Checks(checks=(*before, *checks)))
        routing: Routing = "own" if wishes.routing == "own" else "forced"
        profiles, calibration = _figures(wishes, subject, fitted, folder)
        if calibration.fit_traces:
            check_disjoint(fitted, tested)
        machine = CpuMachine(subject, CostModel(*profiles, subject.shape), tested, routing)
        cells: list[Cell] = [
            make_cell(
                choose_system(text),
                budget,
                subject.budget_bytes(budget, tested),
                backend=wishes.backend,
                profiles=profiles,
                fit_traces=calibration.fit_traces,
                model=subject.name,
                trace=tested,
                trace_name=trace_path.name,
                routing=routing,
                lengths=wishes.lengths,
            )
            for budget in wishes.budgets
            for text in wishes.systems
        ]
        found = run_cells(
            machine,
            cells,
            folder,
            Origin(_command(), _commit()),
            anchors_ns=calibration.anchors_ns,
            until_s=began_s + 60 * minutes,
            say=_say,
        )
    return Session(checks, found)


def split_trace(trace: RoutingTrace, tokens: int) -> tuple[RoutingTrace, RoutingTrace]:
    """Return the first requests, with enough decode tokens to test on, and the last, to fit on.

    Raises:
        InputError: The trace has too few decode tokens.
    """
    starts = trace.row_starts().tolist()
    decode, wanted = 0, 0
    while decode < tokens and wanted < trace.requests - 1:
        rows = slice(starts[wanted], starts[wanted + 1])
        decode += int((~trace.is_prefill_T[rows].astype(bool)).sum())
        wanted += 1
    if decode < tokens:
        raise InputError(
            f"the trace has {decode} decode tokens beside its last request, {tokens} are asked "
            "for; lower --warm or --tokens, or give a longer trace"
        )
    tested = trace.select_requests(range(wanted))
    return tested, trace.select_requests([trace.requests - 1])


def _load(wishes: Wishes, trace: RoutingTrace) -> Subject:
    source = wishes.model or str(Path(reference.__path__[0]) / "weights")
    checkpoint = load_checkpoint(source, torch.device("cpu"))
    recorded = trace.header.revision
    if recorded is not None and checkpoint.revision not in (None, recorded):
        _say("the trace was recorded from other weights: what gates foretell may differ from it")
    vocabulary = checkpoint.model.config.get_text_config().vocab_size
    starts = trace.row_starts().tolist()
    kept = trace.signals.get(TOKENS)
    prompts = [
        [position % vocabulary for position in range(CHECK_PROMPT_TOKENS)]
        if kept is None
        else kept[starts[n] : starts[n] + CHECK_PROMPT_TOKENS].tolist()
        for n in range(min(CHECK_PROMPTS, trace.requests))
    ]
    subject = Subject(checkpoint, prompts, CHECK_NEW_TOKENS)
    if wishes.model is None:
        subject.name = trace.header.model
    return subject


def _check(subject: Subject, text: str, trace: RoutingTrace) -> Check:
    choice = choose_system(text)
    deciding = Deciding(
        policies=choice.policies,
        budget_bytes=subject.budget_bytes(CHECK_BUDGET, trace),
        system=choice.system,
    )
    check = check_system(subject, deciding)
    _say(
        f"{text}: own routes, {check.decisions} decisions, {'passed' if check.passed else 'FAILED'}"
    )
    return check


def _figures(
    wishes: Wishes, subject: Subject, fitted: RoutingTrace, folder: Path
) -> tuple[tuple[HardwareProfile, RuntimeProfile], Calibration]:
    """Return named profiles, those of the folder, or quick ones, and what they were made from."""
    path = folder / CALIBRATION
    if wishes.hardware is not None and wishes.runtime is not None:
        profiles = load_hardware(wishes.hardware), load_runtime(wishes.runtime)
        before = read(path, Calibration) if path.exists() else None
        found = before or Calibration(
            fingerprint=fingerprint(), anchors_ns=subject.anchors(), fit_traces=()
        )
        write(path, found)
        return profiles, found
    if path.exists():
        found = read(path, Calibration)
        if found.fingerprint != fingerprint():
            raise InputError(
                f"{path}: was made on another machine ({found.fingerprint['cpu']}); a calibration "
                "holds for its own, write to an empty folder"
            )
        _say("going on with the figures of the folder")
        names = (quick_files.HARDWARE, quick_files.RUNTIME)
        machine, runtime = (folder / f"{name}.yaml" for name in names)
        return (load_hardware(machine), load_runtime(runtime)), found
    hardware, runtime_profile, trees = quick_profile.measure(
        subject.serve, subject.shape, fitted, os.cpu_count() or 1
    )
    found = Calibration(
        fingerprint=fingerprint(),
        anchors_ns=subject.anchors(),
        fit_traces=(fitted.content_hash(),),
    )
    quick_files.write_profiles(folder, trees)
    write(path, found)
    _say("quick figures of this machine: taken")
    return (hardware, runtime_profile), found


def _command() -> str:
    """Return the command line, without the folders of this machine."""
    shown = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return " ".join(["moesim", *shown])


def _commit() -> str:
    """Return the commit of the checkout that runs; ``unknown`` where it is none."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(  # noqa: S603  a fixed command
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _say(line: str) -> None:
    typer.echo(line, err=True)
