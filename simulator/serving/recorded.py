"""Recorded requests that arrive at given times, each with the rows that were recorded of it.

What a server of requests executed is replayed this way: the schedule policy forms the steps again.
"""

from collections.abc import Sequence

from moesim.simulator.errors import CapabilityError
from moesim.simulator.serving.arrivals import Arrivals, OpenLoop
from moesim.simulator.serving.workload import ServedTurns
from moesim.simulator.workload.demands import Open, Workload
from moesim.traces import RoutingTrace

__all__ = ["RecordedRequests"]


class RecordedRequests(Workload):
    """The requests of a trace, all of which arrive by themselves; prompts may be cut anywhere.

    Args:
        trace: What was routed.
        arrival_ns_R: When each request arrives, in order; all at once if left out.
        signals: Names of the trace's signals that the policies read.
        gates: Whether a policy reads the gate weights.
    """

    def __init__(
        self,
        trace: RoutingTrace,
        arrival_ns_R: Sequence[int] | None = None,
        *,
        signals: Sequence[str] = (),
        gates: bool = False,
    ) -> None:
        super().__init__(trace, signals=signals, gates=gates)
        self._arrival_ns_R = [0] * trace.requests if arrival_ns_R is None else arrival_ns_R

    def arrivals(self) -> Arrivals:
        """Return a fresh source of the requests."""
        return OpenLoop(self._arrival_ns_R)

    def _load(self, request: int) -> Open:
        rows = slice(self._starts[request], self._starts[request + 1])
        prompt_tokens = int(self._trace.is_prefill_T[rows].sum())
        if prompt_tokens == 0:
            raise CapabilityError(
                f"request {request} has no prompt rows, with which a request that arrives begins"
            )
        return self._open_rows(request, rows, ServedTurns(prompt_tokens, rows.stop - rows.start))
