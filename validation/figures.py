"""Where the figures of a validation come from: files named, the folder's own, or fresh ones."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moesim.hardware_profiles import HardwareProfile, RuntimeProfile, load_runtime
from moesim.hardware_profiles import load as load_hardware
from moesim.simulator.errors import InputError
from moesim.traces import RoutingTrace
from moesim.validation.evidence import Calibration
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
        before: What the folder says of its calibration; None where it had none.
    """

    profiles: Profiles
    fit_traces: tuple[str, ...]
    before: Calibration | None


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
    if before is not None and before.fingerprint != rig.fingerprint():
        raise InputError(
            f"{path}: was made on another machine ({before.fingerprint['cpu']}); a calibration "
            "holds for its own, write to an empty folder"
        )
    if wishes.hardware is not None and wishes.runtime is not None:
        profiles = load_hardware(wishes.hardware), load_runtime(wishes.runtime)
        made_on = profiles[0].fingerprint
        fit_traces = () if made_on is None else (fitted.content_hash(),)
        if made_on is not None and made_on.model_dump() != rig.fingerprint():
            say(
                f"{wishes.hardware} was measured on another machine ({made_on.gpu}, {made_on.cpu}):"
                " what follows is a claim about carrying figures over"
            )
    elif before is not None:
        say("going on with the figures of the folder")
        machine, runtime = (folder / f"{name}.yaml" for name in rig.figures)
        return Figures((load_hardware(machine), load_runtime(runtime)), before.fit_traces, before)
    else:
        trees = rig.measure(subject, fitted, minutes)
        machine_tree, runtime_tree = (trees[name] for name in rig.figures)
        profiles = (
            HardwareProfile.from_tree(machine_tree),
            RuntimeProfile.from_tree(runtime_tree),
        )
        fit_traces = (fitted.content_hash(),)
        write_profiles(folder, trees)
        say("figures of this machine: taken")
    return Figures(profiles, fit_traces, before)


def keep_calibration(figures: Figures, rig: Rig, subject: Subject, folder: Path) -> Calibration:
    """Return what figures were made from, with the anchors as they are now; the folder keeps it.

    Where the folder had a calibration, its anchors stay.
    """
    found = figures.before or Calibration(
        fingerprint=rig.fingerprint(),
        anchors_ns=rig.anchors(subject),
        fit_traces=figures.fit_traces,
    )
    write(folder / CALIBRATION, found)
    return found
