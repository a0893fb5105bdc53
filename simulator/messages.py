"""What passes between a driver and the controller: facts in, commands out.

A driver reports *facts* and obeys *commands* (design 4.1). Commands that take time are numbered
from 1 in one sequence, so that facts and ``after`` can name them. ``after`` names only what was
handed over before. Every message is a named tuple of plain values: equal messages compare equal,
which is how a fact log proves that two drivers were given the same commands.

What comes in numbers comes in *batches* too (rule 10): ``Copies``, ``Runs`` and ``CopiesEnded``
say the same as so many single messages one after another, which the functions at the end of this
file return. Logs hold single messages.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from moesim.simulator.terms import NO_PROMISE, RAM, Cause, Device, Phase, Place, Slo

# facts


class RunBegan(NamedTuple):
    """The first fact of a run.

    ``residents`` are the experts that lie in VRAM before time zero; ``budget_bytes`` is the room
    for experts, staging included.
    """

    residents: tuple[int, ...]
    budget_bytes: int


class RequestArrived(NamedTuple):
    """A request waits to be served.

    ``arrived_ns`` is when it arrived, which may be before it is told; None means now.
    ``kv_bytes`` is what its KV cache reserves while it is served.
    """

    request: int
    prompt_tokens: int = 0
    task: str = ""
    arrived_ns: int | None = None
    kv_bytes: int = 0
    slo: Slo = NO_PROMISE


class RequestEnded(NamedTuple):
    """A request has had its last step."""

    request: int


class StepBegan(NamedTuple):
    """A forward pass of these requests begins; ``signals`` are known before its first layer."""

    step: int
    requests: tuple[int, ...]
    phases: tuple[Phase, ...]
    signals: Mapping[str, Any]


class LayerRouted(NamedTuple):
    """The router of one MoE layer has chosen.

    ``experts`` are the choices in touch order: by token, then by router rank; a repeated expert
    stands once for each token that chose it (``Choices``, where they are many). ``gates`` are their
    weights in the same order, or empty. Every GPU run that was handed over earlier has ended, of
    this device and of all others: their results went into what it routes.
    """

    step: int
    layer: int
    experts: Sequence[int]
    gates: tuple[float, ...] | list[float] = ()
    signals: Mapping[str, Any] = {}
    device: Device = Device("gpu")


class CopyEnded(NamedTuple):
    """Copy or move ``n`` is complete."""

    n: int


class CopiesEnded(NamedTuple):
    """So many ``CopyEnded``, in this order."""

    numbers: Sequence[int]


class CpuRunEnded(NamedTuple):
    """CPU run ``n`` is complete and its result is where the GPU can read it."""

    n: int


class Answered(NamedTuple):
    """The answer to ask ``n``."""

    n: int
    name: str
    value: Any


class StepEnded(NamedTuple):
    """A step is complete; ``tokens`` says how many tokens each of its requests got."""

    step: int
    tokens: tuple[int, ...]


class BudgetChanged(NamedTuple):
    """The room for experts is now this; told only between steps."""

    budget_bytes: int


class TimerFired(NamedTuple):
    """The time asked for by wake ``n`` has come."""

    n: int


class Failed(NamedTuple):
    """Command ``n`` could not be carried out; the run cannot go on."""

    n: int
    reason: str


Fact = (
    RunBegan
    | RequestArrived
    | RequestEnded
    | StepBegan
    | LayerRouted
    | CopyEnded
    | CpuRunEnded
    | Answered
    | StepEnded
    | BudgetChanged
    | TimerFired
    | Failed
)

Report = Fact | CopiesEnded
"""A fact, or a batch of them."""

# commands


class FormStep(NamedTuple):
    """Run one forward pass of these requests.

    ``prompt_chunks`` caps the prompt tokens that each may contribute; None takes all that is left.
    """

    requests: tuple[int, ...]
    prompt_chunks: tuple[int | None, ...]


class Wait(NamedTuple):
    """Form no step now; report the next arrival, timer or answer."""


class Copy(NamedTuple):
    """Copy one expert part; it begins when the runs in ``after`` have ended."""

    n: int
    expert: int
    part: int
    src: Place
    dst: Place
    cause: Cause
    after: tuple[int, ...] = ()


class Run(NamedTuple):
    """Compute these experts on one device, as one launch, once the copies in ``after`` have ended.

    ``tokens`` counts, for each expert, the tokens it serves. ``part`` is the part that a GPU
    computes; a CPU computes whole experts.
    """

    n: int
    experts: tuple[int, ...]
    tokens: tuple[int, ...]
    device: Device
    after: tuple[int, ...] = ()
    part: int = 0


class Copies(NamedTuple):
    """Copies of ``nbytes`` each that wait for nothing: the i-th has the number ``first + i``."""

    first: int
    experts: list[int]
    places: list[Place]
    cause: Cause
    nbytes: int
    part: int = 0
    src: Place = RAM


class Runs(NamedTuple):
    """Launches of one expert each on one device: the i-th has the number ``first + i``.

    It waits for the copy ``after[i]``, or for nothing where that is 0.
    """

    first: int
    experts: Sequence[int]
    tokens: tuple[int, ...]
    device: Device
    after: Sequence[int]
    part: int = 0


class Move(NamedTuple):
    """Move one expert part between two places of one device."""

    n: int
    expert: int
    part: int
    src: Place
    dst: Place
    after: tuple[int, ...] = ()


class Drop(NamedTuple):
    """Forget one expert part; its place is free. Weights are read-only: nothing is written back."""

    expert: int
    part: int
    place: Place


class Reroute(NamedTuple):
    """Replace choices of the router (lossy): by position in ``LayerRouted.experts``; None skips."""

    layer: int
    changes: tuple[tuple[int, int | None], ...]


class Ask(NamedTuple):
    """Have something slow computed elsewhere: a predictor, a map search, a configurator."""

    n: int
    name: str
    question: Any


class WakeAt(NamedTuple):
    """Report a timer at this time, or as soon after it as the host polls."""

    n: int
    at_ns: int


class LayerDone(NamedTuple):
    """All of the layer is handed over and its CPU runs have ended: launch what follows."""

    layer: int


Command = FormStep | Wait | Copy | Run | Move | Drop | Reroute | Ask | WakeAt | LayerDone

Order = Command | Copies | Runs
"""A command, or a batch of them."""


def commands_one_by_one(orders: Iterable[Order]) -> Iterator[Command]:
    """Yield the commands of an answer, each by itself."""
    for order in orders:
        if isinstance(order, Copies):
            first, experts, places, cause, _, part, src = order
            for i, (expert, place) in enumerate(zip(experts, places, strict=True)):
                yield Copy(first + i, expert, part, src, place, cause)
        elif isinstance(order, Runs):
            first, run, tokens, device, after, part = order
            for i, (expert, count, copy) in enumerate(zip(run, tokens, after, strict=True)):
                yield Run(first + i, (expert,), (count,), device, (copy,) if copy else (), part)
        else:
            yield order


def facts_one_by_one(facts: Iterable[Report]) -> Iterator[Fact]:
    """Yield the facts of a report, each by itself."""
    for fact in facts:
        if isinstance(fact, CopiesEnded):
            yield from map(CopyEnded, fact.numbers)
        else:
            yield fact


def count_commands(orders: Iterable[Order]) -> int:
    """Return how many commands an answer has."""
    count = 0
    for order in orders:
        kind = type(order)
        count += len(order.experts) if kind is Copies or kind is Runs else 1  # type: ignore[union-attr]
    return count
