"""Each promise that a trace makes, broken once: the one line that the user reads."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moesim.traces import RoutingTrace, SignalSpec, TraceError

# Rows 0-2 are the prompt of request 0, rows 3-6 its decode steps; rows 7-13 are request 1.
SPEC = SignalSpec(tap="here", known_at="step_begin", producer="router")


def put(key: str, index: Any, value: Any) -> Callable[[RoutingTrace], RoutingTrace]:
    """Return a function that sets one entry of one array of a copy."""

    def change(trace: RoutingTrace) -> RoutingTrace:
        array = getattr(trace, key).copy()
        array[index] = value
        return replace(trace, **{key: array})

    return change


def swap(key: str, change: Callable[[Any], Any]) -> Callable[[RoutingTrace], RoutingTrace]:
    """Return a function that replaces one field by a function of it."""
    return lambda trace: replace(trace, **{key: change(getattr(trace, key))})


def with_signal(
    name: str, array: Any, *, declared: bool = True
) -> Callable[[RoutingTrace], RoutingTrace]:
    """Return a function that adds a signal."""

    def change(trace: RoutingTrace) -> RoutingTrace:
        signals = {name: SPEC} if declared else {}
        header = trace.header.model_copy(update={"signals": signals})
        return replace(trace, header=header, signals={} if array is None else {name: array})

    return change


def empty(trace: RoutingTrace) -> RoutingTrace:
    """Return no request at all."""
    return trace.head(requests=0)


BAD = {
    "id_too_large": (
        put("expert_TLK", (4, 1, 0), 8),
        (
            "expert_TLK: row 4, layer 1: expert 8 is not in [0, 8), nor -1 for absent; "
            "correct the ids or header.experts"
        ),
    ),
    "id_too_small": (
        put("expert_TLK", (4, 1, 0), -2),
        (
            "expert_TLK: row 4, layer 1: expert -2 is not in [0, 8), nor -1 for absent; "
            "correct the ids or header.experts"
        ),
    ),
    "id_repeated": (
        put("expert_TLK", (5, 2), 3),
        "expert_TLK: row 5, layer 2: expert 3 twice; a token chooses an expert of a layer once",
    ),
    "half_absent": (
        put("expert_TLK", (1, 2, 1), -1),
        (
            "expert_TLK: row 1, layer 2: 1 of 2 experts absent; "
            "a token's layer is recorded whole or not at all"
        ),
    ),
    "absent_in_decode": (
        put("expert_TLK", (3, 2), -1),
        "expert_TLK: row 3, layer 2: no experts in a decode row; only prompt rows may lack a layer",
    ),
    "nothing_recorded": (
        put("expert_TLK", 1, -1),
        "expert_TLK: row 1: no layer recorded; drop the row",
    ),
    "ids_of_another_type": (
        swap("expert_TLK", lambda ids: ids.astype(np.int64)),
        "expert_TLK: dtype int64; convert to int16",
    ),
    "a_layer_too_many": (
        swap("expert_TLK", lambda ids: np.concatenate([ids, ids], axis=1)),
        (
            "expert_TLK: shape [14, 6, 2], expected [14, 3, 2]; "
            "axes are [T, L, K]; header and arrays must agree"
        ),
    ),
    "an_axis_too_few": (
        swap("expert_TLK", lambda ids: ids[:, :, 0]),
        (
            "expert_TLK: shape [14, 3], expected [14, 3, 2]; "
            "axes are [T, L, K]; header and arrays must agree"
        ),
    ),
    "gate_not_finite": (
        put("gate_TLK", (6, 0, 1), np.nan),
        "gate_TLK: row 6, layer 0: gate nan; gates are finite and not negative",
    ),
    "gate_negative": (
        put("gate_TLK", (6, 0, 1), -0.5),
        "gate_TLK: row 6, layer 0: gate -0.5; gates are finite and not negative",
    ),
    "gate_of_another_type": (
        swap("gate_TLK", lambda gates: gates.astype(np.float64)),
        "gate_TLK: dtype float64; convert to float16 or float32",
    ),
    "gates_too_short": (
        swap("gate_TLK", lambda gates: gates[1:]),
        (
            "gate_TLK: shape [13, 3, 2], expected [14, 3, 2]; "
            "axes are [T, L, K]; header and arrays must agree"
        ),
    ),
    "request_out_of_range": (
        put("request_T", 13, 2),
        "request_T: row 13: request 2 is not in [0, 2); number the requests from 0",
    ),
    "requests_mixed": (
        put("request_T", 9, 0),
        (
            "request_T: row 9: request 0 follows request 1; "
            "keep the rows of a request together and the requests in order, from 0"
        ),
    ),
    "first_request_missing": (
        swap("request_T", np.ones_like),
        (
            "request_T: row 0: request 1 comes first; "
            "keep the rows of a request together and the requests in order, from 0"
        ),
    ),
    "request_without_rows": (
        swap("request_T", np.zeros_like),
        "task_R: request 1: the request has no rows; drop or record it",
    ),
    "step_decreases": (
        put("step_T", 6, 2),
        "step_T: row 6: 2 follows 3 in request 0; step numbers never decrease within a request",
    ),
    "position_stands_still": (
        put("position_T", 8, 0),
        "position_T: row 8: 0 follows 0 in request 1; positions rise within a request",
    ),
    "position_negative": (
        put("position_T", 7, -1),
        "position_T: row 7: position -1; positions start at 0",
    ),
    "prompt_after_decode": (
        put("is_prefill_T", 5, np.True_),
        (
            "is_prefill_T: row 5: a prompt row after a decode row of its request; "
            "make each turn of a conversation a request"
        ),
    ),
    "step_of_both_phases": (
        put("step_T", 3, 0),
        (
            "step_T: row 3: step 0 has prompt and decode rows; "
            "give the first decode row a step of its own"
        ),
    ),
    "prompt_too_short": (
        put("prompt_tokens_R", 1, 2),
        (
            "prompt_tokens_R: request 1: 2 tokens, but 3 prompt rows; "
            "it is the length of the whole prompt"
        ),
    ),
    "length_nonsense": (
        put("output_tokens_R", 0, -2),
        "output_tokens_R: request 0: -2; -1 says unknown",
    ),
    "arrival_negative": (
        put("arrival_ns_R", 1, -5),
        "arrival_ns_R: request 1: -5; 0 is the start of the trace",
    ),
    "labels_too_few": (
        swap("task_R", lambda labels: labels[:1]),
        "arrival_ns_R: shape [2], expected [1]; axes are [R]; header and arrays must agree",
    ),
    "empty": (empty, "expert_TLK: the trace is empty; record at least one token"),
    "signal_not_declared": (
        with_signal("embedding_TD", np.zeros((14, 5), dtype=np.float16), declared=False),
        "embedding_TD: not declared in header.signals; declare its tap and known_at",
    ),
    "signal_absent": (
        with_signal("embedding_TD", None),
        "embedding_TD: declared in header.signals but absent; add the array or drop the entry",
    ),
    "signal_too_short": (
        with_signal("embedding_TD", np.zeros((13, 5), dtype=np.float16)),
        (
            "embedding_TD: shape [13, 5], expected [14, D]; "
            "axes are [T, D]; header and arrays must agree"
        ),
    ),
    "request_signal_too_long": (
        with_signal("prompt_embedding_RD", np.zeros((3, 5), dtype=np.float16)),
        (
            "prompt_embedding_RD: shape [3, 5], expected [2, D]; "
            "axes are [R, D]; header and arrays must agree"
        ),
    ),
    "signal_without_axes": (
        with_signal("embedding", np.zeros((14, 5), dtype=np.float16)),
        "embedding: the name does not end in its axes, T or R first; rename the signal",
    ),
    "signal_of_objects": (
        with_signal("token_T", np.array(["a"] * 14)),
        (
            "token_T: dtype str32; convert to bool or int8 or int16 or int32 or int64 or uint8 or "
            "uint16 or uint32 or float16 or float32"
        ),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_broken_promise_is_told_in_one_line(case: str, trace: RoutingTrace) -> None:
    """The message names file, array, first bad row, value and way out, and is one line."""
    change, expected = BAD[case]
    trace.validate("good")
    with pytest.raises(TraceError) as caught:
        change(trace).validate("t.npz")
    message = str(caught.value)
    assert f"t.npz: {expected}" == message
    assert "\n" not in message


def test_absent_layers_of_prompt_rows_are_allowed(trace: RoutingTrace) -> None:
    """An engine that routes only the last prompt token in the last layer leaves the others out."""
    put("expert_TLK", (slice(0, 2), 2), -1)(trace).validate("t")


def test_the_first_bad_row_is_named_beyond_the_first_block(
    trace: RoutingTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row counts from the start of the trace even where checking goes block by block."""
    monkeypatch.setattr("moesim.traces.checks.BLOCK_VALUES", 18)
    trace.validate("t")
    with pytest.raises(TraceError, match=r"^t: expert_TLK: row 11, layer 0: expert 9 is not in"):
        put("expert_TLK", (11, 0, 0), 9)(trace).validate("t")
    with pytest.raises(TraceError, match=r"^t: request_T: row 10: request 0 follows request 1;"):
        put("request_T", 10, 0)(trace).validate("t")
    with pytest.raises(TraceError, match=r"^t: position_T: row 12: 0 follows 4 in request 1;"):
        put("position_T", 12, 0)(trace).validate("t")
