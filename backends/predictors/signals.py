"""A predictor's answers as signals of a trace, for policies that read one."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from moesim.backends.predictors.uses import Floats
from moesim.traces import RoutingTrace, SignalSpec

# R requests, L MoE layers, E experts of a layer.


def with_uses(trace: RoutingTrace, uses: Mapping[str, tuple[Floats, SignalSpec]]) -> RoutingTrace:
    """Return the trace with signals of predicted use, [R, L, E] in float16 each."""
    header = trace.header.model_copy(
        update={
            "signals": {
                **trace.header.signals,
                **{name: declared for name, (_, declared) in uses.items()},
            }
        }
    )
    arrays = {name: use_RLE.astype(np.float16) for name, (use_RLE, _) in uses.items()}
    return replace(trace, header=header, signals={**trace.signals, **arrays})


def told_by(predictor: str, resource: str) -> SignalSpec:
    """Return the declaration of what a predictor told before each request."""
    return SignalSpec.model_validate(
        {
            "tap": "expert use of the requests served before",
            "known_at": "request_arrived",
            "producer": f"predictor:{predictor}",
            "cost_resource": resource,
            "evidence": "derived",
        }
    )
