"""What ``--intervene`` may say; light without torch."""

from dataclasses import dataclass
from fractions import Fraction

from moesim.backends.sources import Source
from moesim.simulator.errors import InputError, UnknownNameError

LINK, COPIES, CPU_THREADS, PAGEABLE = "link", "copies", "cpu_threads", "pageable"
NAMES = (LINK, COPIES, CPU_THREADS, PAGEABLE)
MOST_TIMES = 64


@dataclass(frozen=True, slots=True)
class Intervention:
    """One change of the machine.

    Attributes:
        text: As the user gave it.
        name: Which figure is changed.
        times: By how much: every byte travels so many times, an expert in so many copies, the CPU
            computes with so many threads.
    """

    text: str
    name: str
    times: int


def parse_intervention(text: str) -> Intervention:
    """Return what an option says.

    >>> parse_intervention("link=0.5").times, parse_intervention("copies=8").times
    (2, 8)

    Raises:
        UnknownNameError: There is no such intervention.
        InputError: Its value is missing, or none that can be made so.
    """
    name, _, value = text.partition("=")
    if name not in NAMES:
        raise UnknownNameError("intervention", name, NAMES)
    if name == PAGEABLE:
        if value:
            raise InputError(f"--intervene {text}: pageable takes no value")
        return Intervention(text, name, 1)
    try:
        number = Fraction(value)
    except (ValueError, ZeroDivisionError):
        number = Fraction(0)
    if name == LINK:
        number = 1 / number if number else number
    least = 1 if name == CPU_THREADS else 2
    if number.denominator != 1 or not least <= number <= MOST_TIMES:
        ways = "1/n of its speed, such as 0.5" if name == LINK else "a whole number, such as 4"
        raise InputError(f"--intervene {text}: give {ways}, at most {MOST_TIMES} times")
    return Intervention(text, name, int(number))


def check_intervention(one: Intervention, backend: str, source: Source | None) -> None:
    """Refuse an intervention that this backend or model cannot be put to.

    Raises:
        InputError: One line that names the way out.
    """
    if one.name == PAGEABLE and (backend == "cpu" or source is None or not source.is_random):
        raise InputError(
            "--intervene pageable: copies a few experts' weights for all; give --backend cuda and "
            "a model with --weights random"
        )
