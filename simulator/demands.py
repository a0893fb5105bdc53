"""Turns a routing trace into what a driver serves: requests, their steps, each layer's choices.

Nothing is copied before its request begins, so a memory-mapped trace replays in the memory of its
longest request.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from moesim.simulator.errors import CapabilityError
from moesim.simulator.messages import FormStep, LayerRouted
from moesim.simulator.signals import RequestSignals, merge
from moesim.simulator.terms import Phase
from moesim.traces import RoutingTrace

# T tokens, L MoE layers, K chosen.


class StepRows(NamedTuple):
    """One recorded forward pass of one request: rows [begin, end) of the request."""

    begin: int
    end: int
    phase: Phase
    context_tokens: int
    gives_token: bool


@dataclass(slots=True)
class _Open:
    """A request being served: its rows as plain lists, and the step it is at."""

    steps: list[StepRows]
    at: int
    choices_TLK: list[list[list[int]]]
    gates_TLK: list[list[list[float]]] | None
    signals: RequestSignals

    def begin(self) -> "_Part":
        """Begin the next step."""
        rows = self.steps[self.at]
        before = self.steps[self.at - 1] if self.at else None
        self.at += 1
        return _Part(self, rows, before)


class _Part(NamedTuple):
    """What one request contributes to a step."""

    open: _Open
    rows: StepRows
    before: StepRows | None


class Step:
    """One forward pass of one or more requests."""

    def __init__(self, number: int, requests: tuple[int, ...], parts: list[_Part]) -> None:
        self.number = number
        self.requests = requests
        self.phases = tuple(part.rows.phase for part in parts)
        self.tokens = sum(part.rows.end - part.rows.begin for part in parts)
        self.context_tokens = sum(part.rows.context_tokens for part in parts)
        self.tokens_out = tuple(int(part.rows.gives_token) for part in parts)
        self.signals = merge(
            [
                part.open.signals.at_step(part.rows[:2], part.before[:2] if part.before else None)
                for part in parts
            ]
        )
        self._parts = parts
        first = parts[0].open
        self._is_plain = first.gates_TLK is None and not first.signals.names

    def routed(self, layer: int) -> LayerRouted:
        """Return the fact that the router of a layer has chosen."""
        if self._is_plain:
            return LayerRouted(self.number, layer, self.choices(layer))
        return LayerRouted(
            self.number,
            layer,
            self.choices(layer),
            self.gates(layer),
            self.layer_signals(layer),
        )

    def choices(self, layer: int) -> list[int]:
        """Return the experts chosen in one layer, in touch order: by token, then by router rank."""
        if len(self._parts) == 1:
            open_, rows, _ = self._parts[0]
            if rows.end - rows.begin == 1:
                return open_.choices_TLK[rows.begin][layer]
        return [
            expert
            for open_, rows, _ in self._parts
            for row in open_.choices_TLK[rows.begin : rows.end]
            for expert in row[layer]
        ]

    def gates(self, layer: int) -> list[float]:
        """Return the gate weights of ``choices``, or nothing where the trace has none."""
        if self._parts[0].open.gates_TLK is None:
            return []
        return [
            gate
            for open_, rows, _ in self._parts
            for row in (open_.gates_TLK or [])[rows.begin : rows.end]
            for gate in row[layer]
        ]

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
        self._open: dict[int, _Open] = {}
        self._steps_begun = 0
        self.layers = trace.layers
        self.experts = trace.experts
        self.requests = trace.requests

    def prompt_tokens(self, request: int) -> int:
        """Return the length of a prompt, or 0 where unknown."""
        return max(0, int(self._trace.prompt_tokens_R[request]))

    def task(self, request: int) -> str:
        """Return the task label of a request."""
        return self._trace.task_R[request]

    def max_context_tokens(self) -> int:
        """Return the longest context that any request reaches."""
        return int(self._trace.position_T.max()) + 1

    def begin(self, form: FormStep) -> Step:
        """Begin the next recorded step of these requests.

        Raises:
            CapabilityError: A prompt is to be cut otherwise than it was recorded.
        """
        if any(chunk is not None for chunk in form.prompt_chunks):
            raise CapabilityError(
                f"requests {form.requests} ask for prompt chunks {form.prompt_chunks}; "
                "a trace is served in the steps it was recorded in"
            )
        parts = []
        for request in form.requests:
            open_ = self._open.get(request)
            if open_ is None:
                open_ = self._open[request] = self._load(request)
            parts.append(open_.begin())
        self._steps_begun += 1
        return Step(self._steps_begun - 1, form.requests, parts)

    def is_finished(self, request: int) -> bool:
        """Return whether a request has had its last step; if so its rows are let go."""
        open_ = self._open[request]
        if open_.at < len(open_.steps):
            return False
        del self._open[request]
        return True

    def events(self) -> Iterator[list[int]]:
        """Yield the choices of every layer event, requests one after another."""
        for request in range(self.requests):
            open_ = self._load(request)
            for _ in open_.steps:
                step = Step(0, (request,), [open_.begin()])
                for layer in range(self.layers):
                    yield step.choices(layer)

    def _load(self, request: int) -> _Open:
        trace = self._trace
        rows = slice(self._starts[request], self._starts[request + 1])
        layers, experts = trace.layers, trace.experts
        offsets_L1 = (np.arange(layers, dtype=np.int32) * experts)[:, None]
        expert_TLK = np.asarray(trace.expert_TLK[rows])
        absent_TLK = expert_TLK < 0
        choices = (expert_TLK.astype(np.int32) + offsets_L1).tolist()
        gates = (
            np.asarray(trace.gate_TLK[rows]).tolist()
            if self._gates and trace.gate_TLK is not None
            else None
        )
        for t, layer in np.argwhere(absent_TLK.any(axis=2)).tolist():
            choices[t][layer] = []
            if gates is not None:
                gates[t][layer] = []
        steps = list(_steps(trace, rows))
        signals = RequestSignals(trace, request, rows, self._signals)
        return _Open(steps, 0, choices, gates, signals)


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
