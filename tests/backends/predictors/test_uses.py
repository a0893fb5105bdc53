"""What a prompt used, and how a prediction of it is judged."""

from itertools import pairwise

import numpy as np
import pytest

from moesim.backends.predictors.uses import (
    ORDERS,
    accuracy,
    in_order,
    prompts_of,
    served,
    top_experts,
)
from moesim.simulator.testing import trace_of
from moesim.traces import RoutingTrace, TraceError


def test_a_prompts_use_is_the_share_of_its_choices() -> None:
    """Prompt rows and decode rows count alike, layer by layer."""
    trace = trace_of([([[[0, 1]]], [[[0, 2]]]), ([], [[[3, 1]]])], experts=4)
    prompts = prompts_of(trace)
    assert prompts.use_RLE.tolist() == [[[0.5, 0.25, 0.25, 0.0]], [[0.0, 0.5, 0.0, 0.5]]]
    assert prompts.choices_RL.tolist() == [[4], [2]]
    assert prompts.top_k == 2


def test_a_prompt_without_a_choice_is_refused() -> None:
    """The message names the request."""
    trace = trace_of([([], [[[0, 1]]]), ([[[-1, -1]]], [])], experts=4)
    with pytest.raises(TraceError, match="request 1 has no recorded choice"):
        prompts_of(trace)


def test_equals_are_told_lowest_first() -> None:
    """So that the same uses give the same set."""
    assert top_experts(np.array([[1, 3, 3, 3]]), 2).tolist() == [[1, 2]]


def test_accuracy_is_the_share_of_the_set_that_was_told() -> None:
    """Half of one layer's pair and all of another's are three quarters; bare layers don't count."""
    told = np.array([[9, 8, 0, 0], [0, 0, 9, 8], [9, 8, 0, 0]])
    used = np.array([[0, 5, 4, 0], [0, 0, 1, 2], [0, 0, 0, 0]])
    assert accuracy(told, used, 2) == 0.75


def test_served_is_the_share_of_choices_on_what_is_held() -> None:
    """Two slots hold the two told first."""
    assert served(np.array([[3, 2, 1, 0]]), np.array([[0.5, 0.1, 0.2, 0.2]]), 2) == 0.6


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_has_every_request_once(patterned: RoutingTrace, order: str) -> None:
    """An order is a permutation, and the same one for the same seed."""
    numbers = in_order(patterned.task_R, order, 3)
    assert sorted(numbers) == list(range(patterned.requests))
    assert numbers == in_order(patterned.task_R, order, 3)


def test_grouped_prompts_change_task_once_and_drifting_ones_overlap(
    patterned: RoutingTrace,
) -> None:
    """Mixed order has many neighbours of different tasks, grouped one, drifting between."""

    def changes(order: str) -> int:
        tasks = [patterned.task_R[request] for request in in_order(patterned.task_R, order, 0)]
        return sum(one != other for one, other in pairwise(tasks))

    assert changes("grouped") == 1
    assert changes("grouped") < changes("drifting") < changes("mixed")
