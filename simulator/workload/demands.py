"""Turns a routing trace into what a driver serves: requests, their steps, each layer's choices.

Nothing is copied before its request begins, so a memory-mapped trace replays in the memory of its
longest request.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.choices import Choices, choices_by_layer, flat_ids
from moesim.simulator.errors import CapabilityError
from moesim.simulator.messages import FormStep, LayerRouted
from moesim.simulator.serving.arrivals import Arrivals, Users
from moesim.simulator.terms import GPU, Phase
from moesim.simulator.workload.signals import RequestSignals, merge
from moesim.traces import RoutingTrace

# T tokens, L MoE layers, K chosen.

_new = tuple.__new__  # half the time of LayerRouted(...), which is Python

Rows = slice | NDArray[np.int64]
"""Rows of a trace: those of a recorded request, or any."""


class StepRows(NamedTuple):
    """One recorded forward pass of one request: rows [begin, end) of the request."""

    begin: int
    end: int
    phase: Phase
    context_tokens: int
    gives_token: bool


class Turns(Protocol):
    """Which rows of a request each of its steps takes."""

    def next(self, chunk: int | None) -> tuple[StepRows, StepRows | None]:
        """Return the rows of the next step and those of the step before, if there was one.

        Args:
            chunk: The most prompt tokens to take; None takes all that are left.
        """
        ...

    @property
    def is_finished(self) -> bool:
        """Whether no step is left."""
        ...


@dataclass(slots=True)
class Open:
    """A request being served: its rows, and which step comes next."""

    turns: Turns
    chosen_TLK: NDArray[np.int32]
    gates_TLK: NDArray[Any] | None
    signals: RequestSignals
    first_single: int
    names: NDArray[np.object_]
    _choices: list[list[list[int]]] | None = None
    _gates: list[list[list[float]]] | None = None

    def begin(self, chunk: int | None) -> "_Part":
        """Begin the next step."""
        return _Part(self, *self.turns.next(chunk))

    def single(self, row: int) -> list[list[int]]:
        """Return the choices of one decode row, layer by layer."""
        if self._choices is None:
            self._choices = self.names[self.chosen_TLK[self.first_single :]].tolist()
        return self._choices[row - self.first_single]

    def single_gates(self, row: int) -> list[list[float]]:
        """Return the gates of one decode row, layer by layer."""
        if self._gates is None:
            assert self.gates_TLK is not None
            self._gates = self.gates_TLK[self.first_single :].tolist()
        return self._gates[row - self.first_single]


class _Part(NamedTuple):
    """What one request contributes to a step."""

    open: Open
    rows: StepRows
    before: StepRows | None


class Step:
    """One forward pass of one or more requests.

    Attributes:
        tokens: New tokens, of all requests together.
        contexts: Positions that each request attends to, new ones included.
        context_tokens: Their sum.
        pairs: (query, key) pairs of attention, each new token with all up to itself.
        spans: Which rows of each request it takes, from begin to end.
        tokens_out: How many tokens each request gets.
    """

    def __init__(
        self, number: int, requests: tuple[int, ...], parts: list[_Part], experts: int
    ) -> None:
        self.number = number
        self.requests = requests
        self.phases = tuple([part.rows.phase for part in parts])
        self.tokens_out = tuple([int(part.rows.gives_token) for part in parts])
        self.contexts = tuple([part.rows.context_tokens for part in parts])
        self.context_tokens = sum(self.contexts)
        self.spans = tuple([part.rows[:2] for part in parts])
        self.tokens = self.pairs = 0
        for _, (begin, end, _, context_tokens, _), _ in parts:
            tokens = end - begin
            self.tokens += tokens
            self.pairs += tokens * context_tokens - tokens * (tokens - 1) // 2
        self.signals = merge(
            [
                part.open.signals.at_step(part.rows[:2], part.before[:2] if part.before else None)
                for part in parts
            ]
        )
        self._parts = parts
        self._experts = experts
        self._choices: list[Choices] | None = None
        first = parts[0]
        self._is_plain = first.open.gates_TLK is None and not first.open.signals.names
        is_single = len(parts) == 1 and first.rows.phase is Phase.DECODE and self.tokens == 1
        self._single = first.open.single(first.rows.begin) if is_single else None

    def routed(self, layer: int) -> LayerRouted:
        """Return the fact that the router of a layer has chosen."""
        if self._is_plain:
            return _new(LayerRouted, (self.number, layer, self.choices(layer), (), {}, GPU))
        return LayerRouted(
            self.number,
            layer,
            self.choices(layer),
            self.gates(layer),
            self.layer_signals(layer),
        )

    def choices(self, layer: int) -> list[int] | Choices:
        """Return the experts chosen in one layer, in touch order: by token, then by router rank."""
        if self._single is not None:
            return self._single[layer]
        if self._choices is None:
            rows = [open_.chosen_TLK[rows.begin : rows.end] for open_, rows, _ in self._parts]
            names = self._parts[0].open.names
            self._choices = choices_by_layer(np.concatenate(rows), self._experts, names)
        return self._choices[layer]

    def gates(self, layer: int) -> list[float]:
        """Return the gate weights of ``choices``, or nothing where the trace has none."""
        first = self._parts[0]
        if first.open.gates_TLK is None:
            return []
        if self._single is not None:
            return first.open.single_gates(first.rows.begin)[layer]
        gates: list[float] = []
        for open_, (begin, end, *_), _ in self._parts:
            assert open_.gates_TLK is not None
            here_TK = open_.chosen_TLK[begin:end, layer] >= 0
            gates += open_.gates_TLK[begin:end, layer][here_TK].tolist()
        return gates

    def layer_signals(self, layer: int) -> Mapping[str, Any]:
        """Return the signals known once this layer is routed, each a list over the tokens."""
        return merge([part.open.signals.at_layer(layer, part.rows[:2]) for part in self._parts])


class Workload:
    """The requests of a trace, served as recorded: each step's tokens and choices are the trace's.

    Args:
        trace: What was routed.
        signals: Names of the trace's signals that the policies read; the others are not loaded.
        gates: Whether a policy reads the gate weights.
    """

    def __init__(
        self, trace: RoutingTrace, *, signals: Sequence[str] = (), gates: bool = False
    ) -> None:
        self._trace = trace
        self._signals = tuple(signals)
        self._gates = gates and trace.gate_TLK is not None
        self._starts = trace.row_starts().tolist()
        self._open: dict[int, Open] = {}
        self._steps_begun = 0
        self.layers = trace.layers
        self.experts = trace.experts
        self.requests = trace.requests
        # One int object for each expert (and -1): equal keys that are identical are found faster.
        self._names = np.array([*range(trace.layers * trace.experts), -1], dtype=object)

    def arrivals(self) -> Arrivals:
        """Return when requests come: one user asks, and again once answered."""
        return Users(1, self.requests)

    def prompt_tokens(self, request: int) -> int:
        """Return the length of a prompt, or 0 where unknown."""
        return max(0, int(self._trace.prompt_tokens_R[request]))

    def output_tokens(self, request: int) -> int:
        """Return the length of an answer, or 1 where unknown."""
        return max(1, int(self._trace.output_tokens_R[request]))

    def task(self, request: int) -> str:
        """Return the task label of a request."""
        return self._trace.task_R[request]

    def begin(self, form: FormStep) -> Step:
        """Begin the next recorded step of these requests.

        Raises:
            CapabilityError: A prompt is to be cut otherwise than it was recorded.
        """
        parts = []
        for request, chunk in zip(form.requests, form.prompt_chunks, strict=True):
            open_ = self._open.get(request)
            if open_ is None:
                open_ = self._open[request] = self._load(request)
            parts.append(open_.begin(chunk))
        self._steps_begun += 1
        return Step(self._steps_begun - 1, form.requests, parts, self.experts)

    def is_finished(self, request: int) -> bool:
        """Return whether a request has had its last step; if so its rows are let go."""
        if not self._open[request].turns.is_finished:
            return False
        del self._open[request]
        return True

    def events(self) -> Iterator[Sequence[int]]:
        """Yield the choices of every layer event, requests one after another."""
        for request in range(self.requests):
            open_ = self._load(request)
            while not open_.turns.is_finished:
                step = Step(0, (request,), [open_.begin(None)], self.experts)
                for layer in range(self.layers):
                    yield step.choices(layer)

    def _load(self, request: int) -> Open:
        rows = slice(self._starts[request], self._starts[request + 1])
        return self._open_rows(request, rows, RecordedTurns(self._trace, request, rows))

    def _open_rows(self, request: int, rows: Rows, turns: Turns) -> Open:
        """Return rows of the trace as a request; ``request`` is whose signals they carry."""
        trace = self._trace
        expert_TLK = np.asarray(trace.expert_TLK[rows])
        gates = trace.gate_TLK if self._gates else None
        is_prefill_T = np.asarray(trace.is_prefill_T[rows])
        return Open(
            turns,
            flat_ids(expert_TLK, self.experts),
            None if gates is None else np.asarray(gates[rows]),
            RequestSignals(trace, request, rows, self._signals),
            first_single=int(is_prefill_T.sum()),
            names=self._names,
        )


class RecordedTurns:
    """The forward passes of one request as recorded, told apart by their step number."""

    def __init__(self, trace: RoutingTrace, request: int, rows: slice) -> None:
        self._request = request
        self._steps = list(_steps(trace, rows))
        self._at = 0

    def next(self, chunk: int | None) -> tuple[StepRows, StepRows | None]:
        """Return the rows of the next step and those of the step before."""
        rows = self._steps[self._at]
        is_cut = chunk is not None and rows.phase is Phase.PREFILL
        if is_cut and chunk is not None and rows.end - rows.begin > chunk:
            raise CapabilityError(
                f"request {self._request} is to be cut to {chunk} prompt tokens, its next step was "
                f"recorded with {rows.end - rows.begin}; a trace is served in the steps it was "
                "recorded in, unless requests arrive with --arrivals"
            )
        before = self._steps[self._at - 1] if self._at else None
        self._at += 1
        return rows, before

    @property
    def is_finished(self) -> bool:
        """Whether no step is left."""
        return self._at == len(self._steps)


def _steps(trace: RoutingTrace, rows: slice) -> Iterator[StepRows]:
    """Yield the forward passes of one request, told apart by their step number."""
    step_T = np.asarray(trace.step_T[rows])
    position_T = np.asarray(trace.position_T[rows])
    is_prefill_T = np.asarray(trace.is_prefill_T[rows])
    bounds = [0, *(np.flatnonzero(np.diff(step_T)) + 1).tolist(), len(step_T)]
    last_prefill = int(is_prefill_T.sum())
    for begin, end in pairwise(bounds):
        is_prefill = bool(is_prefill_T[begin])
        yield StepRows(
            begin,
            end,
            Phase.PREFILL if is_prefill else Phase.DECODE,
            int(position_T[end - 1]) + 1,
            not is_prefill or end == last_prefill,
        )
