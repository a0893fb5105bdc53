"""The header refuses contradictions; the trace counts, cuts and hashes itself."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from moesim.traces import RoutingTrace, SelectionRule, SignalSpec, TraceError, TraceHeader
from moesim.traces.assemble import make_header
from moesim.traces.synthetic import uniform

FACTS = {
    "model": "m",
    "layer_ids": [1, 2],
    "experts": 8,
    "top_k": 2,
    "evidence": "recorded",
}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"layer_ids": [2, 1]}, "layer_ids must be ascending and start at 0 or above"),
        ({"layer_ids": [-1, 1]}, "layer_ids must be ascending and start at 0 or above"),
        ({"layer_ids": []}, "layer_ids: tuple should have at least 1 item"),
        ({"top_k": 9}, "top_k is 9, but a layer has 8 experts"),
        ({"top_k": "two"}, "top_k: input should be a valid integer"),
        ({"experts": 40_000}, "experts: input should be less than or equal to 32767, got 40000"),
        ({"expert_bytes": [5]}, "expert_bytes has 1 entries for 2 MoE layers"),
        ({"expert_bytes": [5, 0]}, "expert_bytes has the entry 0, which is below 1"),
        ({"dense_bytes": [-1, 0]}, "dense_bytes has the entry -1, which is below 0"),
        ({"evidence": "real"}, "evidence: input should be 'recorded', 'twin' or 'synthetic'"),
        ({"schema_version": 2}, "schema_version: input should be 1, got 2"),
        ({"expert": 8}, "expert: extra inputs are not permitted, got 8"),
        (
            {"selection": {"score": "softmax", "normalise": True, "groups": 3}},
            "8 experts do not divide into 3 groups",
        ),
        (
            {"selection": {"score": "softmax", "normalise": True, "groups_kept": 2}},
            "selection: groups_kept is 2, but there are 1 groups",
        ),
        (
            {"selection": {"score": "sigmoid", "normalise": True, "bias_LE": [[0.0] * 8]}},
            "selection.bias_LE must be 2 rows of 8 numbers",
        ),
    ],
)
def test_a_wrong_header_is_told_in_one_line(changed: dict[str, object], expected: str) -> None:
    """The line begins with the file, names the key and shows the value."""
    with pytest.raises(TraceError) as caught:
        make_header("f.json", **(FACTS | changed))
    assert str(caught.value).startswith(f"f.json: header: {expected}")
    assert "\n" not in str(caught.value)


def test_a_header_cannot_be_changed() -> None:
    """The header of a trace is a value."""
    header = make_header("f", **FACTS)
    with pytest.raises(ValidationError, match="frozen"):
        header.model = "other"  # type: ignore[misc]


def test_a_header_survives_json() -> None:
    """Reading the JSON of a header with every field set gives an equal header."""
    header = TraceHeader(
        model="m",
        revision="abc",
        layer_ids=(0, 3),
        experts=4,
        top_k=1,
        evidence="twin",
        dtype="bfloat16",
        tokenizer_hash="f00",
        sampling={"temperature": 0.5, "seed": 3, "greedy": False, "method": "top-p"},
        recorder="moesim 0.1",
        source="here",
        licence="MIT",
        notes="né",
        selection=SelectionRule(score="sigmoid", normalise=True, scale=2.5, groups=2),
        expert_bytes=(10, 20),
        dense_bytes=(0, 5),
        teacher_forced=True,
        signals={"token_T": SignalSpec(tap="t", known_at="step_begin", producer="host")},
    )
    assert header == TraceHeader.model_validate_json(header.model_dump_json())


def test_a_trace_counts_itself(trace: RoutingTrace) -> None:
    """Sizes come from header and arrays, phases from the rows."""
    assert (
        trace.tokens,
        trace.layers,
        trace.experts,
        trace.top_k,
        trace.requests,
    ) == (14, 3, 8, 2, 2)
    assert trace.has_decode
    assert trace.has_prefill
    assert not uniform(seed=0, decode_tokens=0).has_decode
    assert not uniform(seed=0, prompt_tokens=0).has_prefill
    assert trace.row_starts().tolist() == [0, 7, 14]


def test_the_head_shares_memory(trace: RoutingTrace) -> None:
    """The first requests are views; more than there are is all of them."""
    first = trace.head(requests=1)
    first.validate("head")
    assert first.tokens == 7
    assert np.shares_memory(first.expert_TLK, trace.expert_TLK)
    assert trace.content_hash() == trace.head(requests=9).content_hash()


def test_selected_requests_are_renumbered_in_the_order_asked_for() -> None:
    """Rows, labels and signals of both kinds follow their request."""
    trace = uniform(seed=3, requests=3, tasks=3, horizons=1)
    spec = SignalSpec(tap="t", known_at="request_arrived", producer="host")
    header = trace.header.model_copy(update={"signals": trace.header.signals | {"mark_R": spec}})
    signals = {**trace.signals, "mark_R": np.array([10, 11, 12], dtype=np.int32)}
    trace = replace(trace, header=header, signals=signals)
    picked = trace.select_requests([2, 0])
    picked.validate("picked")
    assert picked.task_R == ("task 2", "task 0")
    assert picked.signals["mark_R"].tolist() == [12, 10]
    assert (trace.expert_TLK[24:36] == picked.expert_TLK[:12]).all()
    assert (trace.signals["look_in_TLHM"][:12] == picked.signals["look_in_TLHM"][12:]).all()
    assert trace.content_hash() == trace.select_requests([0, 1, 2]).content_hash()
    with pytest.raises(IndexError, match="no request 3; the trace has 3"):
        trace.select_requests([3])


def test_the_hash_depends_on_every_part(trace: RoutingTrace) -> None:
    """A change of one array, label or header field changes the hash; a copy does not."""
    same = replace(trace, expert_TLK=np.asfortranarray(trace.expert_TLK))
    assert trace.content_hash() == same.content_hash()
    other_header = trace.header.model_copy(update={"notes": "other"})
    changed = [
        replace(trace, position_T=trace.position_T + np.int32(1)),
        replace(trace, task_R=("a", "b")),
        replace(trace, header=other_header),
        replace(trace, gate_TLK=None),
    ]
    hashes = {trace.content_hash(), *(other.content_hash() for other in changed)}
    assert len(hashes) == 5
