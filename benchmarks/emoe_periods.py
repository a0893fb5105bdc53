"""eMoE's arms on recorded routes: how often to predict, who predicts, and what it is worth.

``python benchmarks/emoe_periods.py ../shared/data/traces/gpt-oss-20b -o OUT.json --plot OUT.png``

The recordings beside the project have no 1,000 prompts, so their answers are cut into prompts of
equal length: those of the even sequences are served, those of the odd ones fit what is fitted, so
no sequence is in both. Each is served in three orders of its tasks (mixed, grouped, drifting) at
equal bytes of experts, on the costs of one machine. Two figures for each arm: the time of a token
where a miss passes through staging (lossless), and the share of choices that found their expert in
VRAM, which is also what eMoE itself would not have had to send elsewhere. eMoE as published loses
those choices instead of waiting for them: its time is given where absent choices are skipped.

A held set moves the same bytes whatever the clock says, so most of its arms are counted by asking
the policy prompt by prompt, and timed by the line in bytes that a few replays lie on; a row says by
which, and the setup how far the replays are from their line.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from moesim.backends.predictors.correlation import correlation
from moesim.backends.predictors.files import Predictors, write_predictors
from moesim.backends.predictors.judging import judge
from moesim.backends.predictors.learning import as_rule, train
from moesim.backends.predictors.light import fit_light
from moesim.backends.predictors.rules import perfect_for, rules
from moesim.backends.predictors.sequence import VARIANTS, Size
from moesim.backends.predictors.signals import told_by, with_uses
from moesim.backends.predictors.training import Plan, train_and_judge
from moesim.backends.predictors.uses import Prompts, in_order, prompts_of, served
from moesim.simulator import systems
from moesim.simulator.assembly import build_policies
from moesim.simulator.choices import flat_ids
from moesim.simulator.memory import MemorySpec
from moesim.simulator.policies.base import Request, View
from moesim.simulator.policies.expert_network import as_sets, read_network
from moesim.simulator.registry import Axis
from moesim.simulator.run_spec import GRANTS, RunSpec
from moesim.simulator.runs import Prepared, prepare
from moesim.simulator.tables import print_table
from moesim.simulator.terms import Slo
from moesim.traces import RoutingTrace, SignalSpec, load
from moesim.validation.provenance import commit_of, without_folder

PERIODS = (1, 10, 20, 40, 60, 80)
ADAPTIVE_PERIODS = (1, 2, 3, 5, 10, 40, 160)
ORDERS = ("mixed", "grouped", "drifting")
LOOK_BACK = 80
"""Fit prompts that a predictor is told of before the first that is served, offline."""
FAMILIES = ("mmlu_pro", "mmlu", "gpqa", "sorry_bench")
PLAIN = "resident_first"
SKIP = "fallback:miss=skip,ranking=top/resident_first"
PUBLISHED = {
    "accuracy of XLNet, layer by layer and all layers (OpenMoE)": [0.70, 0.69],
    "accuracy of XLNet, layer by layer and all layers (Mixtral-8x7B)": [0.71, 0.71],
    "predict and move, seconds an invocation, A and L (OpenMoE)": [0.381, 1.387],
    "predict and move, seconds an invocation, A and L (Mixtral-8x7B)": [0.334, 4.211],
    "correlation of consecutive layers": 0.50,
    "correlation of consecutive prompts (Mixtral-8x7B)": [0.75, 0.95],
    "p": 40,
}


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to hold experts.

    Attributes:
        name: What the tables call it.
        cache: Its cache policy.
        schedule: Its schedule.
        prefetch: Its prefetch policy.
        period: p, where it has one.
        slots: Room for experts; None for the share that all have.
        weights_format: Another format of the experts than the run's.
        engine: Which simulator can run it; ``counted`` asks its cache policy alone.
    """

    name: str
    cache: str
    schedule: str = PLAIN
    prefetch: str = "none"
    period: int | None = None
    slots: str | None = None
    weights_format: str | None = None
    engine: str = "clock"

    @property
    def policies(self) -> Mapping[Axis, str]:
        """Its three policies."""
        return {"cache": self.cache, "prefetch": self.prefetch, "schedule": self.schedule}


