"""Which recorded rows a served request replays.

A request takes the prompt of one recorded sequence and goes on with the answer of the same one.
Where it is longer than recorded, further sequences of the same task follow (*stitched*); where it
is shorter, the rest is left out. Sequences are taken in an order drawn from a seed, again from the
start once all were used, each task in turn as often as its weight says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.errors import CapabilityError, UnknownNameError
from moesim.traces import RoutingTrace

# R served requests, S recorded sequences, T rows of the trace.

Rows = NDArray[np.int64]


@dataclass(slots=True)
class Rowed:
    """The rows of one sequence, prompt and answer apart."""

    prompt: Rows
    answer: Rows


@dataclass(slots=True)
class Sequences:
    """What requests are drawn from; of texts only who comes is drawn, for they are whole.

    Attributes:
        sequences: S of them.
        task_R: Task of each.
        what: What is drawn from what, as a note says it.
        notes: What a reader of results must know.
    """

    sequences: list[Rowed]
    task_R: Sequence[str]
    what: tuple[str, str] = ("routing", "recorded sequences")
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, trace: RoutingTrace) -> "Sequences":
        """Return those of a trace.

        Raises:
            CapabilityError: The trace has no prompts.
        """
        if not trace.has_prefill:
            raise CapabilityError(
                "the trace has no prompt rows, which requests that arrive begin with; record "
                "prompts too, or replay it one sequence after another without --arrivals"
            )
        starts = trace.row_starts()
        is_prefill_T = np.asarray(trace.is_prefill_T)
        found = []
        for request in range(trace.requests):
            rows = np.arange(starts[request], starts[request + 1])
            prompt = is_prefill_T[rows]
            found.append(Rowed(rows[prompt], rows[~prompt]))
        if trace.has_decode:
            return cls(found, trace.task_R)
        note = "answers are prompt rows read again as decode steps (the trace is teacher-forced)"
        return cls([Rowed(one.prompt, one.prompt) for one in found], trace.task_R, notes=[note])


@dataclass(slots=True)
class Drawing:
    """The routing of served requests.

    Attributes:
        first_R: The recorded sequence whose prompt each request begins with.
        prompt_tokens_R: Length of each prompt.
        output_tokens_R: Tokens of each answer; the last is never fed back.
        task_R: Task of each request.
        stitched: How many requests are longer than the sequence they began with.
        notes: What a reader of results must know.
    """

    first_R: list[int]
    prompt_tokens_R: list[int]
    output_tokens_R: list[int]
    task_R: list[str]
    stitched: int
    notes: list[str]
    _sequences: list[Rowed] = field(repr=False)
    _after: Mapping[int, Sequence[int]] = field(repr=False)

    def all_rows(self) -> list[Rows]:
        """Return the rows of all requests."""
        return [self.rows(request) for request in range(len(self.first_R))]

    def rows(self, request: int) -> Rows:
        """Return the rows of a request in order: its prompt, then all of its answer but the last.

        Prompts are stitched from prompts and answers from answers.
        """
        order = self._after[self.first_R[request]]
        prompts = [self._sequences[s].prompt for s in order]
        answers = [self._sequences[s].answer for s in order]
        return np.concatenate(
            [
                _stitch(prompts, self.prompt_tokens_R[request]),
                _stitch(answers, self.output_tokens_R[request] - 1),
            ]
        )


def draw(
    source: RoutingTrace | Sequences,
    requests: int,
    *,
    lengths: tuple[Sequence[int], Sequence[int]] | None = None,
    weights: Mapping[str, float] | None = None,
    in_order: bool = False,
    seed: int = 0,
) -> Drawing:
    """Choose the routing of every request.

    Args:
        source: The sequences; what lacks a prompt or an answer is not used, unless no sequence of
            a trace has an answer: then prompts are read again as answers.
        requests: R.
        lengths: Prompt and output tokens of every request; those of its sequence if left out.
        weights: How often each task comes; as often as recorded if left out.
        in_order: Whether sequences come as recorded instead of shuffled.
        seed: Of the order.

    Raises:
        CapabilityError: The trace has no prompts.
        UnknownNameError: A weight is given to a task that there is not.
    """
    found = Sequences.of(source) if isinstance(source, RoutingTrace) else source
    sequences, notes = found.sequences, list(found.notes)
    usable = [s for s, one in enumerate(sequences) if len(one.prompt) and len(one.answer)]
    rng = np.random.default_rng(seed)
    by_task: dict[str, list[int]] = {}
    for s in usable if in_order else rng.permutation(usable).tolist():
        by_task.setdefault(found.task_R[s], []).append(s)
    tasks = _tasks(found.task_R, usable, by_task, requests, weights, rng, in_order=in_order)
    used = dict.fromkeys(by_task, 0)
    first_R = []
    for task in tasks:
        mine = by_task[task]
        first_R.append(mine[used[task] % len(mine)])
        used[task] += 1
    after = {s: [*mine[at:], *mine[:at]] for mine in by_task.values() for at, s in enumerate(mine)}
    if lengths is None:
        prompt_R = [len(sequences[s].prompt) for s in first_R]
        output_R = [len(sequences[s].answer) + 1 for s in first_R]
    else:
        prompt_R, output_R = ([int(n) for n in column[:requests]] for column in lengths)
    stitched = sum(
        prompt > len(sequences[s].prompt) or output - 1 > len(sequences[s].answer)
        for s, prompt, output in zip(first_R, prompt_R, output_R, strict=True)
    )
    what, whole = found.what
    notes.insert(
        0,
        f"the {what} of {requests} requests is drawn from {len(set(first_R))} of "
        f"{len(sequences)} {whole}",
    )
    if stitched:
        notes.append(f"{stitched} requests stitched from sequences of one task")
    return Drawing(first_R, prompt_R, output_R, tasks, stitched, notes, sequences, after)


def _tasks(
    task_R: Sequence[str],
    usable: Sequence[int],
    by_task: Mapping[str, Sequence[int]],
    requests: int,
    weights: Mapping[str, float] | None,
    rng: np.random.Generator,
    *,
    in_order: bool,
) -> list[str]:
    """Return the task of every request."""
    if weights is None:
        order = usable if in_order else rng.permutation(usable).tolist()
        return [task_R[order[r % len(order)]] for r in range(requests)]
    for task in weights:
        if task not in by_task:
            raise UnknownNameError("task in the trace", task, by_task)
    names = list(weights)
    share = np.asarray([weights[name] for name in names], np.float64)
    return [names[at] for at in rng.choice(len(names), requests, p=share / share.sum())]


def _stitch(pieces: Sequence[Rows], count: int) -> Rows:
    """Return the first rows of the pieces one after another, again and again."""
    taken: list[Rows] = []
    at = 0
    while count > 0:
        piece = pieces[at % len(pieces)][:count]
        taken.append(piece)
        count -= len(piece)
        at += 1
    return np.concatenate(taken) if taken else np.empty(0, np.int64)
