"""When a trace is too long for what takes memory for each of its demands.

Bounds and exact curves of all policies keep 100 to 150 bytes for each demand. Past the limit a run
says that it has no bounds, and curves are made of LRU alone, piece by piece. The limit depends on
the trace's content, not on how it lies on disk: the same run gives the same row.
"""

from moesim.traces import RoutingTrace

MOST_DEMANDS = 8_000_000
"""Choices of experts, T * L * K: 1.2 GB at 150 bytes each."""

PIECE_ROWS = 4_096
"""Rows of a piece of whole requests, unless one has more."""

NO_BOUNDS = (
    f"no bounds: what is served has more than {MOST_DEMANDS:,} choices; replay fewer requests with "
    "--requests for those"
)


def is_long(trace: RoutingTrace) -> bool:
    """Whether a trace is past the limit."""
    return has_long(trace, trace.tokens)


def has_long(trace: RoutingTrace, tokens: int) -> bool:
    """Whether so many tokens with the routing of a trace are past the limit."""
    return tokens * trace.layers * trace.top_k > MOST_DEMANDS
