"""What ``--arrivals`` says: when requests come and how long they are.

::

    poisson:rate=2,requests=200         arrivals of their own, 2 a second on average
    gamma:rate=2,cv=3,requests=200      the same in bursts: gaps vary 3 times their mean
    users:users=8,requests=200,think=1  8 users, each asks 1 s after the last answer
    file:conv.csv                       a recorded arrival log (see ``traces.request_log``)

Options of all: ``prompt`` and ``output``, lengths of every request; ``lengths``, a log whose
lengths are taken in its order; by default requests are as long as their recorded sequence.
``mix=go:2/dialogue:1`` weighs tasks; ``order=recorded`` takes sequences unshuffled. A file also
takes ``speed``: 2 lets its requests come twice as fast.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.simulator.errors import InputError, UnknownNameError
from moesim.simulator.serving.arrivals import Arrivals, OpenLoop, Users
from moesim.simulator.serving.drawing import Drawing, draw
from moesim.traces import RoutingTrace
from moesim.traces.request_log import RequestLog, load_requests

SECOND_NS = 10**9

COMMON = ("requests", "prompt", "output", "lengths", "mix", "order")
OPTIONS: Mapping[str, Sequence[str]] = {
    "poisson": ("rate", *COMMON),
    "gamma": ("rate", "cv", *COMMON),
    "users": ("users", "think", *COMMON),
    "file": ("speed", "mix", "order", "requests"),
}


@dataclass(frozen=True, slots=True)
class RequestStream:
    """Requests to be served.

    Attributes:
        text: As the user said it, files by their names.
        drawing: Whose routing they use, and how long they are.
        new_arrivals: Makes a fresh source of their arrivals.
    """

    text: str
    drawing: Drawing
    new_arrivals: Callable[[], Arrivals]

    @property
    def requests(self) -> int:
        """How many there are."""
        return len(self.drawing.first_R)


def stream(
    text: str, trace: RoutingTrace, *, requests: int | None = None, seed: int = 0
) -> RequestStream:
    """Return the requests that a spec asks for.

    Args:
        text: The spec; see the module.
        trace: Whose routing they use.
        requests: How many, where the spec does not say; all of a file by default.
        seed: Of arrival times and of the order of sequences, in streams of their own.

    Raises:
        UnknownNameError: No such kind or option.
        InputError: A value is wrong or missing.
        TraceError: A log is wrong.
    """
    kind, _, rest = text.partition(":")
    if kind not in OPTIONS:
        raise UnknownNameError("kind of arrivals", kind, OPTIONS)
    path, given = _options(kind, rest, text)
    times, drawing = np.random.SeedSequence(seed).spawn(2)
    number = _Numbers(text, given)
    count = number.whole("requests", requests)
    log = None
    if kind == "file":
        log = load_requests(path, requests=count)
        count = len(log.arrival_ns_R)
    if count is None:
        raise InputError(f"--arrivals {text}: how many requests? Add requests=N")
    drawn = draw(
        trace,
        count,
        lengths=_lengths(text, given, number, log, count),
        weights=_mix(text, given.get("mix")),
        in_order=_in_order(text, given.get("order", "shuffled")),
        seed=int(drawing.generate_state(1)[0]),
    )
    shown = with_files(text, lambda path: path.name)
    if kind == "users":
        users, think_s = number.whole("users", 1), number.positive("think", 0.0)
        assert users is not None
        return RequestStream(shown, drawn, lambda: Users(users, count, round(think_s * SECOND_NS)))
    if log is not None:
        speed = number.positive("speed", 1.0)
        at_ns = [round(int(ns) / speed) for ns in log.arrival_ns_R]
    else:
        shape = number.positive("cv", 1.0) ** -2
        gap_s = 1 / number.positive("rate")
        gaps_s = np.random.default_rng(times).gamma(shape, gap_s / shape, count)
        at_ns = [round(at_s * SECOND_NS) for at_s in np.cumsum(gaps_s).tolist()]
    return RequestStream(shown, drawn, lambda: OpenLoop(at_ns))


def with_files(text: str, name: Callable[[Path], object]) -> str:
    """Return a spec in which every file is called otherwise.

    >>> with_files("file:logs/conv.csv,speed=2", lambda path: path.name)
    'file:conv.csv,speed=2'
    """
    kind, colon, rest = text.partition(":")
    items = rest.split(",")
    for at, item in enumerate(items):
        if kind == "file" and at == 0 and item:
            items[at] = str(name(Path(item)))
        elif item.startswith("lengths="):
            items[at] = f"lengths={name(Path(item.removeprefix('lengths=')))}"
    return f"{kind}{colon}{','.join(items)}"


def _options(kind: str, rest: str, text: str) -> tuple[str, dict[str, str]]:
    items = rest.split(",") if rest else []
    path = ""
    if kind == "file":
        if not items or not items[0]:
            raise InputError(f"--arrivals {text}: which file? Write file:PATH")
        path, *items = items
    given = {}
    for item in items:
        key, equals, value = item.partition("=")
        if key not in OPTIONS[kind]:
            raise UnknownNameError(f"option of {kind} arrivals", key, OPTIONS[kind])
        if not equals or not value:
            raise InputError(f"--arrivals {text}: option {key} has no value; write {key}=VALUE")
        given[key] = value
    return path, given


class _Numbers:
    """Reads the numbers among the options."""

    def __init__(self, text: str, given: Mapping[str, str]) -> None:
        self._text = text
        self._given = given

    def whole(self, name: str, default: int | None) -> int | None:
        """Return a count of at least 1."""
        value = self._given.get(name)
        if value is None:
            return default
        if not value.isdecimal() or int(value) < 1:
            raise InputError(f"--arrivals {self._text}: {name}={value}: expected a count above 0")
        return int(value)

    def positive(self, name: str, default: float | None = None) -> float:
        """Return a number above 0; one that is left out may be 0."""
        value = self._given.get(name)
        if value is None:
            if default is None:
                raise InputError(f"--arrivals {self._text}: {name} is missing; add {name}=NUMBER")
            return default
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not (0 < number < math.inf):
            raise InputError(f"--arrivals {self._text}: {name}={value}: expected a number above 0")
        return number


def _lengths(
    text: str,
    given: Mapping[str, str],
    number: _Numbers,
    log: RequestLog | None,
    count: int,
) -> tuple[Sequence[int], Sequence[int]] | None:
    fixed = [name for name in ("prompt", "output") if name in given]
    if "lengths" in given:
        if fixed:
            raise InputError(f"--arrivals {text}: give lengths=FILE or {fixed[0]}, not both")
        log = load_requests(given["lengths"])
        repeats = -(-count // len(log.arrival_ns_R))
        prompts, outputs = log.prompt_tokens_R.tolist(), log.output_tokens_R.tolist()
        return (prompts * repeats)[:count], (outputs * repeats)[:count]
    if log is not None:
        return log.prompt_tokens_R.tolist(), log.output_tokens_R.tolist()
    if not fixed:
        return None
    prompt, output = number.whole("prompt", None), number.whole("output", None)
    if prompt is None or output is None:
        raise InputError(f"--arrivals {text}: give both prompt=N and output=N, or neither")
    return [prompt] * count, [output] * count


def _mix(text: str, mix: str | None) -> dict[str, float] | None:
    if mix is None:
        return None
    weights = {}
    for part in mix.split("/"):
        task, _, weight = part.rpartition(":")
        try:
            weights[task] = float(weight)
        except ValueError:
            weights[task] = 0.0
        if not (task and 0 < weights[task] < math.inf):
            raise InputError(
                f"--arrivals {text}: mix={mix}: expected TASK:WEIGHT/TASK:WEIGHT, weights above 0"
            )
    return weights


def _in_order(text: str, order: str) -> bool:
    if order not in ("recorded", "shuffled"):
        raise InputError(f"--arrivals {text}: order={order}: expected recorded or shuffled")
    return order == "recorded"
