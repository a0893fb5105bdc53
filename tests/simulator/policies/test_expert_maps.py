"""FineMoE's store and its rules, on vectors of a few numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moesim.simulator import registry
from moesim.simulator.policies.base import Demand, RunInfo, View
from moesim.simulator.policies.expert_maps import MapStore, select

MakeRun = Callable[..., RunInfo]
MakeView = Callable[..., View]

# L MoE layers, E experts of a layer.


def floats(*values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return an array as the store holds it."""
    return np.asarray(values, np.float32)


@pytest.mark.parametrize(
    ("similarity", "least", "paper", "demo"),
    [
        (1.0, 1, [0], [0]),
        (0.7, 1, [0], [0]),
        (0.3, 1, [0, 1], [0]),
        (0.2, 1, [0, 1, 2], [0, 1]),
        (0.2, 3, [0, 1, 2], [0, 1, 2]),
        (-1.0, 1, [0, 1, 2, 3], [0, 1, 2, 3]),
    ],
)
def test_the_less_alike_the_more_is_taken(
    similarity: float, least: int, paper: list[int], demo: list[int]
) -> None:
    """Of 1/2, 1/4, 1/8, 1/8: until their sum is 1 - similarity, with the crossing one or not."""
    probs_E = floats(0.5, 0.25, 0.125, 0.125)
    assert select(probs_E, similarity, least) == paper
    assert select(probs_E, similarity, least, crossing=False) == demo


def test_the_store_finds_by_embedding_and_by_the_layers_seen() -> None:
    """The nearest by cosine, whatever the lengths; trajectories by the layers seen so far alone."""
    store = MapStore(10, layers=2, experts=2, distance=1)
    assert store.by_embedding(floats(1, 0)) is None
    store.add(floats(1, 0), floats([1, 0], [0, 1]))
    store.add(floats(0, 3), floats([0, 1], [1, 0]))
    assert store.by_embedding(floats(0.6, 0.8)) == (1, pytest.approx(0.8))
    assert store.by_trajectory(floats([0.8, 0.6])) == (0, pytest.approx(0.8))
    assert store.by_trajectory(floats([0.8, 0.6], [1, 0])) == (1, pytest.approx(1.6 / 2))


def test_a_full_store_replaces_the_map_most_like_the_new_one() -> None:
    """RDY with distance 1 of 2 layers weighs embedding and trajectory alike.

    The new map is like the first by half of its layers and by no embedding (0.25), and like the
    second by half of its layers and wholly by embedding (0.75).
    """
    store = MapStore(2, layers=2, experts=2, distance=1)
    store.add(floats(1, 0), floats([1, 0], [1, 0]))
    store.add(floats(0, 1), floats([0, 1], [0, 1]))
    store.add(floats(0, 2), floats([1, 0], [0, 1]))
    assert len(store) == 2
    assert store.maps_CLE.tolist() == [[[1, 0], [1, 0]], [[1, 0], [0, 1]]]


def test_a_store_grows_to_its_capacity_and_keeps_what_it_has() -> None:
    """Forty maps are all found again; the forty-first takes a place of theirs."""
    store = MapStore(40, layers=1, experts=41, distance=1)
    for number, row in enumerate(np.eye(41, dtype=np.float32)):
        store.add(row, row[None])
        assert store.by_embedding(row) == (min(number, 40) % 40, pytest.approx(1.0))
    assert len(store) == 40


def test_a_search_does_not_depend_on_the_searches_before_it() -> None:
    """Layer by layer, from the start or after another step: one map at one similarity."""
    rng = np.random.default_rng(0)
    stored, steps = (rng.random((count, 4, 3)).astype(np.float32) for count in (9, 5))

    def store() -> MapStore:
        filled = MapStore(9, layers=4, experts=3, distance=1)
        for map_LE in stored:
            filled.add(floats(1), map_LE)
        return filled

    used = store()
    for step_LE in steps:
        for seen in (1, 2, 4, 3):
            found = used.by_trajectory(step_LE[:seen])
            assert found == store().by_trajectory(step_LE[:seen])
            flat = stored[:, :seen].reshape(9, -1)
            cosines = flat @ step_LE[:seen].ravel() / np.linalg.norm(flat, axis=1)
            expected = cosines.max() / np.linalg.norm(step_LE[:seen])
            assert found == (int(cosines.argmax()), pytest.approx(expected, rel=1e-5))


Step = tuple[list[float], list[list[float]]]
"""Embedding of a step, and the distribution of each of its layers."""


