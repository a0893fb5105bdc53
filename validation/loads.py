"""What the cells of one setting serve: recorded requests as they were, or such as arrive.

Requests that arrive are drawn from all that nothing was fitted on, as ``moesim simulate`` and
``moesim execute`` draw them: spec, trace and seed say who comes, and when.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moesim.backends.arriving import terms_for
from moesim.backends.batches import workload_for
from moesim.simulator.errors import InputError
from moesim.simulator.registry import Axis
from moesim.simulator.serving.desk import Terms
from moesim.simulator.serving.drawn import drawn_trace
from moesim.simulator.serving.spec import Serving
from moesim.simulator.serving.stream import RequestStream, stream
from moesim.simulator.serving.workload import ServedWorkload
from moesim.simulator.workload.demands import Workload
from moesim.traces import RoutingTrace
from moesim.validation.long_prompts import with_prompts
from moesim.validation.routes import held_out, not_fitted
from moesim.validation.settings import Setting


@dataclass(frozen=True, slots=True)
class Load:
    """Requests.

    Attributes:
        setting: How they are served.
        trace: Every row that is served, by request.
        name: What evidence calls it.
        used: Which requests of the recorded trace they are, or are drawn from.
        drawn_from: Whose rows they are, where they arrive.
        stream: When they arrive then.
    """

    setting: Setting
    trace: RoutingTrace
    name: str
    used: frozenset[int]
    drawn_from: RoutingTrace | None = None
    stream: RequestStream | None = None

    def lengths(self, asked: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return warm tokens, tokens that count, executions.

        Of requests that arrive every token counts: how the first are served is what is asked.
        """
        if self.stream is None:
            return asked
        gaps = sum(self.stream.drawing.output_tokens_R) - self.stream.requests
        return 0, gaps, asked[2]

    def workload(
        self, policies: Mapping[Axis, str], *, signals: Sequence[str], gates: bool
    ) -> Workload:
        """Return the requests as a replay of an execution serves them."""
        if self.stream is None or self.drawn_from is None:
            return workload_for(policies, self.trace, signals=signals, gates=gates)
        return ServedWorkload(self.drawn_from, self.stream, signals=signals, gates=gates)

    def terms(self, kv_bytes_per_token: int) -> Terms | None:
        """Return on which terms requests that arrive are served; None for others.

        There is room for the KV caches of the largest that may run together: nobody waits for it.
        """
        if self.stream is None:
            return None
        drawing = self.stream.drawing
        lengths = [*zip(drawing.prompt_tokens_R, drawing.output_tokens_R, strict=True)]
        batch = self.setting.batching[0] or 1
        return terms_for(Serving(self.stream.text), lengths, batch, kv_bytes_per_token)


def load_of(
    setting: Setting, trace: RoutingTrace, name: str, fitted: RoutingTrace, tokens: int
) -> Load:
    """Return what a setting serves.

    Args:
        setting: How it is served.
        trace: What was recorded.
        name: Of it.
        fitted: Requests that no claim is made on.
        tokens: Decode tokens that must be there.

    Raises:
        MoesimError, TraceError: Too little was recorded, or the arrivals cannot be read.
    """
    batch, _ = setting.batching
    if setting.arrivals is not None:
        numbers = [*not_fitted(trace, fitted)]
        if not numbers:
            raise InputError("every request of the trace was fitted on; give another trace")
        unseen = trace.select_requests(numbers)
        found = stream(setting.arrivals, unseen, seed=setting.seed)
        name = f"{name}, {found.text}, seed {setting.seed}, batch {batch}"
        drawn = drawn_trace(unseen, found.drawing)
        return Load(setting, drawn, name, frozenset(numbers), unseen, found)
    numbers = held_out(trace, fitted, tokens, batch or 1)
    tested = trace.select_requests(numbers)
    if setting.prompt is not None:
        tested, how = with_prompts(tested, setting.prompt)
        name = f"{name}, {how}"
    if batch is not None:
        name = f"{name}, batch {batch}"
    return Load(setting, tested, name, frozenset(numbers))


def rest_of(
    trace: RoutingTrace, fitted: RoutingTrace, loads: Sequence[Load]
) -> RoutingTrace | None:
    """Return the requests that are neither fitted on nor served; None where there are none.

    Systems that are profiled offline may look at them.
    """
    used = frozenset().union(*(load.used for load in loads))
    numbers = [number for number in not_fitted(trace, fitted) if number not in used]
    return trace.select_requests(numbers) if numbers else None
