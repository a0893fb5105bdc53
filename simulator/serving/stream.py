"""What ``--arrivals`` says: when requests come and how long they are.

::

    poisson:rate=2,requests=200         arrivals of their own, 2 a second on average
    gamma:rate=2,cv=3,requests=200      the same in bursts: gaps vary 3 times their mean
    users:users=8,requests=200,think=1  8 users, each asks 1 s after the last answer
    file:conv.csv                       a recorded arrival log (see ``traces.request_log``)

Options of all but a file, which says how long its requests are: ``prompt`` and ``output``, lengths
of every request; ``lengths``, a log whose lengths are taken in its order; by default requests are
as long as their recorded sequence. Options of all: ``requests``; ``mix=go:2/dialogue:1`` weighs
tasks; ``order=recorded`` takes sequences unshuffled. A file also takes ``speed``: 2 lets its
requests come twice as fast. Requests that are texts are as long as those, whatever a log says.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.simulator.errors import InputError, UnknownNameError
from moesim.simulator.key_values import key_values
from moesim.simulator.serving.arrivals import Arrivals, OpenLoop, Users
from moesim.simulator.serving.drawing import Drawing, Sequences, draw
from moesim.simulator.terms import SECOND_NS
from moesim.traces import RoutingTrace
from moesim.traces.request_log import RequestLog, load_requests

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
        asks_at_once: Whether somebody who is refused asks again in the same instant.
    """

    text: str
    drawing: Drawing
    new_arrivals: Callable[[], Arrivals]
    asks_at_once: bool = False

    @property
    def requests(self) -> int:
        """How many there are."""
        return len(self.drawing.first_R)


def stream(
    text: str, source: RoutingTrace | Sequences, *, requests: int | None = None, seed: int = 0
) -> RequestStream:
    """Return the requests that a spec asks for.

    Args:
        text: The spec; see the module.
        source: Whose routing, or texts, they use.
        requests: How many, if the spec does not say; all of a file by default.
        seed: Of arrival times and of the order of sequences, in streams of their own.

    Raises:
        UnknownNameError: No such kind or option.
        InputError: A value is wrong, missing or said twice.
        TraceError: A log is wrong.
    """
    kind, _, rest = text.partition(":")
    if kind not in OPTIONS:
        raise UnknownNameError("kind of arrivals", kind, OPTIONS)
    path, given = _options(kind, rest, text)
    times, drawing = np.random.SeedSequence(seed).spawn(2)
    reader = _Numbers(text, given)
    if requests is not None and "requests" in given:
        raise InputError(f"--arrivals {text} --requests {requests}: give one of them")
    wanted = count = reader.whole("requests", requests)
    log = None
    if kind == "file":
        log = load_requests(path, requests=wanted)
        count = len(log.arrival_ns_R)
    if count is None:
        raise InputError(f"--arrivals {text}: how many requests? Add requests=N")
    drawn = draw(
        source,
        count,
        lengths=_lengths(text, given, reader, log, count, source),
        weights=_mix(text, given.get("mix")),
        in_order=_in_order(text, given.get("order", "shuffled")),
        seed=int(drawing.generate_state(1)[0]),
    )
    if wanted is not None and count < wanted:
        drawn.notes.append(f"{Path(path).name} has {count} requests, not {wanted}")
    shown = with_files(text, lambda path: path.name)
    if kind == "users":
        users = reader.whole("users", 1)
        think_ns = round(reader.number("think", 0.0, may_be_0=True) * SECOND_NS)
        assert users is not None
        return RequestStream(
            shown, drawn, lambda: Users(users, count, think_ns), asks_at_once=think_ns == 0
        )
    if log is not None:
        speed = reader.number("speed", 1.0)
        at_ns = [round(int(ns) / speed) for ns in log.arrival_ns_R]
    else:
        shape = reader.number("cv", 1.0) ** -2
        gap_s = 1 / reader.number("rate")
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
    path = ""
    if kind == "file":
        path, _, rest = rest.partition(",")
        if not path:
            raise InputError(f"--arrivals {text}: which file? Write file:PATH")
    given = key_values(rest, f"--arrivals {text}")
    for key in given:
        if key not in OPTIONS[kind]:
            raise UnknownNameError(f"option of {kind} arrivals", key, OPTIONS[kind])
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

    def number(self, name: str, default: float | None = None, *, may_be_0: bool = False) -> float:
        """Return a number above 0, or of at least 0."""
        value = self._given.get(name)
        if value is None:
            if default is None:
                raise InputError(f"--arrivals {self._text}: {name} is missing; add {name}=NUMBER")
            return default
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (0 < number < math.inf or (may_be_0 and number == 0)):
            limit = "of at least 0" if may_be_0 else "above 0"
            raise InputError(f"--arrivals {self._text}: {name}={value}: expected a number {limit}")
        return number


def _lengths(
    text: str,
    given: Mapping[str, str],
    reader: _Numbers,
    log: RequestLog | None,
    count: int,
    source: RoutingTrace | Sequences,
) -> tuple[Sequence[int], Sequence[int]] | None:
    fixed = [name for name in ("prompt", "output") if name in given]
    if isinstance(source, Sequences):
        for name in ("lengths", *fixed):
            if name in given:
                raise InputError(
                    f"--arrivals {text}: {name}={given[name]}: texts are as long as they are; "
                    "leave it out, or serve the routes of a trace"
                )
        return None
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
    prompt, output = reader.whole("prompt", None), reader.whole("output", None)
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
