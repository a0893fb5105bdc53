"""How right predictors are on prompts that were held out, and how long an answer takes.

*Accuracy* is the share of a prompt's e_i that were told, where every prompt is foretold (``each``,
eMoE-E), and where what was told for every p-th prompt is held for those after it (``held``, eMoE-A
and -L at p). *Served* is the share of choices that fall on the experts that a budget would hold.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from moesim.backends.predictors.rules import Telling, perfect, perfect_for
from moesim.backends.predictors.uses import Floats, Prompts, accuracy, served

# R requests (prompts), L MoE layers, E experts of a layer.


@dataclass(frozen=True, slots=True)
class Judged:
    """Figures of one predictor on the held-out prompts.

    Attributes:
        each: Accuracy if every prompt is foretold.
        held: Accuracy if every p-th is.
        served_each: Choices served, every prompt foretold.
        served_held: Choices served, every p-th foretold.
        answer_us: Median time of one answer; None for a ceiling.
    """

    each: float
    held: float
    served_each: float
    served_held: float
    answer_us: float | None = None


def judge(
    tellings: Mapping[str, Telling], prompts: Prompts, first: int, *, period: int, slots: int
) -> tuple[dict[str, Judged], dict[str, Floats]]:
    """Ask every predictor before each prompt from ``first`` on.

    Args:
        tellings: Predictors by name; none looks at the prompt it is asked about.
        prompts: All prompts; those before ``first`` were fitted on.
        first: Number of the first held-out prompt; at least one is held out.
        period: Prompts for which an answer is held, p.
        slots: Experts of a layer that a budget would hold.

    Returns:
        judged: Figures by name, with those of perfect answers for one prompt and for p of them.
        told_RLE: What each predictor told of the held-out prompts.
    """
    used_RLE = prompts.use_RLE[first:]
    judged, told = {}, {}
    for name, tell in tellings.items():
        told[name], answer_us = _ask(tell, prompts, first)
        judged[name] = _figures(told[name], used_RLE, prompts.top_k, period, slots, answer_us)
    for name, tell in {"perfect": perfect, f"perfect for {period}": perfect_for(period)}.items():
        best_RLE, _ = _ask(tell, prompts, first)
        judged[name] = _figures(best_RLE, used_RLE, prompts.top_k, period, slots, None)
    return judged, told


def _ask(
    tell: Callable[[Prompts, int], Floats], prompts: Prompts, first: int
) -> tuple[Floats, float]:
    told, times_ns = [], []
    for at in range(first, len(prompts)):
        began_ns = perf_counter_ns()
        told.append(tell(prompts, at))
        times_ns.append(perf_counter_ns() - began_ns)
    return np.stack(told), float(np.median(times_ns)) / 1000


def _figures(
    told_RLE: Floats,
    used_RLE: Floats,
    top_k: int,
    period: int,
    slots: int,
    answer_us: float | None,
) -> Judged:
    held_RLE = told_RLE[np.arange(len(told_RLE)) // period * period]
    return Judged(
        each=accuracy(told_RLE, used_RLE, top_k),
        held=accuracy(held_RLE, used_RLE, top_k),
        served_each=served(told_RLE, used_RLE, slots),
        served_held=served(held_RLE, used_RLE, slots),
        answer_us=answer_us,
    )