@dataclass(frozen=True, slots=True)
class Served:
    """The prompts of one order, what was fitted for it, and where its networks are."""

    trace: RoutingTrace
    profile: RoutingTrace
    networks: Path


TRACES: dict[str, Served] = {}
"""By order; worker processes inherit it."""


def family(task: str) -> str:
    """Return the family of a data set's split, so that a recording falls into a handful of tasks.

    >>> family("mmlu_pro_validation"), family("mmlu_dev"), family("tulu3_persona_if")
    ('mmlu_pro', 'mmlu', 'other')
    """
    return next((name for name in FAMILIES if task.startswith(name)), "other")


def cut(trace: RoutingTrace, sequences: Sequence[int], tokens: int) -> RoutingTrace:
    """Return decode rows of these sequences as requests of so many tokens; what is left is out."""
    starts = trace.row_starts()
    rows, tasks = [], []
    is_known = len(set(map(family, trace.task_R))) > 1
    for sequence in sequences:
        for begin in range(int(starts[sequence]), int(starts[sequence + 1]) - tokens + 1, tokens):
            rows.append(np.arange(begin, begin + tokens))
            task = trace.task_R[sequence]
            tasks.append(family(task) if is_known else task)
    rows_T, requests = np.concatenate(rows), len(rows)
    position_T = np.tile(np.arange(tokens, dtype=np.int32), requests) + 1
    notes = f"sequences cut into requests of {tokens} tokens"
    header = trace.header.model_copy(update={"signals": {}, "notes": notes})
    return RoutingTrace(
        header=header,
        expert_TLK=trace.expert_TLK[rows_T],
        gate_TLK=None if trace.gate_TLK is None else trace.gate_TLK[rows_T],
        step_T=position_T - 1,
        request_T=np.repeat(np.arange(requests, dtype=np.int32), tokens),
        position_T=position_T,
        is_prefill_T=np.zeros(len(rows_T), bool),
        task_R=tuple(tasks),
        arrival_ns_R=np.zeros(requests, np.int64),
        prompt_tokens_R=np.ones(requests, np.int32),
        output_tokens_R=np.full(requests, tokens + 1, np.int32),
    )


def arms(networks: Path) -> Iterator[Arm]:
    """Yield what is compared in every order; what a table cannot do without comes first."""
    start = "first=profile"
    asked = f"predictor=network,file={networks}"
    for p in (1, 40):
        yield Arm("last 20 prompts", f"periodic:period={p},{start}", period=p)
    yield Arm("lru", "lru", engine="compiled")
    yield Arm("lfu", "lfu", engine="compiled")
    for name in ("pregated", "moe-infinity"):
        bundle = systems.load(name)
        yield Arm(name, bundle.cache, bundle.schedule, bundle.prefetch)

    def counted(name: str, options: str, period: int | None = None) -> Arm:
        return Arm(name, f"periodic:{options},{start}", period=period, engine="counted")

    yield counted("static offline set", "period=1000000,window=1000000")
    for p in (10, 20, 60, 80):
        yield counted("last 20 prompts", f"period={p}", p)
    for p in PERIODS:
        yield counted("XLNet A", f"period={p},{asked}", p)
    for p in ADAPTIVE_PERIODS:
        yield counted("adaptive", f"period={p},predictor=best_window,adapt=true", p)
    yield counted("best window, not adaptive", "period=10,predictor=best_window", 10)
    for window in (20, 80):
        name = f"last {window} prompts, adaptive"
        yield counted(name, f"period=40,window={window},adapt=true", 40)
    yield counted("light, adaptive", "period=40,predictor=light,adapt=true", 40)
    for p in (1, 40):
        yield counted("perfect prediction", f"period={p},predictor=signal", p)
    yield counted("perfect mean of 40", "period=40,predictor=signal,signal=ahead_use_RLE", 40)
    yield counted("random", "period=40,predictor=random", 40)
    yield counted("light", "period=1,predictor=light", 1)


