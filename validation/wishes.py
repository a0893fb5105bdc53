"""What a user of ``moesim validate`` asks for, and what of it can be refused without torch."""

from dataclasses import dataclass
from pathlib import Path

from moesim.backends.batches import batched
from moesim.backends.sources import Source
from moesim.backends.wishes import BACKENDS
from moesim.hardware_profiles import ProfileError
from moesim.hardware_profiles.units import parse_bytes, parse_ppm
from moesim.simulator.errors import InputError, UnknownNameError
from moesim.validation.cells import choose_system, is_slots, split_list
from moesim.validation.intervening import check_intervention
from moesim.validation.settings import Setting

ROUTINGS = ("forced", "own")
DEFAULT_SYSTEMS = "on-demand,mixtral-offloading,lru+next_gate:horizon=1"
DEFAULT_SLOTS = "25%,50%"
PROTOCOL_TOKENS = (20, 100)
QUICK_TOKENS = {"cpu": (10, 50)}
"""Where a backend's own default is shorter than the protocol's: on a CPU equal decisions are the
point, and they are to be had in two minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The options of the command, as they were given; None is the backend's own choice.

    Attributes:
        source: None is the reference model.
        warm: Decode tokens that are not counted; ``tokens`` are those that are.
        repeats: Executions of each cell.
        settings: How cells are served, one after another.
        commit: Of the code; None asks git.
        profile_trace: What systems that are profiled offline look at; None is what else was
            recorded in the same trace.
    """

    backend: str
    source: Source | None
    trace: Path | None
    system: str | None
    slots: str | None
    vram: str | None
    hardware: str | None
    runtime: str | None
    routing: str
    warm: int | None
    tokens: int | None
    repeats: int
    minutes: float | None
    output: Path | None
    settings: tuple[Setting, ...] = (Setting(),)
    commit: str | None = None
    profile_trace: Path | None = None

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Warm tokens, tokens that count, executions."""
        warm, tokens = QUICK_TOKENS.get(self.backend, PROTOCOL_TOKENS)
        return (
            warm if self.warm is None else self.warm,
            tokens if self.tokens is None else self.tokens,
            self.repeats,
        )

    @property
    def systems(self) -> list[str]:
        """The systems, one by one."""
        return split_list("--system", self.system or DEFAULT_SYSTEMS)

    @property
    def budgets(self) -> list[str]:
        """Room for experts, then VRAM for everything, one by one; see `is_slots`."""
        slots = DEFAULT_SLOTS if self.slots is None and self.vram is None else self.slots
        given = ("--slots", slots), ("--vram", self.vram)
        return [item for option, text in given if text for item in split_list(option, text)]


def check_wishes(wishes: Wishes) -> None:
    """Refuse what cannot be done before anything slow begins.

    Raises:
        InputError: One line that names the option, its value and the way out.
    """
    if wishes.backend not in BACKENDS:
        raise UnknownNameError("backend", wishes.backend, BACKENDS)
    if wishes.routing not in ROUTINGS:
        raise UnknownNameError("routing", wishes.routing, ROUTINGS)
    _check_profiles(wishes)
    _check_model(wishes)
    for setting in wishes.settings:
        _check_setting(wishes, setting)
    _check_output(wishes.output)
    _check_budgets(wishes)


def _check_profiles(wishes: Wishes) -> None:
    if (wishes.hardware is None) != (wishes.runtime is None):
        given, lacking = ("--hardware", "--runtime")
        if wishes.hardware is None:
            given, lacking = lacking, given
        raise InputError(f"{given} is given without {lacking}; give both, or neither to measure")


def _check_model(wishes: Wishes) -> None:
    if wishes.source is not None:
        wishes.source.check()
    if (wishes.source is None) != (wishes.trace is None):
        raise InputError("give --model and --trace together, or neither for the reference model")
    if wishes.source is not None and wishes.source.is_random and wishes.routing == "own":
        raise InputError("--routing own: random weights route by chance; use --routing forced")
    for option, path in (("--trace", wishes.trace), ("--profile-trace", wishes.profile_trace)):
        if path is not None and not path.exists():
            raise InputError(f"{option} {path}: no such file or folder")


def _check_setting(wishes: Wishes, setting: Setting) -> None:
    if wishes.routing == "own":
        for option, is_given in (
            ("--prompt", setting.prompt is not None),
            ("--arrivals", setting.arrivals is not None),
        ):
            if is_given:
                raise InputError(f"{option} makes requests of recorded rows; use --routing forced")
    if setting.arrivals is not None:
        if setting.batching[0] is None:
            raise InputError(
                f"--arrivals {setting.arrivals}: how many run together? Add --max-batch"
            )
        if setting.prompt is not None:
            raise InputError(
                f"--prompt {setting.prompt}: say prompt=N,output=N in --arrivals instead"
            )
    if setting.intervention is not None:
        check_intervention(setting.intervention, wishes.backend, wishes.source)
    for text in wishes.systems:
        batched(choose_system(text).policies, *setting.batching)


def _check_output(output: Path | None) -> None:
    if output is not None:
        if output.exists() and not output.is_dir():
            raise InputError(f"-o {output}: is a file; name a folder")
        if not output.absolute().parent.is_dir():
            raise InputError(f"-o {output}: there is no folder {output.parent}")


def _check_budgets(wishes: Wishes) -> None:
    for option, text in (("--slots", wishes.slots), ("--vram", wishes.vram)):
        for item in [] if text is None else split_list(option, text):
            if is_slots(item) == (option == "--slots") and _is_room(item):
                continue
            if option == "--slots":
                raise InputError(
                    f"--slots {item}: give a number of experts or a share, such as 25%"
                )
            raise InputError(
                f"--vram {item}: give a size, such as 12GiB; a share of the experts is for --slots"
            )


def _is_room(text: str) -> bool:
    if text.isdecimal():
        return int(text) > 0
    try:
        return parse_ppm(text) > 0 if text.endswith("%") else parse_bytes(text) > 0
    except ProfileError:
        return False
