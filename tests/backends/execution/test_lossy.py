"""Lossy systems in execution: what they generate, what is recorded of it, how that replays."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="executions run a real model")

import torch

from moesim.backends.controllers import Deciding
from moesim.backends.experts import LayerWork
from moesim.backends.generation import Request
from moesim.backends.models import ModelError
from moesim.backends.testing import first_difference
from moesim.simulator.errors import CapabilityError
from moesim.simulator.memory import MemorySpec
from moesim.simulator.messages import Command
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import RunResult, prepare
from moesim.simulator.testing import decisions
from moesim.traces import RoutingTrace, read, write

ALL = 3 * 8
"""Experts of the tiny models."""
FALLBACK = "fallback/resident_first"
SKIP = "fallback:miss=skip/resident_first"


def held(period: int, schedule: str = FALLBACK) -> dict[str, str]:
    """Return eMoE's policies with a prediction every so many prompts, from the last one."""
    cache = f"periodic:period={period},window=1,staging=0"
    return {"cache": cache, "prefetch": "none", "schedule": schedule}


def prompts(count: int = 4) -> list[Request]:
    """Return different prompts of different tasks."""
    rng = np.random.default_rng(5)
    return [
        Request(prompt=rng.integers(3, 300, 6).tolist(), task=f"task {number % 2}")
        for number in range(count)
    ]


def replayed(trace: RoutingTrace, deciding: Deciding) -> RunResult:
    """Return a replay of a trace under the policies and in the room of an execution."""
    spec = RunSpec(
        trace=trace,
        trace_name="served",
        hardware="rtx4090",
        policies=deciding.policies,
        memory=MemorySpec(expert_budget=f"{deciding.budget_bytes}B"),
    )
    return prepare(spec).replay(keep_log=True)


def decided(log: Sequence[tuple[Any, int, Sequence[Command]]]) -> list[tuple[object, ...]]:
    """Return what was decided in a log, but how runs were put into launches, which timing says."""
    commands = [command for _, _, answer in log for command in answer]
    return [each for each in decisions(commands) if each[0] != "run"]


