"""Skew and locality: known values on made-up traces, the published table on the real ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moesim.traces import describe, layer_statistics, load, synthetic, task_cosine


def test_one_expert_for_all_is_the_most_skewed() -> None:
    """Always the same expert: entropy 0, Gini (E - 1)/E, all choices to the top, reuse 1."""
    trace = synthetic.uniform(seed=0, layers=2, experts=5, top_k=1, requests=1)
    measured = layer_statistics(replace(trace, expert_TLK=np.zeros_like(trace.expert_TLK)))
    assert pytest.approx(measured.entropy_L) == [0.0, 0.0]
    assert pytest.approx(measured.gini_L) == [0.8, 0.8]
    assert pytest.approx(measured.top_share_L) == [1.0, 1.0]
    assert pytest.approx(measured.reuse_L_by_lag[1]) == [1.0, 1.0]
    assert pytest.approx(measured.iid_reuse_L) == [1.0, 1.0]


def test_taking_turns_is_equal_and_repeats_after_a_round() -> None:
    """Experts 0, 1, 0, 1: entropy 1, Gini 0, reuse 0 at lag 1 and 1 at lags 2 and 8."""
    trace = synthetic.uniform(
        seed=0, layers=1, experts=2, top_k=1, requests=2, prompt_tokens=0, decode_tokens=12
    )
    turns = (np.arange(24) % 2).astype(np.int16).reshape(24, 1, 1)
    measured = layer_statistics(replace(trace, expert_TLK=turns))
    assert pytest.approx(measured.entropy_L) == [1.0]
    assert pytest.approx(measured.gini_L) == [0.0]
    assert pytest.approx(measured.iid_reuse_L) == [0.5]
    reuse = {lag: float(values[0]) for lag, values in measured.reuse_L_by_lag.items()}
    assert reuse == {1: 0.0, 2: 1.0, 8: 1.0}


def test_reuse_does_not_look_across_requests() -> None:
    """Requests of one row have no later token, so reuse is unknown, not 0."""
    trace = synthetic.uniform(seed=0, requests=4, prompt_tokens=0, decode_tokens=1)
    assert np.isnan(layer_statistics(trace).reuse_L_by_lag[1]).all()
    assert describe(trace)["reuse_1"] is None


def test_absent_rows_count_nowhere() -> None:
    """A prompt row whose layer was not recorded changes no count of that layer."""
    trace = synthetic.uniform(seed=4, layers=2, requests=1, prompt_tokens=3, decode_tokens=9)
    ids = trace.expert_TLK.copy()
    ids[:3, 1] = -1
    measured = layer_statistics(replace(trace, expert_TLK=ids))
    decode = layer_statistics(trace.head(requests=1))
    assert decode.entropy_L[0] == measured.entropy_L[0]
    count_E = np.bincount(ids[3:, 1].ravel(), minlength=8) / 18
    expected = -(count_E[count_E > 0] * np.log(count_E[count_E > 0])).sum() / np.log(8)
    assert expected == pytest.approx(measured.entropy_L[1])


def test_blocks_do_not_change_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same statistics whether rows are counted at once or a few at a time."""
    trace = synthetic.sticky(seed=1, reuse=0.6, requests=3, tasks=3, decode_tokens=20)
    whole = describe(trace)
    monkeypatch.setattr("moesim.traces.checks.BLOCK_VALUES", 40)
    assert whole == describe(trace)


def test_tasks_with_the_same_and_with_no_common_experts() -> None:
    """The cosine of popularity is 1 for equal tasks, 0 for disjoint ones, None for one task."""
    trace = synthetic.uniform(seed=0, layers=1, experts=4, top_k=1, requests=2, tasks=2)
    assert task_cosine(replace(trace, expert_TLK=np.zeros_like(trace.expert_TLK))) == 1.0
    split = trace.request_T.astype(np.int16).reshape(-1, 1, 1)
    assert task_cosine(replace(trace, expert_TLK=split)) == 0.0
    assert task_cosine(trace.head(requests=1)) is None


def test_describe_is_flat_and_complete() -> None:
    """Every value is a number, a text or None; tasks are counted and signals described."""
    trace = synthetic.zipf(seed=0, requests=3, tasks=2, horizons=1)
    facts = describe(trace)
    assert all(value is None or isinstance(value, str | int | float) for value in facts.values())
    assert (facts["task: task 0"], facts["task: task 1"]) == (2, 1)
    assert tuple(facts[key] for key in ("prefill_tokens", "decode_tokens", "tokens")) == (
        12,
        24,
        36,
    )
    assert (
        facts["model"],
        facts["evidence"],
        facts["gates"],
    ) == ("synthetic", "synthetic", "float16")
    expected = "made from the next layers' own choices; known at layer_routed; derived"
    assert expected == facts["signal: look_in_TLHM"]
    assert sum(array.nbytes for array in trace.arrays().values()) == facts["size_bytes"]


# research table of the data: H/Hmax, Gini, top tenth, reuse at lags 1, 2, 8, iid, recall of a
# table of the next layer, task cosine.
PUBLISHED = {
    "gpt-oss-20b": (0.912, 0.418, 0.303, 0.436, 0.377, 0.340, 0.200, 0.578, 0.82),
    "deepseek-v2-lite-esft": (0.971, 0.273, 0.226, 0.278, 0.211, 0.184, 0.118, 0.485, 0.65),
    "bigmoe-qwen": (0.777, 0.730, 0.531, 0.368, 0.288, 0.239, 0.211, 0.546, None),
}
MEASURED = (
    "entropy", "gini", "top_tenth_share", "reuse_1", "reuse_2", "reuse_8", "reuse_iid",
    "table_recall_1",
)  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_of_the_collected_logs_is_reproduced(name: str, shared_data: Path) -> None:
    """Means over layers agree with an independent measurement in every printed digit."""
    facts = describe(load(shared_data / "traces" / name))
    measured = [float(facts[key] or 0) for key in MEASURED]
    cosine = facts["task_cosine"]
    rounded = (*(round(value, 3) for value in measured), cosine and round(float(cosine), 2))
    assert PUBLISHED[name] == rounded
