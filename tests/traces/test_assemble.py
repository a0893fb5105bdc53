"""Importers' findings are laid out in one way, and nothing is lost in a smaller type."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moesim.traces import TraceError
from moesim.traces.assemble import RequestRows, assemble, make_header

HEADER = make_header("f", model="m", layer_ids=[0], experts=4, top_k=1, evidence="recorded")
ROWS = RequestRows(
    expert_TLK=np.array([[[0]], [[1]], [[2]]]),
    is_prefill_T=np.array([True, False, False]),
    gate_TLK=np.ones((3, 1, 1), dtype=np.float32),
    prompt_tokens=1,
)


def test_requests_follow_each_other() -> None:
    """Steps and positions start anew in each request; decode steps alone start at 0."""
    decode = replace(ROWS, is_prefill_T=np.zeros(3, dtype=np.bool_), first_position=9)
    trace = assemble("f", HEADER, [ROWS, replace(decode, prompt_tokens=9)])
    trace.validate("f")
    assert trace.step_T.tolist() == [0, 1, 2, 0, 1, 2]
    assert trace.position_T.tolist() == [0, 1, 2, 9, 10, 11]
    assert trace.output_tokens_R.tolist() == [3, 4]


def test_no_token_of_a_teacher_forced_request_is_generated() -> None:
    """Where the text was given, the number of generated tokens is 0."""
    header = HEADER.model_copy(update={"teacher_forced": True})
    assert assemble("f", header, [ROWS]).output_tokens_R.tolist() == [0]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"gate_TLK": None}, "f: request 1: no gates, but others have them; give all or none"),
        ({"position_T": np.array([0, 1, 2**31])}, "f: position 5: 2147483648; counts lie below"),
        ({"step_T": np.array([0, 1, 2**40])}, "f: step 5: 1099511627776; counts lie below 2^31"),
        ({"prompt_tokens": 2**33}, "f: prompt_tokens 1: 8589934592; counts lie below 2^31"),
        ({"expert_TLK": np.array([[[0]], [[70_000]], [[2]]])}, "f: row 1: expert 70000; ids lie"),
    ],
)
def test_what_does_not_fit_is_told(changed: dict[str, Any], expected: str) -> None:
    """A number too large for its array is named, never wrapped around."""
    with pytest.raises(TraceError) as caught:
        assemble("f", HEADER, [ROWS, replace(ROWS, **changed)])
    assert str(caught.value).startswith(expected)


def test_no_request_is_told() -> None:
    """An importer that found nothing is refused."""
    with pytest.raises(TraceError, match="f: requests: there are none; record at least one"):
        assemble("f", HEADER, [])
