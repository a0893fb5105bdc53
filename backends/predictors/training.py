"""From a trace to trained predictors, judged on the prompts that they did not learn from."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moesim.backends.predictors.files import Predictors, write_predictors
from moesim.backends.predictors.judging import Judged, judge
from moesim.backends.predictors.learning import as_rule, train
from moesim.backends.predictors.light import fit_light
from moesim.backends.predictors.rules import rules
from moesim.backends.predictors.sequence import VARIANTS, ExpertSequence, Size, Variant
from moesim.backends.predictors.signals import told_by, with_uses
from moesim.backends.predictors.uses import Floats, in_order, prompts_of
from moesim.simulator.errors import InputError
from moesim.traces import RoutingTrace, write
from moesim.traces.correlation import Correlation, correlation

# R requests (prompts), L MoE layers, E experts of a layer.


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train and judge.

    Attributes:
        order: Order in which the prompts are served, as `in_order` knows it.
        seed: Of order, first weights, batches and dropout.
        fit_share: Share of the prompts, the first, that are learned from.
        epochs: Times that each of them is learned from.
        history: Prompts that the networks read.
        horizon: What is foretold is the mean use of so many prompts.
        period: Prompts for which an answer is held.
        held_experts: Share of the experts that a budget would hold.
    """

    order: Any
    seed: int
    fit_share: float
    epochs: int
    history: int
    horizon: int
    period: int
    held_experts: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training gave.

    Attributes:
        predictors: To be kept.
        judged: Figures by predictor, those of the rules beside them.
        first: Number of the first held-out prompt.
        slots: Experts of a layer that a budget would hold.
        held_out: The held-out requests with every answer as a signal.
        likeness: Of the experts of neighbouring layers and prompts, in the order served.
    """

    predictors: Predictors
    judged: Mapping[str, Judged]
    first: int
    slots: int
    held_out: RoutingTrace
    likeness: Correlation

    def write(self, output: Path | None, annotate: Path | None) -> None:
        """Write the predictors, and the held-out requests with their signals, if asked for."""
        if output is not None:
            write_predictors(self.predictors, output)
        if annotate is not None:
            write(self.held_out, annotate)


def train_and_judge(
    recorded: RoutingTrace,
    plan: Plan,
    name: str,
    advance: Callable[[int], None] = lambda _epochs: None,
) -> Outcome:
    """Train on the first prompts of a trace in an order, and judge on the rest.

    Args:
        recorded: The trace.
        plan: How.
        name: What messages call the trace.
        advance: Told of every epoch of either network.

    Raises:
        InputError: There are too few prompts to learn from or to judge on.
    """
    trace = recorded.select_requests(in_order(recorded.task_R, plan.order, plan.seed))
    prompts = prompts_of(trace)
    first = int(len(prompts) * plan.fit_share)
    if not 0 < first < len(prompts):
        raise InputError(
            f"{name}: of {len(prompts)} requests none is left to learn from or to judge on; "
            "give a trace of more"
        )
    fit = prompts[slice(0, first)]
    networks: dict[Variant, ExpertSequence] = {}
    for variant in VARIANTS:
        networks[variant] = train(
            fit,
            Size(trace.layers, trace.experts, variant, history=plan.history),
            epochs=plan.epochs,
            horizon=plan.horizon,
            seed=plan.seed,
            advance=advance,
        )
    xlnets = {f"XLNet {variant}": as_rule(network) for variant, network in networks.items()}
    slots = max(trace.top_k, round(plan.held_experts * trace.experts))
    judged, told = judge(
        {**rules(fit, plan.seed), "light": fit_light(fit), **xlnets},
        prompts,
        first,
        period=plan.period,
        slots=slots,
    )
    provenance = {
        **asdict(plan),
        "trace_hash": recorded.content_hash(),
        "fit_prompts": first,
        "held_out_prompts": len(prompts) - first,
        "accuracy_each": {name: round(of.each, 6) for name, of in judged.items()},
        "accuracy_held": {name: round(of.held, 6) for name, of in judged.items()},
    }
    return Outcome(
        Predictors(networks, fit_light(fit), provenance),
        judged,
        first,
        slots,
        _annotated(trace, first, {**told, "perfect": prompts.use_RLE[first:]}),
        correlation(prompts.use_RLE, prompts.top_k, trace.experts),
    )


def _annotated(trace: RoutingTrace, first: int, told: Mapping[str, Floats]) -> RoutingTrace:
    """Return the requests from ``first`` on with what was told of each, in signals by name."""
    return with_uses(
        trace.select_requests(range(first, trace.requests)),
        {
            f"{name.lower().replace(' ', '_')}_use_RLE": (use_RLE, told_by(name, "cpu"))
            for name, use_RLE in told.items()
        },
    )