def walk(policy: Any, run: RunInfo, view: View, step: Step) -> list[list[tuple[int, float]]]:
    """Serve one decode step; return the wishes at its begin and after each layer."""
    embedding, layers = step
    view.step, view.layer = view.step + 1, -1
    view.signals = {"embedding_TD": [embedding]}
    wished = [[tuple(wish) for wish in policy.wants(None, view)]]
    for layer, probs in enumerate(layers):
        view.event, view.layer = view.event + 1, layer
        view.signals = {"router_probs_TLE": [probs]}
        best = sorted(range(run.experts), key=lambda e: -probs[e])[: run.top_k]
        experts = [layer * run.experts + expert for expert in best]
        routed = Demand(view.step, layer, experts, dict.fromkeys(experts, 1), [], [], (), experts)
        wished.append([tuple(wish) for wish in policy.wants(routed, view)])
    return wished


def test_priorities_fall_with_the_layers_ahead(make_run: MakeRun, make_view: MakeView) -> None:
    """PRI = p / (l - l now): at the begin layer 0 is one ahead and layer 1 two; then one each."""
    run = make_run(top_k=1)
    view = make_view(run)
    policy = registry.parse("prefetch", "expert_map:distance=2").build(run)
    step: Step = ([1.0, 0.0], [[0.75, 0.25, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1.0]])
    assert walk(policy, run, view, step) == [[], [], [], []]
    assert walk(policy, run, view, step) == [[(0, -0.75), (5, -0.25)], [(11, -0.5)], [], []]
    assert view.predicted[1] == 0.25
    assert view.predicted[11] == 1.0


def test_the_demos_priorities_are_linear_and_queue_every_expert(
    make_run: MakeRun, make_view: MakeView
) -> None:
    """Of two layers predicted at once the first weighs 1 and the second 1 - 1/2; the rest is 0."""
    run = make_run(top_k=1, experts=2)
    view = make_view(run)
    options = "distance=2,decay=linear,enqueue=all,crossing=false"
    policy = registry.parse("prefetch", f"expert_map:{options}").build(run)
    step: Step = ([1.0], [[0.75, 0.25], [0.25, 0.75], [1.0, 0]])
    walk(policy, run, view, step)
    expected = [(0, -0.75), (1, 0.0), (3, -0.375), (2, 0.0)]
    assert walk(policy, run, view, step)[0] == expected


def test_the_demo_predicts_all_layers_left_at_once(make_run: MakeRun, make_view: MakeView) -> None:
    """After layer 0 layers 1 and 2 are predicted with distance 1, where the paper predicts one."""
    run = make_run(top_k=1)
    step: Step = ([1.0], [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]])
    wished = {}
    for reach in ("one", "rest"):
        view = make_view(run)
        spec = f"expert_map:distance=1,reach={reach}"
        policy = registry.parse("prefetch", spec).build(run)
        walk(policy, run, view, step)
        wished[reach] = [expert for expert, _ in walk(policy, run, view, step)[1]]
    assert wished == {"one": [5], "rest": [5, 10]}


def test_a_search_elsewhere_wishes_when_it_is_answered(
    make_run: MakeRun, make_view: MakeView
) -> None:
    """It gives what the search inline gives, unless the step is over; the store waits meanwhile."""
    run = make_run(top_k=1)
    view = make_view(run)
    policy = registry.parse("prefetch", "expert_map:distance=1,search=ask").build(run)
    probs = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]]

    def ask(layer: int) -> list[Any]:
        view.layer = layer
        view.signals = {"embedding_TD": [[1.0]]}
        routed = None
        if layer >= 0:
            view.signals = {"router_probs_TLE": [probs[layer]]}
            routed = Demand(view.step, layer, [layer * 5], {layer * 5: 1}, [], [], (), [layer * 5])
        asked = list(policy.asks(routed, view))
        assert list(policy.wants(routed, view)) == []
        return asked

    view.step = 0
    assert [ask(layer) for layer in (-1, 0, 1, 2)] == [[], [], [], []]
    view.step = 1
    (question,) = ask(-1)
    assert question.name == "expert_map_search"
    answer = policy.compute(*question)
    assert list(policy.on_answer(question.name, answer, view)) == [(0, -1.0)]
    (late,) = ask(0)
    answer = policy.compute(*late)
    view.step = 2
    assert list(policy.on_answer(late.name, answer, view)) == []


def test_the_best_of_the_router_may_stand_for_all(make_run: MakeRun, make_view: MakeView) -> None:
    """From the two best of each layer the same experts are foreseen."""
    run = make_run(top_k=1)
    policy = registry.parse("prefetch", "expert_map:distance=1,maps=top,semantic=none").build(run)
    wished = []
    for step in range(2):
        view = make_view(run, step=step)
        list(policy.wants(None, view))
        for layer in range(3):
            view.layer = layer
            view.signals = {
                "router_top_TLM": [[layer, 3]],
                "router_top_score_TLM": [[0.5, 0.25]],
            }
            demand = Demand(step, layer, [layer * 5], {layer * 5: 1}, [], [], (), [])
            wished.append([expert for expert, _ in policy.wants(demand, view)])
    assert wished == [[], [], [], [5], [10], []]
