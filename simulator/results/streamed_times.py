"""What requests experienced, summed up as they end: for runs too long to keep every token's time.

The fields are those of a run that keeps them; percentiles are `Digest`'s.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.ledger import RequestTimes
from moesim.simulator.results.digest import Digest
from moesim.simulator.results.rows import Row, latency_fields
from moesim.simulator.results.summaries import summary
from moesim.simulator.terms import SECOND_NS

# S steps of whole requests, one request after another; N tokens; R requests.
Ints = NDArray[np.int64]

NOT_EXACT = "percentiles within 0.012 %: more tokens than are kept one by one"


@dataclass(slots=True)
class StreamedTimes:
    """Sums over requests that were served one after another.

    Attributes:
        gaps_ns: Times between tokens.
        first_ns: From a request's arrival to its first token.
        e2e_ns: From arrival to the last token.
        queue_ns: From arrival to the begin of the first step.
        service_ns: From there to the last token.
        request_tpot_ns: Time of the tokens after the first over their number, rounded to ns.
        requests: How many ended.
        tokens: How many tokens they got.
        last_end_ns: When the last token was complete.
        arrives_ns: When the next request arrives: at the end of the one before.
    """

    gaps_ns: Digest = field(default_factory=Digest)
    first_ns: Digest = field(default_factory=Digest)
    e2e_ns: Digest = field(default_factory=Digest)
    queue_ns: Digest = field(default_factory=Digest)
    service_ns: Digest = field(default_factory=Digest)
    request_tpot_ns: Digest = field(default_factory=Digest)
    requests: int = 0
    tokens: int = 0
    last_end_ns: int = 0
    arrives_ns: int = 0

    def append(self, request: RequestTimes) -> None:
        """Add a request that has ended."""
        end_N = np.asarray(request.token_ends_ns, np.int64)
        self._add(
            np.zeros(len(end_N), np.int64),
            end_N,
            np.asarray([request.arrived_ns]),
            np.asarray([request.began_ns]),
            np.asarray([request.has_first_token]),
        )

    def add_steps(
        self,
        ends_S: NDArray[np.bool_],
        gives_S: NDArray[np.bool_],
        prefills_S: NDArray[np.bool_],
        began_S: Ints,
        ended_S: Ints,
    ) -> None:
        """Add the requests of some steps.

        Args:
            ends_S: Whether the step is its request's last.
            gives_S: Whether it makes a token.
            prefills_S: Whether it has prompt tokens.
            began_S: When it began.
            ended_S: When it ended.
        """
        last_R = np.flatnonzero(ends_S)
        first_R = np.append(0, last_R[:-1] + 1)
        arrived_R = np.append(self.arrives_ns, ended_S[last_R[:-1]])
        self.arrives_ns = int(ended_S[last_R[-1]])
        request_S: Ints = np.cumsum(ends_S) - ends_S
        at = np.flatnonzero(gives_S)
        has_first_R = np.zeros(len(last_R), np.bool_)
        has_first_R[request_S[at[prefills_S[at]]]] = True
        self._add(request_S[at], ended_S[at], arrived_R, began_S[first_R], has_first_R)

    def _add(
        self,
        request_N: Ints,
        end_N: Ints,
        arrived_R: Ints,
        began_R: Ints,
        has_first_R: NDArray[np.bool_],
    ) -> None:
        """Add requests whose tokens were complete at ``end_N``."""
        self.requests += len(arrived_R)
        self.queue_ns.add(began_R - arrived_R)
        self.tokens += len(end_N)
        if not len(end_N):
            return
        self.last_end_ns = int(end_N[-1])
        is_first_N = np.diff(request_N, prepend=-1) != 0
        self.gaps_ns.add(np.diff(end_N)[~is_first_N[1:]])
        first = np.flatnonzero(is_first_N)
        last = np.append(first[1:], len(end_N)) - 1
        request = request_N[first]
        arrived, began, has_first = arrived_R[request], began_R[request], has_first_R[request]
        self.first_ns.add((end_N[first] - arrived)[has_first])
        self.gaps_ns.add((end_N[first] - began)[~has_first])
        self.e2e_ns.add(end_N[last] - arrived)
        self.service_ns.add(end_N[last] - began)
        more = has_first & (last > first)
        spans, tokens = (end_N[last] - end_N[first])[more], (last - first)[more]
        self.request_tpot_ns.add(np.rint(spans / tokens))


def streamed_fields(times: StreamedTimes, span_ns: int) -> tuple[Row, list[str]]:
    """Return the fields of a row that rest on tokens and requests, and what must be said of them.

    The fields of arrivals and promises are left to `request_fields`.
    """
    row, notes = latency_fields(times)
    for kind in ("e2e", "queue", "service", "request_tpot"):
        row |= summary(kind, getattr(times, f"{kind}_ns"))
    if not times.gaps_ns.is_exact:
        notes.append(NOT_EXACT)
    row["requests"] = times.requests
    row["requests_per_s"] = round(times.requests * SECOND_NS / span_ns, 9) if span_ns else None
    return row, notes
