"""One arm at one budget: executed in every order, scored text by text, replayed for its time."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from moesim.backends.controllers import Deciding
from moesim.backends.execution import Execution
from moesim.backends.formats import FORMATS
from moesim.backends.generation import Request
from moesim.backends.scoring import foretold
from moesim.traces import RoutingTrace
from moesim.validation.accuracy_bench import Bench, Full, losses_of
from moesim.validation.accuracy_intervals import Losses, summary
from moesim.validation.accuracy_options import Arm
from moesim.validation.accuracy_rounding import group_bits, rounding

BF16_BITS = 16


def measure(
    bench: Bench,
    full: Full,
    arm: Arm,
    slots: int,
    orders: Sequence[Sequence[int]],
) -> tuple[dict[str, Any], Losses]:
    """Execute one arm at one budget; return its row, and its losses for comparisons.

    Time is replayed of the first order alone.
    """
    if arm.format is not None:
        slots = bench.total
    if arm.ignores_order or not _is_lossy(arm):
        orders = orders[:1]
    row: dict[str, Any] = {
        "arm": arm.name,
        "slots": slots,
        "share": slots / bench.total,
        "saved": 1 - slots / bench.total,
        "policies": dict(arm.policies),
        "orders": len(orders),
    }
    recorded = full.trace.select_requests(list(orders[0]))
    if not _is_lossy(arm):
        losses = losses_of(bench, full, [full.logits_NV], [range(len(bench.texts))])
        replayed = bench.replay(arm.policies, slots, recorded)
        return row | summary(losses) | replayed | {"decode": None, "changed": 0.0}, losses
    done = _executed(bench, arm, slots, orders)
    logits_ONV = [foretold(one) for one in done]
    losses = losses_of(bench, full, logits_ONV, orders)
    in_decode = losses_of(bench, full, logits_ONV, orders, in_decode=True)
    changed = [
        (one.counts.rerouted + one.counts.skipped) / one.trace.expert_TLK.size for one in done
    ]
    row |= summary(losses) | {
        "decode": summary(in_decode) if in_decode.tokens_R.any() else None,
        "changed": float(np.mean(changed)),
        "changed_by_order": changed,
        "drift": drift(recorded, done[0].trace),
    }
    if arm.format is not None:
        form = FORMATS[arm.format]
        row |= {"format": form.name, "saved": 1 - group_bits(form) / BF16_BITS}
        return row | {"mean_ttft_ms": None, "mean_tpot_ms": None}, losses
    row |= bench.replay(arm.policies, slots, done[0].trace)
    row["executed_bytes"] = done[0].counts.bytes_total
    if arm.wrong_labels:
        return row | {"wrong_labels": arm.wrong_labels}, losses
    opened = bench.replay(arm.policies, slots, recorded)
    share = (opened["rerouted"] + opened["skipped"]) / recorded.expert_TLK.size
    return row | {"open_loop": opened | {"changed": share}}, losses


def drift(recorded: RoutingTrace, served: RoutingTrace) -> float:
    """Return the share of the routers' own choices that are not those of the full model."""
    ours_TLK, theirs_TLK = served.expert_TLK, recorded.expert_TLK
    is_same = (ours_TLK[..., :, None] == theirs_TLK[..., None, :]).any(axis=-1)
    return 1 - float(is_same.mean())


def mislabelled(requests: Sequence[Request], share: float, seed: int) -> list[Request]:
    """Return requests of which so large a share, drawn at random, bears another task's label."""
    rng = np.random.default_rng(seed)
    tasks = sorted({one.task for one in requests})
    wrong = set(rng.permutation(len(requests))[: round(share * len(requests))].tolist())
    return [
        replace(one, task=str(rng.choice([task for task in tasks if task != one.task])))
        if at in wrong
        else one
        for at, one in enumerate(requests)
    ]


def _is_lossy(arm: Arm) -> bool:
    return arm.format is not None or Deciding(policies=arm.policies, budget_bytes=0).is_lossy


def _executed(
    bench: Bench, arm: Arm, slots: int, orders: Sequence[Sequence[int]]
) -> list[Execution]:
    done = []
    with nullcontext() if arm.format is None else rounding(bench.store, FORMATS[arm.format]):
        for number, order in enumerate(orders):
            requests = [bench.texts[at] for at in order]
            if arm.wrong_labels:
                requests = mislabelled(requests, arm.wrong_labels, bench.policy_seed + number)
            done.append(bench.serve(arm.policies, slots, requests))
    return done
