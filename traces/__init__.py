"""Routing traces: what was routed, recorded once and replayed many times.

`load` reads any format that `formats` lists and returns a checked `RoutingTrace`; `write` stores it
in the project's own; `describe` sums it up. Nothing here knows of a simulator or of torch.

>>> from moesim.traces import describe, synthetic
>>> trace = synthetic.uniform(seed=0, layers=2, experts=8, top_k=2, requests=1, decode_tokens=3)
>>> describe(trace)["tokens"]
3
"""

from moesim.traces.errors import TraceError
from moesim.traces.schema import RoutingTrace, SelectionRule, SignalSpec, TraceHeader

__all__ = [
    "RoutingTrace",
    "SelectionRule",
    "SignalSpec",
    "TraceError",
    "TraceHeader",
]
