"""A model, the texts that it is served in some order, and the machine whose time is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moesim.backends.controllers import Deciding
from moesim.backends.drivers.threads import AtOnceDriver
from moesim.backends.execution import Execution, Keep, execute
from moesim.backends.generation import Request, Sampling
from moesim.backends.scoring import foretold, in_answers, per_token, targets
from moesim.backends.store import ExpertStore
from moesim.simulator.memory import MemorySpec
from moesim.simulator.registry import Axis
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import prepare
from moesim.traces import RoutingTrace
from moesim.validation.accuracy_intervals import Floats, Losses

# N tokens foretold, V vocabulary, O orders, R texts.
REPLAYED = (
    "loop",
    "mean_ttft_ms",
    "mean_tpot_ms",
    "bytes_total",
    "bytes_rebalance",
    "rerouted",
    "skipped",
    "evidence",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all arms are served with.

    Attributes:
        texts: The texts that are scored; an order is their numbers.
        profile: The full model's routes on other texts.
        last_token: Tokens below count; the others part texts.
        hardware: Profile of the machine.
        cost_of: Whose costs the routes are charged; None takes the model's own bytes.
        policy_seed: Of the policies' random streams.
    """

    model: Any
    store: ExpertStore
    texts: Sequence[Request]
    profile: RoutingTrace
    last_token: int
    hardware: str
    cost_of: str | None
    policy_seed: int

    @property
    def total(self) -> int:
        """How many experts the model has."""
        return self.store.parts.experts * len(self.store.sizes_L)

    def serve(
        self, policies: Mapping[Axis, str], slots: int, requests: Sequence[Request]
    ) -> Execution:
        """Execute texts under policies with room for so many experts."""
        deciding = Deciding(
            policies=policies,
            budget_bytes=slots * max(self.store.sizes_L),
            seed=self.policy_seed,
            profile_trace=self.profile,
        )
        return execute(
            self.model,
            self.store,
            requests,
            deciding,
            Sampling(new_tokens=1, ignore_eos=True),
            keep=Keep(logits=True, prompt_logits=True),
            make_driver=AtOnceDriver,
        )

    def replay(
        self, policies: Mapping[Axis, str], slots: int, trace: RoutingTrace
    ) -> dict[str, Any]:
        """Return the figures of a replay that stand beside an execution's."""
        spec = RunSpec(
            trace=trace,
            trace_name="served",
            hardware=self.hardware,
            policies=policies,
            memory=MemorySpec(slots=str(slots)),
            cost_of=self.cost_of,
            profile_trace=self.profile,
            seed=self.policy_seed,
        )
        row = prepare(spec).replay().row
        return {name: row[name] for name in REPLAYED}


@dataclass(frozen=True, slots=True)
class Full:
    """What the model says of each text with every expert, and its routes, text after text."""

    logits_NV: Tensor
    trace: RoutingTrace

    @classmethod
    def of(cls, bench: Bench, watched: Mapping[Axis, str]) -> "Full":
        """Serve all texts with all experts, under policies that have probabilities kept."""
        done = bench.serve(watched, bench.total, bench.texts)
        header = done.trace.header.model_copy(update={"closed_loop": None})
        return cls(foretold(done), replace(done.trace, header=header))


def losses_of(
    bench: Bench,
    full: Full,
    logits_ONV: Sequence[Tensor],
    orders: Sequence[Sequence[int]],
    *,
    in_decode: bool = False,
) -> Losses:
    """Sum by text what was foretold in each order.

    Args:
        bench: The texts.
        full: What the full model foretells.
        logits_ONV: What an arm foretells in each order, in that order's own sequence of texts.
        orders: Those orders.
        in_decode: Whether only tokens that a decode step foretells count.
    """
    target_N = targets(bench.texts)
    counts_N = target_N < bench.last_token
    if in_decode:
        counts_N = counts_N & in_answers(bench.texts)
    lengths = [len(targets([text])) for text in bench.texts]
    text_N = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def by_text(values_N: Tensor) -> Floats:
        weight_N = (values_N.double() * counts_N).numpy()
        return np.bincount(text_N.numpy(), weight_N, len(lengths)).astype(np.float64)

    each = [
        per_token(_as_numbered(logits_NV, lengths, order), full.logits_NV, target_N)
        for logits_NV, order in zip(logits_ONV, orders, strict=True)
    ]
    return Losses(
        by_text(torch.ones_like(target_N)),
        np.stack([by_text(one.nats_N) for one in each]),
        np.stack([by_text(one.kl_nats_N) for one in each]),
        np.stack([by_text(one.agrees_N) for one in each]),
    )


def _as_numbered(logits_NV: Tensor, lengths: Sequence[int], order: Sequence[int]) -> Tensor:
    """Return logits text after text as the texts are numbered, not as they were served."""
    served = torch.split(logits_NV, [lengths[at] for at in order])
    place = {at: position for position, at in enumerate(order)}
    return torch.cat([served[place[at]] for at in range(len(order))])
