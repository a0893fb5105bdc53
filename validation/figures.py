"""Where the figures of a validation come from: files named, the folder's own, or fresh ones."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moesim.hardware_profiles import HardwareProfile, RuntimeProfile, load_runtime
from moesim.hardware_profiles import load as load_hardware
from moesim.simulator.commands.policies import Choice
from moesim.simulator.errors import InputError
from moesim.traces import RoutingTrace
from moesim.validation.beside import Calibration
from moesim.validation.deciding import (
    Decided,
    DecisionCosts,
    measure_decisions,
    with_rows,
)
from moesim.validation.evidence_files import CALIBRATION, read, write
from moesim.validation.quick_files import write_profiles
from moesim.validation.rig import Rig
from moesim.validation.subject import Subject
from moesim.validation.wishes import Wishes

Profiles = tuple[HardwareProfile, RuntimeProfile]


@dataclass(frozen=True, slots=True)
class Figures:
    """The profiles that predict.

    Attributes:
        profiles: Machine and runtime.
        fit_traces: Hashes of what they were fitted on.
        before: What the folder says of its calibration; None where profiles were named and it had
            none.
        is_of_here: Whether they were measured on this machine.
    """

    profiles: Profiles
    fit_traces: tuple[str, ...]
    before: Calibration | None
    is_of_here: bool

    @property
    def charged(self) -> Collection[str] | None:
        """Systems of which is known what decisions take; None where nobody's are measured here."""
        if not self.is_of_here:
            return None
        return () if self.before is None else self.before.decisions_ns or ()


def take_figures(
    wishes: Wishes,
    rig: Rig,
    subject: Subject | None,
    fitted: RoutingTrace,
    folder: Path,
    minutes: float | None,
    say: Callable[[str], None],
) -> Figures:
    """Return the profiles that predict, and what they were made from.

    A profile that a calibration made is fitted on what calibrations of this rig look at.

    Args:
        wishes: May name profiles.
        rig: Measures where none are named and the folder has none.
        subject: What is measured on, where the rig measures on the model.
        fitted: What measuring may look at.
        folder: Of the evidence; fresh figures are kept there.
        minutes: What the whole validation takes at most.
        say: Told what happens.

    Raises:
        InputError: The folder's figures are of another machine.
        ProfileError: A profile is faulty.
    """
    path = folder / CALIBRATION
    before = read(path, Calibration) if path.exists() else None
    here = rig.fingerprint()
    if before is not None and before.fingerprint != here:
        raise InputError(
            f"{path}: was made on {_elsewhere(before.fingerprint, here)}; a calibration holds for "
            "its own, write to an empty folder"
        )
    if wishes.hardware is not None and wishes.runtime is not None:
        profiles = load_hardware(wishes.hardware), load_runtime(wishes.runtime)
        made_on = profiles[0].fingerprint
        fit_traces = () if made_on is None else (fitted.content_hash(),)
        is_of_here = made_on is not None and made_on.model_dump() == here
        if made_on is not None and not is_of_here:
            say(
                f"{wishes.hardware} was measured on {_elsewhere(made_on.model_dump(), here)}: what "
                "follows is a claim about carrying figures over"
            )
    elif before is not None:
        say("going on with the figures of the folder")
        machine, runtime = (folder / f"{name}.yaml" for name in rig.figures)
        return Figures(
            (load_hardware(machine), load_runtime(runtime)), before.fit_traces, before, True
        )
    else:
        trees = rig.measure(subject, fitted, minutes)
        machine_tree, runtime_tree = (trees[name] for name in rig.figures)
        profiles = (
            HardwareProfile.from_tree(machine_tree),
            RuntimeProfile.from_tree(runtime_tree),
        )
        fit_traces = (fitted.content_hash(),)
        write_profiles(folder, trees)
        before = Calibration(fingerprint=here, anchors_ns={}, fit_traces=fit_traces)
        write(path, before)
        is_of_here = True
        say("figures of this machine: taken")
    return Figures(profiles, fit_traces, before, is_of_here=is_of_here)


def _elsewhere(made_on: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Return in words which other machine figures are of; one of the same parts is another, too."""
    if {**made_on, "host": ""} == {**here, "host": ""}:
        return "another host of the same parts, or before this one was started again"
    return f"another machine ({made_on['gpu']}, {made_on['cpu']})"


def with_decisions(
    figures: Figures,
    choices: Sequence[Choice],
    fitted: RoutingTrace,
    executed: Mapping[str, Decided],
) -> tuple[Figures, DecisionCosts]:
    """Return figures that know what the systems' decisions cost here, and what was measured so.

    Figures of another machine stay as they are, whatever the folder knows of this one.
    """
    before = figures.before
    known = DecisionCosts(
        {} if before is None else before.decisions_ns or {},
        {} if before is None else before.asks_ns or {},
    )
    if not figures.is_of_here:
        return figures, known
    known = measure_decisions(choices, fitted, known, executed)
    machine, runtime = figures.profiles
    return replace(figures, profiles=(machine, with_rows(runtime, known.rows_ns))), known


def keep_calibration(
    figures: Figures, decided: DecisionCosts, rig: Rig, subject: Subject, folder: Path
) -> Calibration:
    """Return what figures were made from, with the anchors as they are now; the folder keeps it.

    Where the folder had a calibration with anchors, they stay.
    """
    found = figures.before or Calibration(
        fingerprint=rig.fingerprint(), anchors_ns={}, fit_traces=figures.fit_traces
    )
    found = found.model_copy(
        update={
            "anchors_ns": found.anchors_ns or rig.anchors(subject),
            "decisions_ns": decided.rows_ns or None,
            "asks_ns": decided.asks_ns or None,
        }
    )
    write(folder / CALIBRATION, found)
    return found
