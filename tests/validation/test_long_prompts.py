"""Prompts of a wanted length are made of the recorded ones."""

from collections.abc import Callable

import numpy as np
import pytest

from moesim.traces import RoutingTrace
from moesim.validation.long_prompts import with_prompts


@pytest.mark.parametrize(("tokens", "how"), [(2, ""), (11, ", stitched")])
def test_prompts_are_cut_or_continued(
    trace_of: Callable[..., RoutingTrace], tokens: int, how: str
) -> None:
    """Each request has that many prompt rows, in one step, before its own answer."""
    trace = trace_of(requests=2)
    found, label = with_prompts(trace, tokens)
    assert label == f"prompts of {tokens} tokens{how}"
    found.validate("made")
    assert found.prompt_tokens_R.tolist() == [tokens, tokens]
    for request in range(2):
        ours, theirs = found.select_requests([request]), trace.select_requests([request])
        assert np.flatnonzero(ours.is_prefill_T).tolist() == list(range(tokens))
        assert set(ours.step_T[:tokens].tolist()) == {0}
        answers = [one.expert_TLK[~one.is_prefill_T].tolist() for one in (ours, theirs)]
        assert answers[0] == answers[1]
        shown = min(tokens, int(theirs.is_prefill_T.sum()))
        assert ours.expert_TLK[:shown].tolist() == theirs.expert_TLK[:shown].tolist()


def test_a_trace_is_told_from_the_one_it_is_made_of(
    trace_of: Callable[..., RoutingTrace],
) -> None:
    """Longer prompts are another content."""
    trace = trace_of()
    assert with_prompts(trace, 9)[0].content_hash() != trace.content_hash()
