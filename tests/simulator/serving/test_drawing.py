"""Which recorded rows a served request replays."""

import numpy as np
import pytest

from moesim.simulator.errors import CapabilityError, UnknownNameError
from moesim.simulator.messages import FormStep
from moesim.simulator.serving.drawing import draw
from moesim.simulator.serving.stream import stream
from moesim.simulator.serving.workload import ServedWorkload
from moesim.simulator.terms import Phase
from moesim.simulator.testing import tiny_trace
from moesim.simulator.testing.tiny import trace_of
from moesim.traces import RoutingTrace

# Four sequences of one layer: expert e is chosen by row e, so that an id says which row it was.
ROWS = [[[row]] for row in range(20)]


def counted() -> RoutingTrace:
    """Return two sequences of each of two tasks: 3 prompt rows and 2 answer rows each."""
    sequences = [(ROWS[at : at + 3], ROWS[at + 3 : at + 5]) for at in (0, 5, 10, 15)]
    return trace_of(sequences, experts=20, tasks=["a", "b", "a", "b"])


def test_requests_as_long_as_recorded_are_the_sequences_themselves() -> None:
    """In recorded order each request is one sequence, and they begin anew once all were used."""
    drawn = draw(counted(), 5, in_order=True)
    assert drawn.first_R == [0, 1, 2, 3, 0]
    assert drawn.task_R == ["a", "b", "a", "b", "a"]
    assert drawn.rows(1).tolist() == [5, 6, 7, 8, 9]
    assert (drawn.prompt_tokens_R[1], drawn.output_tokens_R[1]) == (3, 3)
    assert drawn.stitched == 0


def test_a_longer_request_is_stitched_from_sequences_of_its_task() -> None:
    """Prompts go on with prompts and answers with answers of the same task, around and around."""
    drawn = draw(counted(), 1, lengths=([7], [5]), in_order=True)
    assert drawn.rows(0).tolist() == [0, 1, 2, 10, 11, 12, 0, 3, 4, 13, 14]
    assert drawn.stitched == 1
    assert any("1 requests stitched" in note for note in drawn.notes)


def test_a_shorter_request_leaves_the_rest_out() -> None:
    """The answer follows the prompt's first rows; a single output token feeds nothing back."""
    drawn = draw(counted(), 2, lengths=([1, 2], [2, 1]), in_order=True)
    assert drawn.rows(0).tolist() == [0, 3]
    assert drawn.rows(1).tolist() == [5, 6]
    assert drawn.stitched == 0


def test_every_sequence_is_used_as_often_as_the_others() -> None:
    """A shuffled draw uses all of them before any again, whatever the seed."""
    for seed in range(5):
        drawn = draw(counted(), 8, seed=seed)
        assert sorted(drawn.first_R[:4]) == [0, 1, 2, 3]
        assert sorted(drawn.first_R) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len({tuple(draw(counted(), 8, seed=seed).first_R) for seed in range(9)}) > 1


def test_tasks_come_as_often_as_they_weigh() -> None:
    """Three to one, within four standard errors of 800 draws; only tasks that there are."""
    drawn = draw(counted(), 800, weights={"a": 3, "b": 1}, seed=1)
    assert drawn.task_R.count("a") == pytest.approx(600, abs=4 * np.sqrt(800 * 3 / 16))
    with pytest.raises(UnknownNameError, match="no task in the trace 'c'"):
        draw(counted(), 1, weights={"c": 1})


def test_a_trace_without_prompts_cannot_be_served() -> None:
    """The way out is named."""
    with pytest.raises(CapabilityError, match="no prompt rows"):
        draw(tiny_trace(prompt_tokens=0), 1)


def test_prompt_rows_are_read_again_as_answers_where_there_are_none() -> None:
    """A teacher-forced trace is served, and results say so."""
    drawn = draw(tiny_trace(decode_tokens=0), 1, lengths=([2], [3]), in_order=True)
    assert drawn.rows(0).tolist() == [0, 1, 0, 1]
    assert any("read again as decode" in note for note in drawn.notes)


def test_a_prompt_is_cut_where_the_step_says() -> None:
    """Chunks of 2 of a prompt of 5: rows, contexts, pairs and who gets a token."""
    trace = tiny_trace(prompt_tokens=5, decode_tokens=2)
    served = ServedWorkload(trace, stream("users:requests=1,order=recorded", trace))
    steps = []
    while not (steps and served.is_finished(0)):
        steps.append(served.begin(FormStep((0,), (2,))))
    assert [step.tokens for step in steps] == [2, 2, 1, 1, 1]
    assert [step.context_tokens for step in steps] == [2, 4, 5, 6, 7]
    assert [step.pairs for step in steps] == [1 + 2, 3 + 4, 5, 6, 7]
    assert [step.tokens_out for step in steps] == [(0,), (0,), (1,), (1,), (1,)]
    assert [step.phases[0] for step in steps] == [Phase.PREFILL] * 3 + [Phase.DECODE] * 2


def test_a_step_of_two_requests_is_the_union_of_both() -> None:
    """Choices, gates and signals stand in the order of the requests; contexts and pairs add up."""
    trace = tiny_trace()
    options = {"signals": ["router_top_TLM"], "gates": True}
    arriving = stream("users:requests=2,order=recorded", trace)
    both = ServedWorkload(trace, arriving, **options)
    alone = ServedWorkload(trace, arriving, **options)
    together = both.begin(FormStep((0, 1), (3, None)))
    apart = [alone.begin(FormStep((0,), (3,))), alone.begin(FormStep((1,), (None,)))]
    assert together.tokens == 3 + 4
    assert together.contexts == (3, 4)
    assert together.pairs == sum(step.pairs for step in apart)
    for layer in range(trace.layers):
        assert [e for step in apart for e in step.choices(layer)] == together.choices(layer)
        assert [g for step in apart for g in step.gates(layer)] == together.gates(layer)
        expected = [top for step in apart for top in step.layer_signals(layer)["router_top_TLM"]]
        assert expected == together.layer_signals(layer)["router_top_TLM"]