def test_with_room_for_all_the_text_is_the_full_models(offloaded: Callable[[str], Any]) -> None:
    """At L = E nothing is rerouted, no byte moves after loading, and logits are the same bits."""
    it = offloaded("Qwen3Moe")
    done = it.run(it.deciding(held(1), ALL))
    assert it.text == done.tokens
    for ours, theirs in zip(done.logits, it.resident, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    counts = done.counts
    assert (counts.rerouted, counts.copies, counts.bytes_total) == (0, 0, 0)


@pytest.mark.parametrize("family", ["Qwen3Moe", "Mixtral", "GptOss", "Qwen2Moe", "Olmoe"])
@pytest.mark.parametrize("schedule", [FALLBACK, SKIP, "cache_prior:strength=1/resident_first"])
def test_a_lossy_system_generates_text(
    offloaded: Callable[[str], Any], family: str, schedule: str
) -> None:
    """Choices are changed, every logit is finite, and a fresh controller answers the log alike."""
    it = offloaded(family)
    policies = held(1, schedule)
    if schedule.startswith("cache_prior"):
        policies["cache"] = "lru"
    deciding = it.deciding(policies, ALL // 2)
    done = it.run(deciding)
    counts = done.counts
    assert counts.rerouted + counts.skipped > 0
    assert all(bool(torch.isfinite(step).all()) for request in done.logits for step in request)
    parts = it.store.parts
    fresh = deciding.controller(experts=parts.experts, top_k=parts.top_k, sizes_L=it.store.sizes_L)
    assert first_difference(done.log, fresh) is None


def test_a_prediction_for_each_prompt_is_not_one_for_forty(offloaded: Callable[[str], Any]) -> None:
    """With p = 1 experts move at every prompt, with p = 40 they stay, and the texts differ."""
    it = offloaded("Qwen3Moe")
    every, once = (it.run(it.deciding(held(p), ALL // 2), requests=prompts()) for p in (1, 40))
    assert every.counts.bytes_rebalance > once.counts.bytes_rebalance
    assert every.tokens != once.tokens


@pytest.mark.parametrize("schedule", [FALLBACK, SKIP])
def test_the_closed_loop_replays_without_a_difference(
    offloaded: Callable[[str], Any], schedule: str, tmp_path: Path
) -> None:
    """The routes recorded under a lossy system lead a replay to the same changes and copies."""
    it = offloaded("Qwen3Moe")
    deciding = it.deciding(held(2, schedule), ALL // 2)
    done = it.run(deciding, requests=prompts())
    done.trace.validate("closed loop")
    path = tmp_path / "closed.safetensors"
    write(done.trace, path)

    result = replayed(read(path), deciding)

    assert result.row["loop"] == "closed"
    assert decided(done.log) == decided(result.log)
    changed = [each for each in decided(result.log) if each[0] == "reroute"]
    assert changed
    counts = done.counts
    for name in ("rerouted", "skipped", "demands", "copies", "bytes_rebalance"):
        assert getattr(counts, name) == getattr(result.counts, name)


def test_an_open_loop_is_not_the_closed_one(offloaded: Callable[[str], Any]) -> None:
    """The full model's routes under the same system lead to other changes, and say it is open."""
    it = offloaded("Qwen3Moe")
    deciding = it.deciding(held(2), ALL // 2)
    forced = [
        replace(request, forced=[7, 8, 9, 10]) for request in prompts()
    ]  # the same text in both, so that only routes differ
    closed = it.run(deciding, requests=forced)
    full = it.run(it.deciding(held(2), ALL), requests=forced)
    header = full.trace.header.model_copy(update={"closed_loop": None})

    result = replayed(replace(full.trace, header=header), deciding)

    assert result.row["loop"] == "open"
    assert closed.counts.rerouted != result.counts.rerouted
    first = slice(0, 6), 0  # nothing was changed before the first prompt's first layer
    assert np.array_equal(closed.trace.expert_TLK[first], full.trace.expert_TLK[first])
    assert not np.array_equal(closed.trace.expert_TLK, full.trace.expert_TLK)


def test_a_closed_loop_keeps_text_and_ranking(offloaded: Callable[[str], Any]) -> None:
    """The trace has what the policies read and the tokens, and is bound to what served it."""
    it = offloaded("Qwen3Moe")
    deciding = it.deciding(held(2), ALL // 2)
    trace = it.run(deciding, requests=prompts()).trace
    assert {"router_probs_TLE", "token_T"} == trace.signals.keys()
    bound = trace.header.closed_loop
    assert bound is not None
    assert bound.policies == held(2)
    assert (bound.slots, bound.order) == (ALL // 2, trace.order_hash())


def test_gates_keep_their_sum() -> None:
    """A changed token weighs its experts by the router's probabilities, and as much altogether."""
    gates_TK = torch.tensor([[0.5, 0.25], [0.6, 0.4]])
    work = LayerWork(
        None, torch.zeros(2, 4), torch.tensor([[3, 0], [1, 2]]), gates_TK, [3, 0, 1, 2]
    )
    work.probs_TE = torch.tensor([[0.2, 0.1, 0.1, 0.4], [0.1, 0.5, 0.3, 0.1]])
    work.reroute([(0, 9)])  # expert 1 of the layer whose experts are 8 to 11
    assert work.choices == [1, 0, 1, 2]
    assert torch.allclose(torch.tensor([[0.25, 0.5], [0.6, 0.4]]), work.gates_TK)


def test_what_is_skipped_weighs_nothing() -> None:
    """Its row is 0 and the token's other experts weigh more; a token with none gives 0."""
    hidden_TD = torch.full((2, 4), float("nan"))
    gates_TK = torch.tensor([[0.5, 0.25], [0.6, 0.4]])
    work = LayerWork(None, hidden_TD, torch.tensor([[3, 0], [1, 2]]), gates_TK, [3, 0, 1, 2])
    work.probs_TE = torch.full((2, 4), 0.25)
    work.reroute([(0, None), (2, None), (3, None)])
    work.rows_PSD[:, 1] = 1.0
    assert torch.allclose(torch.tensor([[0.75] * 4, [0.0] * 4]), work.merge())


def test_forced_routes_are_refused(offloaded: Callable[[str], Any]) -> None:
    """What a model's routers think of its own tokens ranks nothing of another's routes."""
    it = offloaded("Qwen3Moe")
    deciding = it.deciding(held(2), ALL // 2)
    trace = it.run(deciding).trace
    with pytest.raises(CapabilityError, match="run them without --routes"):
        it.run(deciding, routes=trace)


def test_a_router_with_a_rule_of_its_own_is_refused(offloaded: Callable[[str], Any]) -> None:
    """Phi's gates are of no softmax over all experts; the message names the router."""
    it = offloaded("Phimoe")
    with pytest.raises(ModelError, match="PhimoeTopKRouter"):
        it.run(it.deciding(held(2), ALL // 2))
