"""One arm of `emoe_periods.py`: replayed on a clock, or counted and timed by a line in bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from periods_arms import REPLAYED, Arm
from periods_data import Served

from moesim.simulator.assembly import build_policies
from moesim.simulator.choices import flat_ids
from moesim.simulator.memory import MemorySpec
from moesim.simulator.policies.base import Request, View
from moesim.simulator.run_spec import GRANTS, RunSpec
from moesim.simulator.runs import Prepared, prepare
from moesim.simulator.terms import Slo

TRACES: dict[str, Served] = {}
"""By order; worker processes inherit it."""


class Held:
    """What a policy is told of residency: a set of experts, all of them there at once."""

    def __init__(self, experts: Sequence[int]) -> None:
        self.here = set(experts)

    def is_resident(self, expert: int) -> bool:
        """Return whether the expert is in the set."""
        return expert in self.here

    def is_loading(self, expert: int) -> bool:  # noqa: ARG002  as policies ask
        """Return False: nothing is on its way."""
        return False

    def free_bytes(self, layer: int) -> int:  # noqa: ARG002  as policies ask
        """Return 0: the set fills its room."""
        return 0


def measure(job: tuple[str, Arm, Mapping[str, Any]]) -> dict[str, Any]:
    """Run one arm in one order; in a worker process."""
    order, arm, given = job
    at = TRACES[order]
    run = prepare(
        RunSpec(
            trace=at.trace,
            trace_name=order,
            hardware=given["hardware"],
            policies=arm.policies,
            memory=MemorySpec(slots=arm.slots or given["slots"]),
            weights_format=arm.weights_format or given["format"],
            profile_trace=at.profile,
            engine=arm.engine if arm.engine != "counted" else "clock",
            seed=given["seed"],
        )
    )
    figures = count(run) if arm.engine == "counted" else replay(run)
    return {
        "order": order,
        "arm": arm.name,
        "p": arm.period,
        "by": arm.engine,
        "cache": arm.cache.replace(str(at.networks), at.networks.name),
        **figures,
    }


def replay(run: Prepared) -> dict[str, Any]:
    """Return what a run on a clock gives."""
    row = run.replay().row
    gone = row["misses"] + row["skipped"]
    return {
        "share": round(1 - gone / (row["demands"] + row["skipped"]), 4),
        "tpot_ms": round(row["mean_tpot_ms"], 3),
        "tokens_per_s": round(row["output_tokens_per_s"], 3),
        "gb_demand": round(row["bytes_demand"] / 1e9, 2),
        "gb_rebalance": round(row["bytes_rebalance"] / 1e9, 2),
        "peak_expert_gb": round(row["peak_expert_bytes"] / 1e9, 2),
        "loop": row["loop"],
    }


def count(run: Prepared) -> dict[str, Any]:
    """Return what a held set serves and moves, where a miss passes through staging.

    The policy is asked as a controller asks it, but only when a prompt begins, for then alone does
    the set change.
    """
    trace, spec = run.spec.trace, run.spec
    _, built = build_policies(
        run.policies,
        experts=trace.experts,
        top_k=trace.top_k,
        sizes_L=run.sizes_L,
        budget_bytes=run.memory.expert_bytes,
        costs=run.costs,
        seed=spec.seed,
        profile_trace=spec.profile_trace,
        future=None,
        axes=("cache",),
    )
    policy, signals = built["cache"], sorted(run.policies["cache"].needs - GRANTS)
    held = Held(policy.initial())
    view = View(held)
    chosen_TLK = flat_ids(trace.expert_TLK, trace.experts)
    starts, hits, moved = trace.row_starts().tolist(), 0, 0
    for number, task in enumerate(trace.task_R):
        view.step += 1
        view.signals = {name: trace.signals[name][number][None] for name in signals}
        view.requests = {
            number: Request(number, task, 1, 0, Slo(), kv_bytes=0, prompt_left=0, began_ns=0)
        }
        for expert in policy.rebalance(view):
            layer = expert // trace.experts
            held.here.remove(
                policy.choose_victim([e for e in held.here if e // trace.experts == layer], view)
            )
            held.here.add(expert)
            moved += 1
        is_here = np.zeros(trace.layers * trace.experts, bool)
        is_here[list(held.here)] = True
        mine_TLK = chosen_TLK[starts[number] : starts[number + 1]]
        hits += int(is_here[mine_TLK].sum())
        for token_LK in mine_TLK.tolist():
            for experts in token_LK:
                policy.on_touches(experts, view)
    size_gb = run.sizes_L[0] / 1e9
    return {
        "share": round(hits / chosen_TLK.size, 4),
        "gb_demand": round((chosen_TLK.size - hits) * size_gb, 2),
        "gb_rebalance": round(moved * size_gb, 2),
        "loop": "",
    }


def time_by_line(rows: Sequence[dict[str, Any]], tokens: int) -> float:
    """Give rows that were counted the times of the line through those that were replayed.

    Returns:
        error: The largest relative error of the line on the replays that it is laid through.
    """
    known = [row for row in rows if row["by"] == "clock" and row["arm"] == REPLAYED]
    bytes_N3 = np.array([_bytes_of(row, tokens) for row in known])
    error = 0.0
    for name in ("tpot_ms", "ms_of_all"):
        time_N = np.array(
            [row["tpot_ms"] if name == "tpot_ms" else 1e3 / row["tokens_per_s"] for row in known]
        )
        line_3, *_ = np.linalg.lstsq(bytes_N3, time_N, rcond=None)
        error = max(error, float(np.abs(bytes_N3 @ line_3 / time_N - 1).max()))
        for row in rows:
            if row["by"] == "counted":
                value = float(np.array(_bytes_of(row, tokens)) @ line_3)
                if name == "tpot_ms":
                    row["tpot_ms"] = round(value, 3)
                else:
                    row["tokens_per_s"] = round(1e3 / value, 3)
    return error


def _bytes_of(row: Mapping[str, Any], tokens: int) -> list[float]:
    return [1.0, row["gb_demand"] / tokens, row["gb_rebalance"] / tokens]
