"""The prompts of `emoe_periods.py`: recorded answers cut, ordered, and what is learnt of them."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from periods_arms import PERIODS

from moesim.backends.predictors.files import Predictors, write_predictors
from moesim.backends.predictors.judging import judge
from moesim.backends.predictors.learning import as_rule, train
from moesim.backends.predictors.light import fit_light
from moesim.backends.predictors.rules import perfect_for, rules
from moesim.backends.predictors.sequence import VARIANTS, Size
from moesim.backends.predictors.signals import told_by, with_uses
from moesim.backends.predictors.training import Plan, train_and_judge
from moesim.backends.predictors.uses import Prompts, in_order, prompts_of, served
from moesim.simulator.policies.expert_network import as_sets, read_network
from moesim.traces import RoutingTrace, SignalSpec
from moesim.traces.correlation import Correlation, correlation

ORDERS = ("mixed", "grouped", "drifting")
LOOK_BACK = 80
"""Fit prompts that a predictor is told of before the first that is served, offline."""
FAMILIES = ("mmlu_pro", "mmlu", "gpqa", "sorry_bench")


@dataclass(frozen=True, slots=True)
class Served:
    """The prompts of one order, what was fitted for it, and where its networks are."""

    trace: RoutingTrace
    profile: RoutingTrace
    networks: Path


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
    alike = correlation(prompts.use_RLE, prompts.top_k, served_trace.experts)
    return Served(annotated, put["fit"], path), {
        "predictors": figures,
        "correlation": _likeness(alike),
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
        "correlation": _likeness(alike),
    }


def _likeness(found: Correlation) -> dict[str, float]:
    assert found.layers is not None
    assert found.requests is not None
    return {
        "next layer": round(found.layers, 3),
        "next prompt": round(found.requests, 3),
        "independent": round(found.independent, 3),
    }
