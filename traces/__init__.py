"""Routing traces: what was routed, recorded once and replayed many times.

`load` reads any format that `readers.formats` lists and returns a checked `RoutingTrace`; `write`
stores it in the project's own, `write_chunks` one that is larger than memory, `describe` sums it
up, `iter_requests` walks through it without a copy. Nothing here knows of a simulator or of torch.

>>> from moesim.traces import describe, synthetic
>>> trace = synthetic.uniform(seed=0, layers=2, experts=8, top_k=2, requests=1, decode_tokens=3)
>>> describe(trace)["decode_tokens"]
3
"""

from moesim.traces import synthetic
from moesim.traces.chunks import cut, write_chunks
from moesim.traces.errors import TraceError
from moesim.traces.formats.mapped import parse_mapping
from moesim.traces.header import ClosedLoop
from moesim.traces.readers import load
from moesim.traces.schema import RoutingTrace, SelectionRule, SignalSpec, TraceHeader
from moesim.traces.statistics import describe, layer_statistics, task_cosine
from moesim.traces.store import iter_requests, read, write

__all__ = [
    "ClosedLoop",
    "RoutingTrace",
    "SelectionRule",
    "SignalSpec",
    "TraceError",
    "TraceHeader",
    "cut",
    "describe",
    "iter_requests",
    "layer_statistics",
    "load",
    "parse_mapping",
    "read",
    "synthetic",
    "task_cosine",
    "write",
    "write_chunks",
]
