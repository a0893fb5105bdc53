"""With routes of a trace come its looks ahead: a policy sees what the recorded model foretold."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="it runs a real model")

from moesim.backends.controllers import LOOK_IN  # noqa: E402 - after the skip
from moesim.backends.execution import execute  # noqa: E402
from moesim.backends.forcing import requests_of  # noqa: E402
from moesim.backends.generation import Sampling  # noqa: E402
from moesim.traces import RoutingTrace  # noqa: E402

POLICIES = "lru next_gate:horizon=1 resident_first"


def serve(offloaded: Any, trace: RoutingTrace) -> RoutingTrace:
    """Serve a trace by a system that looks ahead, and return what was served."""
    done = execute(
        offloaded.model,
        offloaded.store,
        requests_of(trace, 300),
        offloaded.deciding(POLICIES, 8),
        Sampling(new_tokens=1, ignore_eos=True),
        routes=trace,
    )
    return done.trace


def test_what_was_recorded_is_foretold(offloaded: Any) -> None:
    """Looks turned round in the trace are so for the policy; without any the model looks itself."""
    model = offloaded("Mixtral")
    own = model.run(model.deciding(POLICIES, 8)).trace
    looks = np.asarray(own.signals[LOOK_IN])
    turned = replace(own, signals={**own.signals, LOOK_IN: looks[..., ::-1].copy()})
    plain = replace(own, signals={}, header=own.header.model_copy(update={"signals": {}}))
    np.testing.assert_array_equal(looks[..., ::-1], serve(model, turned).signals[LOOK_IN][:])
    live = np.asarray(serve(model, plain).signals[LOOK_IN])
    assert live.shape == looks.shape
    assert (live != looks).any()