def once(held: int, experts_are: str) -> Iterator[Arm]:
    """Yield what is looked at in one order: all resident, eMoE with its loss, a check of the line.

    Args:
        held: Experts of a layer that stay after all were there.
        experts_are: Format of the experts.
    """
    for name in (experts_are, "int8", "int4"):
        yield Arm(
            f"all resident, {name}", "lru", slots="100%", weights_format=name, engine="compiled"
        )
    for p in (1, 40):
        yield Arm(
            "last 20, absent skipped",
            f"periodic:period={p},first=profile,staging=0",
            SKIP,
            period=p,
        )
    yield Arm(
        "all experts first, absent skipped",
        f"periodic:period=40,first=all,held={held},staging=0",
        SKIP,
        period=40,
        slots="100%",
    )
    yield Arm(
        "perfect prediction, replayed",
        "periodic:period=1,predictor=signal,first=profile",
        period=1,
    )


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
    known = [row for row in rows if row["by"] == "clock" and row["arm"] == "last 20 prompts"]
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


def make(
    served_trace: RoutingTrace,
    fit_trace: RoutingTrace,
    order: str,
    given: argparse.Namespace,
) -> tuple[Served, dict[str, Any]]:
    """Order the prompts, train the networks on the fit ones, and judge what they tell.

    The predictors go on from the last fit prompts. Layer by layer takes a forward pass for each
    layer of each prompt and is judged on whole sequences alone, which are fewer.
    """
    put = {
        name: trace.select_requests(in_order(trace.task_R, order, given.seed))
        for name, trace in (("served", served_trace), ("fit", fit_trace))
    }
    fit, prompts = prompts_of(put["fit"]), prompts_of(put["served"])
    network = train(
        fit,
        Size(fit_trace.layers, fit_trace.experts),
        epochs=given.epochs,
        horizon=1,
        seed=given.seed,
    )
    path = Path(given.folder) / f"{order}.safetensors"
    write_predictors(Predictors({"all_layers": network}, fit_light(fit), {"order": order}), path)
    before = fit[slice(-LOOK_BACK, None)]
    after = Prompts(
        np.concatenate([before.use_RLE, prompts.use_RLE]),
        np.concatenate([before.choices_RL, prompts.choices_RL]),
        before.task_R + prompts.task_R,
        prompts.top_k,
    )
    judged, told = judge(
        {
            **rules(fit, given.seed),
            "light": fit_light(fit),
            "XLNet A": as_rule(network),
        },
        after,
        len(before),
        period=40,
        slots=given.held,
    )
    told["perfect"] = prompts.use_RLE
    number_R = np.arange(len(prompts))
    figures = {
        name: {
            "accuracy_each": round(judged[name].each, 4),
            "served_by_p": {
                p: round(served(told_RLE[number_R // p * p], prompts.use_RLE, given.held), 4)
                for p in PERIODS
            },
        }
        for name, told_RLE in told.items()
    }
    tell = perfect_for(40)
    ahead_RLE = np.stack([tell(prompts, at) for at in range(len(prompts))])
    annotated = with_uses(
        put["served"],
        {
            "predicted_use_RLE": (prompts.use_RLE, told_by("perfect", "none")),
            "ahead_use_RLE": (ahead_RLE, told_by("perfect for 40", "none")),
        },
    )
    chosen = SignalSpec(
        tap="router's choice", known_at="layer_routed", producer="router", evidence="derived"
    )
    header = annotated.header.model_copy(
        update={"signals": {**annotated.header.signals, "router_top_TLM": chosen}}
    )
    annotated = replace(
        annotated,
        header=header,
        signals={**annotated.signals, "router_top_TLM": annotated.expert_TLK},
    )
    alike = correlation(prompts, given.seed)
    return Served(annotated, put["fit"], path), {
        "predictors": figures,
        "correlation": {
            "next layer": round(alike.layers, 3),
            "next prompt": round(alike.prompts, 3),
            "independent": round(alike.independent, 3),
        },
    }


def statement(trace: RoutingTrace, held: int, seeds: int = 8) -> dict[str, Any]:
    """Return what sets serve of whole sequences: a static one, and perfect ones at p = 1 and 40."""

    def share(told: NDArray[Any], prompts: Prompts) -> float:
        demands_RLE = prompts.use_RLE * prompts.choices_RL[..., None]
        return served(np.broadcast_to(told, demands_RLE.shape), demands_RLE, held)

    odd = prompts_of(trace.select_requests(range(1, trace.requests, 2)))
    even_trace = trace.select_requests(range(0, trace.requests, 2))
    even = prompts_of(even_trace)
    static_LE = (odd.use_RLE * odd.choices_RL[..., None]).sum(axis=0)
    found: dict[str, Any] = {
        "static set of the odd sequences": round(share(static_LE, even), 4),
        "perfect, p = 1": round(share(even.use_RLE, even), 4),
    }
    for order in ORDERS:
        shares = []
        for seed in range(seeds):
            put = prompts_of(even_trace.select_requests(in_order(even.task_R, order, seed)))
            at_R = np.arange(len(put)) // 40 * 40
            shares.append(share(put.use_RLE[at_R], put))
        found[f"perfect, p = 40, {order}, {seeds} seeds: least, mean, most"] = [
            round(float(value), 4) for value in (min(shares), np.mean(shares), max(shares))
        ]
    return found


def overhead(trace: RoutingTrace, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Train on whole sequences, judge on those left, and time an answer of each network.

    ``us_an_answer`` is on the wall, beside whatever else runs; ``cpu_us_an_answer`` is not.
    """
    plan = Plan(
        order="mixed",
        seed=given.seed,
        fit_share=0.7,
        epochs=15,
        history=1,
        horizon=1,
        period=40,
        held_experts=given.share,
    )
    outcome = train_and_judge(trace, plan, "trace")
    path = folder / "whole.safetensors"
    outcome.write(path, None)
    table = {}
    for name, of in outcome.judged.items():
        table[name] = {
            "accuracy_each": round(of.each, 4),
            "accuracy_held_40": round(of.held, 4),
            "served_each": round(of.served_each, 4),
            "served_held_40": round(of.served_held, 4),
            "us_an_answer": None if of.answer_us is None else round(of.answer_us),
        }
    use_LE = prompts_of(trace).use_RLE[:1]
    for variant in VARIANTS:
        network = read_network(path, variant)
        sets_HLE = as_sets(use_LE, trace.top_k)
        times_us = []
        for _ in range(20):
            began_ns = time.process_time_ns()
            network.tell(sets_HLE, trace.top_k)
            times_us.append((time.process_time_ns() - began_ns) / 1e3)
        table[f"XLNet {variant}"]["cpu_us_an_answer"] = round(float(np.median(times_us)))
    alike = outcome.likeness
    return {
        "learned from": outcome.first,
        "judged on": trace.requests - outcome.first,
        "table": table,
        "parameters": {
            name: sum(weight.numel() for weight in network.parameters())
            for name, network in outcome.predictors.networks.items()
        },
        "correlation": {
            "next layer": round(alike.layers, 3),
            "next prompt": round(alike.prompts, 3),
            "independent": round(alike.independent, 3),
        },
    }


def plot(document: Mapping[str, Any], target: Path) -> None:
    """Draw time of a token and share served from VRAM against p, one panel an order."""
    mpl.use("Agg")
    orders = list(dict.fromkeys(row["order"] for row in document["rows"]))
    figure, axes = plt.subplots(1, len(orders), figsize=(5 * len(orders), 4.2), sharey=True)
    drawn = {"last 20 prompts": "C0", "XLNet A": "C1"}
    across = {"static offline set": "C2", "lru": "C3", "perfect prediction": "C4"}
    for order, axis in zip(orders, np.atleast_1d(axes), strict=True):
        rows = [row for row in document["rows"] if row["order"] == order]
        share = axis.twinx()
        for name, colour in drawn.items():
            points = sorted((r["p"], r["tpot_ms"], r["share"]) for r in rows if r["arm"] == name)
            periods = [point[0] for point in points]
            axis.plot(periods, [point[1] for point in points], "o-", color=colour, label=name)
            share.plot(periods, [point[2] for point in points], "s:", color=colour)
        for name, colour in across.items():
            for row in rows:
                if row["arm"] == name and row["p"] in (None, 40):
                    axis.axhline(row["tpot_ms"], color=colour, lw=1, label=name)
        axis.set(title=order, xlabel="p, prompts from one prediction to the next")
        axis.set_xticks(PERIODS)
        share.set_ylim(0, 1)
        if order == orders[-1]:
            share.set_ylabel("share of choices served from VRAM (dotted)")
    np.atleast_1d(axes)[0].set_ylabel("ms a token, misses copied (solid)")
    np.atleast_1d(axes)[0].legend(fontsize=8)
    figure.suptitle(document["setup"]["title"])
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=16, help="of each prompt")
    parser.add_argument("--share", type=float, default=0.4, help="of the experts in VRAM")
    parser.add_argument("--hardware", default="a6000")
    parser.add_argument("--format", default="bf16")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--orders", default=",".join(ORDERS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Cut, train, replay, write and print."""
    given = parse()
    began = time.perf_counter()
    torch.set_num_threads(1)  # two would spin against whatever else runs
    trace = load(given.trace)
    slots = round(given.share * trace.experts)
    given.held = slots
    rng = np.random.default_rng(given.seed)
    halves = [cut(trace, range(half, trace.requests, 2), given.tokens) for half in (0, 1)]
    chosen = np.sort(rng.permutation(halves[0].requests)[: given.prompts])
    halves[0] = halves[0].select_requests(chosen.tolist())
    chosen = np.sort(rng.permutation(halves[1].requests)[: given.prompts])
    halves[1] = halves[1].select_requests(chosen.tolist())
    with TemporaryDirectory() as folder:
        given.folder = folder
        about = {}
        orders = given.orders.split(",")
        for order in orders:
            TRACES[order], about[order] = make(*halves, order, given)
        settings = {
            "hardware": given.hardware,
            "slots": str(slots * trace.layers),
            "format": given.format,
            "seed": given.seed,
        }
        compared = [list(arms(TRACES[order].networks)) for order in orders]
        jobs = [
            (order, arm, settings)
            for alike in zip(*compared, strict=True)
            for order, arm in zip(orders, alike, strict=True)
        ]
        jobs += [(orders[0], arm, settings) for arm in once(slots, given.format)]
        document: dict[str, Any] = {
            "setup": {
                "title": f"{trace.header.model}: {slots} of {trace.experts} experts a layer, "
                f"{given.hardware}, {given.format}",
                "trace": given.trace.name,
                "trace_hash": trace.content_hash(),
                "prompts": halves[0].requests,
                "fit_prompts": halves[1].requests,
                "tokens_of_a_prompt": given.tokens,
                "tasks": dict(sorted(Counter(halves[0].task_R).items())),
                **settings,
                "epochs": given.epochs,
            },
            "provenance": {
                "command": " ".join(["python", *map(without_folder, sys.argv)]),
                "commit": commit_of(None),
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "cores": os.cpu_count(),
                "versions": {name: version(name) for name in ("moesim", "torch", "transformers")},
            },
            "by_order": about,
            "whole_sequences": {
                "sets": statement(trace, slots),
                "predictors": overhead(trace, Path(folder), given),
            },
            "published": PUBLISHED,
            "rows": [],
        }
        measure((orders[0], Arm("lru", "lru", engine="compiled"), settings))  # compiles, once
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(given.workers, mp_context=context) as pool:
            for row in pool.map(measure, jobs):
                document["rows"].append(row)
                document["provenance"]["seconds"] = round(time.perf_counter() - began)
                save(document, given.output)
                count = len(document["rows"])
                sys.stderr.write(f"{count}/{len(jobs)} {row['order']} {row['arm']}\n")
    error = time_by_line(document["rows"], halves[0].tokens)
    document["setup"]["line_error"] = round(error, 6)
    save(document, given.output)
    rows = sorted(document["rows"], key=lambda row: orders.index(row["order"]))
    if given.plot:
        plot(document, given.plot)
    head = ("order", "arm", "p", "share", "ms a token", "tokens/s", "GB demand", "GB rebalance")
    keys = ("order", "arm", "p", "share", "tpot_ms", "tokens_per_s", "gb_demand", "gb_rebalance")
    cells = [tuple("" if row[key] is None else str(row[key]) for key in keys) for row in rows]
    print_table(document["setup"]["title"], head, cells)


def save(document: Mapping[str, Any], target: Path) -> None:
    """Write what is known so far, whole or not at all."""
    draft = target.with_suffix(".draft")
    draft.write_text(f"{json.dumps(document, indent=1, sort_keys=True)}\n", encoding="utf-8")
    draft.replace(target)


if __name__ == "__main__":
    main()
