"""The router's rule reproduces what was recorded, or the row that disagrees is named."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.traces import RoutingTrace, SelectionRule, SignalSpec, TraceError, synthetic

# T tokens, L MoE layers, E experts of a layer, K chosen, G groups.
SPEC = SignalSpec(tap="router softmax", known_at="layer_routed", producer="router")


def routed(rule: SelectionRule, *, dtype: str = "float16", top_k: int = 2) -> RoutingTrace:
    """Return a trace of 12 rows, 2 layers, 8 experts that a router with this rule made."""
    plain = synthetic.uniform(seed=5, layers=2, experts=8, top_k=top_k, requests=1)
    rng = np.random.default_rng(11)
    logits_TLE = rng.normal(size=(plain.tokens, 2, 8))
    if rule.score == "softmax":
        probs_TLE = np.exp(logits_TLE) / np.exp(logits_TLE).sum(axis=2, keepdims=True)
    else:
        probs_TLE = 1 / (1 + np.exp(-logits_TLE))
    rank_TLE = probs_TLE + (0 if rule.bias_LE is None else np.array(rule.bias_LE))
    grouped = np.sort(rank_TLE.reshape(plain.tokens, 2, rule.groups, -1), axis=3)
    best = 1 if rule.group_score == "max" else 2
    group_rank = grouped[..., -best:].sum(axis=3)
    dropped = np.argsort(-group_rank, axis=2)[..., rule.groups_kept :]
    shut_TLG = np.zeros(group_rank.shape, dtype=bool)
    np.put_along_axis(shut_TLG, dropped, np.True_, axis=2)
    open_rank = np.where(np.repeat(shut_TLG, 8 // rule.groups, axis=2), -np.inf, rank_TLE)
    expert_TLK = np.argsort(-open_rank, axis=2)[..., :top_k]
    gate_TLK = np.take_along_axis(probs_TLE, expert_TLK, axis=2)
    if rule.normalise:
        gate_TLK /= gate_TLK.sum(axis=2, keepdims=True)
    header = plain.header.model_copy(
        update={"selection": rule, "signals": {"router_probs_TLE": SPEC}}
    )
    return replace(
        plain,
        header=header,
        expert_TLK=expert_TLK.astype(np.int16),
        gate_TLK=(gate_TLK * rule.scale).astype(dtype),
        signals={"router_probs_TLE": probs_TLE.astype(dtype)},
    )


RULES = {
    "mixtral": SelectionRule(score="softmax", normalise=True),
    "olmoe": SelectionRule(score="softmax", normalise=False),
    "deepseek_v2": SelectionRule(
        score="softmax", normalise=False, scale=16.0, groups=4, groups_kept=2
    ),
    "deepseek_v3": SelectionRule(
        score="sigmoid",
        normalise=True,
        scale=2.5,
        groups=4,
        groups_kept=2,
        group_score="top2_sum",
        bias_LE=((0.3, -0.2, 0.1, 0.0, 0.4, -0.3, 0.2, 0.0),) * 2,
    ),
}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", RULES)
def test_a_trace_made_by_the_rule_is_accepted(name: str, dtype: str) -> None:
    """Softmax and sigmoid, normalised or not, with groups, bias and scale, kept in either type."""
    routed(RULES[name], dtype=dtype).validate("t")


@pytest.mark.parametrize("name", RULES)
def test_another_expert_than_the_rule_gives_is_named(name: str) -> None:
    """An expert that the rule does not choose is found at its row and layer."""
    trace = routed(RULES[name])
    expert_TLK = trace.expert_TLK.copy()
    worst = int(trace.signals["router_probs_TLE"][4, 1].argmin())
    expert_TLK[4, 1, 1] = worst
    with pytest.raises(TraceError) as caught:
        replace(trace, expert_TLK=expert_TLK).validate("t")
    expected = (
        f"t: router_probs_TLE: row 4, layer 1: the rule does not choose expert {worst}; "
        "correct header.selection, or leave it out if the router has another rule"
    )
    assert expected == str(caught.value)


@pytest.mark.parametrize("name", RULES)
def test_another_gate_than_the_rule_gives_is_named(name: str) -> None:
    """A gate off by 3 % is found at its row and layer."""
    trace = routed(RULES[name])
    assert trace.gate_TLK is not None
    gate_TLK = trace.gate_TLK.copy()
    gate_TLK[6, 0, 0] *= 1.03
    with pytest.raises(TraceError, match=r"^t: router_probs_TLE: row 6, layer 0: the rule gives"):
        replace(trace, gate_TLK=gate_TLK).validate("t")


def test_a_group_that_is_shut_cannot_be_chosen_from() -> None:
    """An expert of the group with the lowest score fails though its own probability is high."""
    trace = routed(RULES["deepseek_v2"])
    probs = np.tile(np.array([0.2, 0.19, 0.18, 0.01, 0.17, 0.01, 0.16, 0.08]), (12, 2, 1))
    expert_TLK = np.tile(np.array([0, 1], dtype=np.int16), (12, 2, 1))
    gate_TLK = np.tile(np.array([3.2, 3.04], dtype=np.float16), (12, 2, 1))
    signals = {"router_probs_TLE": probs.astype(np.float16)}
    replace(trace, expert_TLK=expert_TLK, gate_TLK=gate_TLK, signals=signals).validate("t")
    expert_TLK[3, 0] = [0, 4]
    with pytest.raises(TraceError, match="row 3, layer 0: the rule does not choose expert 4;"):
        replace(trace, expert_TLK=expert_TLK, gate_TLK=gate_TLK, signals=signals).validate("t")


def test_probabilities_that_tie_in_float16_allow_either_expert() -> None:
    """Which of two equal probabilities was larger is lost, so both choices are accepted."""
    trace = routed(RULES["mixtral"])
    probs = np.tile(np.array([0.4, 0.2, 0.2, 0.1, 0.05, 0.03, 0.01, 0.01]), (12, 2, 1))
    gate_TLK = np.tile(np.array([2 / 3, 1 / 3], dtype=np.float16), (12, 2, 1))
    signals = {"router_probs_TLE": probs.astype(np.float16)}
    for second in (1, 2):
        ids = np.tile(np.array([0, second], dtype=np.int16), (12, 2, 1))
        replace(trace, expert_TLK=ids, gate_TLK=gate_TLK, signals=signals).validate("t")


def test_a_probability_that_is_not_finite_is_named() -> None:
    """NaN among the probabilities is found at its row and layer."""
    trace = routed(RULES["olmoe"])
    probs = trace.signals["router_probs_TLE"].copy()
    probs[2, 1, 7] = np.nan
    with pytest.raises(TraceError, match="row 2, layer 1: a probability is not finite;"):
        replace(trace, signals={"router_probs_TLE": probs}).validate("t")


def test_without_a_rule_the_probabilities_are_not_judged() -> None:
    """A router whose rule cannot be written down keeps its probabilities unchecked."""
    trace = routed(RULES["mixtral"])
    header = trace.header.model_copy(update={"selection": None})
    shuffled = {"router_probs_TLE": trace.signals["router_probs_TLE"][..., ::-1]}
    replace(trace, header=header, signals=shuffled).validate("t")
