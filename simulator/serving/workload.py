"""Requests that arrive, as a driver serves them: prompts in chunks, then a token a step."""

from collections.abc import Callable, Sequence

from moesim.simulator.messages import FormStep
from moesim.simulator.serving.arrivals import Arrivals
from moesim.simulator.serving.limits import Formed
from moesim.simulator.serving.stream import RequestStream
from moesim.simulator.terms import Phase
from moesim.simulator.workload.demands import Open, Step, StepRows, Workload
from moesim.traces import RoutingTrace

__all__ = ["ServedWorkload"]


class ServedWorkload(Workload):
    """The requests of a stream, each with the routing that was drawn for it.

    Args:
        trace: The recorded sequences.
        stream: Who arrives.
        signals: Names of the trace's signals that the policies read.
        gates: Whether a policy reads the gate weights.
        keep_formed: Whether to note the steps that are formed.

    Attributes:
        formed: The steps, if noted.
    """

    def __init__(
        self,
        trace: RoutingTrace,
        stream: RequestStream,
        *,
        signals: Sequence[str] = (),
        gates: bool = False,
        keep_formed: bool = False,
    ) -> None:
        super().__init__(trace, signals=signals, gates=gates)
        self.formed: list[Formed] | None = [] if keep_formed else None
        self._drawing = stream.drawing
        self._new_arrivals: Callable[[], Arrivals] = stream.new_arrivals
        self.requests = stream.requests

    def arrivals(self) -> Arrivals:
        """Return a fresh source of the requests."""
        return self._new_arrivals()

    def begin(self, form: FormStep) -> Step:
        """Begin the next step of these requests."""
        step = super().begin(form)
        if self.formed is not None:
            self.formed.append(Formed.of(step))
        return step

    def prompt_tokens(self, request: int) -> int:
        """Return the length of a prompt."""
        return self._drawing.prompt_tokens_R[request]

    def output_tokens(self, request: int) -> int:
        """Return the length of an answer."""
        return self._drawing.output_tokens_R[request]

    def task(self, request: int) -> str:
        """Return the task label of a request."""
        return self._drawing.task_R[request]

    def _load(self, request: int) -> Open:
        prompt_tokens = self.prompt_tokens(request)
        rows = self._drawing.rows(request)
        turns = ServedTurns(prompt_tokens, len(rows))
        open_ = self._open_rows(self._drawing.first_R[request], rows, turns)
        open_.first_single = prompt_tokens
        return open_


class ServedTurns:
    """Which rows each step of a request takes: as much of the prompt as it may, then one by one."""

    def __init__(self, prompt_tokens: int, rows: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._rows = rows
        self._before: StepRows | None = None

    def next(self, chunk: int | None) -> tuple[StepRows, StepRows | None]:
        """Return the rows of the next step and those of the step before."""
        before = self._before
        begin = before.end if before else 0
        left = self._prompt_tokens - begin
        if left > 0:
            end = begin + (left if chunk is None else min(left, chunk))
            rows = StepRows(begin, end, Phase.PREFILL, end, end == self._prompt_tokens)
        else:
            rows = StepRows(begin, begin + 1, Phase.DECODE, begin + 1, True)
        self._before = rows
        return rows, before

    @property
    def is_finished(self) -> bool:
        """Whether no row is left."""
        return self._before is not None and self._before.end == self._rows
