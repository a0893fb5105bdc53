"""Recall of the next layers' experts: known values on made-up traces."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.traces import RoutingTrace, synthetic
from moesim.traces.recall import look_ahead_recall, popular_recall, table_recall

# T tokens, L MoE layers, K chosen, H horizons, M top-m.


def follows(step: int, *, requests: int = 2) -> RoutingTrace:
    """Return a trace in which layer l + 1 chooses the expert of layer l plus a step, of 5."""
    trace = synthetic.uniform(
        seed=1, layers=3, experts=5, top_k=1, requests=requests, decode_tokens=60
    )
    first_T1 = trace.expert_TLK[:, :1]
    ahead_L1 = np.arange(3)[:, None] * step
    return replace(trace, expert_TLK=((first_T1 + ahead_L1) % 5).astype(np.int16))


@pytest.mark.parametrize("requests", [1, 2])
@pytest.mark.parametrize("horizon", [1, 2])
def test_a_table_learns_what_always_follows(requests: int, horizon: int) -> None:
    """Where the next layer's expert is a function of this one's, recall is 1 at every horizon."""
    assert table_recall(follows(2, requests=requests), horizon) == 1.0


def test_a_table_is_judged_on_other_requests() -> None:
    """What follows only in the requests it was fitted on is of no use in the others."""
    trace = follows(2)
    odd_T = trace.request_T % 2 == 1
    mixed_TLK = np.where(odd_T[:, None, None], follows(1).expert_TLK, trace.expert_TLK)
    assert table_recall(replace(trace, expert_TLK=mixed_TLK)) == 0.0


def test_there_is_no_recall_where_nothing_is_to_foretell() -> None:
    """Beyond the last layer, without look-ahead, or with one row, it is unknown, not 0."""
    trace = follows(1)
    assert table_recall(trace, 3) is None
    assert look_ahead_recall(trace, "look_in") == []
    one_row = synthetic.uniform(seed=0, requests=1, prompt_tokens=0, decode_tokens=1)
    assert table_recall(one_row) is None
    assert popular_recall(one_row) is None


def test_the_popular_expert_is_found_as_often_as_it_is_chosen() -> None:
    """Three of the odd request's four tokens choose what the even request always chooses."""
    trace = synthetic.uniform(
        seed=0, layers=1, experts=4, top_k=1, requests=2, prompt_tokens=0, decode_tokens=4
    )
    chosen_TLK = np.array([2, 2, 2, 2, 2, 2, 0, 2], dtype=np.int16).reshape(8, 1, 1)
    assert popular_recall(replace(trace, expert_TLK=chosen_TLK)) == 0.75


def test_absent_rows_count_nowhere() -> None:
    """A prompt row whose layers were not recorded changes no recall."""
    trace = follows(2)
    absent_TLK = trace.expert_TLK.copy()
    absent_TLK[0] = -1
    assert table_recall(replace(trace, expert_TLK=absent_TLK)) == 1.0


def test_look_ahead_is_as_good_as_it_was_made() -> None:
    """Made of the true choices it has recall 1 at every horizon; of half of them, about half."""
    sure = synthetic.uniform(seed=0, layers=4, experts=8, top_k=2, horizons=2, recall=1.0)
    assert look_ahead_recall(sure, "look_in") == [1.0, 1.0]
    half = synthetic.uniform(
        seed=0, layers=4, experts=8, top_k=2, horizons=1, recall=0.5, decode_tokens=400
    )
    (found,) = look_ahead_recall(half, "look_in")
    assert found == pytest.approx(0.5, abs=0.05)
