"""A controller for one run of a live model, built as a replay builds its own.

What a policy needs is granted or refused by name here: a profile trace, the future where routes
are forced, a signal that an execution computes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Never

from moesim.simulator import registry
from moesim.simulator.assembly import assemble
from moesim.simulator.control.transfers import DEFAULT_WINDOW_BYTES
from moesim.simulator.controller import Controller
from moesim.simulator.errors import CapabilityError
from moesim.simulator.gpus.placement import PLACEMENTS
from moesim.simulator.gpus.plan import GpuPlan, plan_experts
from moesim.simulator.policies.base import UNLIMITED_BYTES, Costs
from moesim.simulator.registry import Axis, PolicySpec
from moesim.simulator.tiers.plan import TierPlan
from moesim.simulator.workload.foresight import RecordedFuture
from moesim.traces import RoutingTrace

GATES = "gates"
LOOK_IN = "look_in_TLHM"
ROUTER_PROBS = "router_probs_TLE"
LIVE_SIGNALS = frozenset({GATES, LOOK_IN, ROUTER_PROBS})
"""What an execution can tell policies of its own model."""


class UnknownCosts:
    """Stands where no machine was named; a policy that asks for times is refused."""

    def _refuse(self, *_: Any) -> Never:  # noqa: ANN401  whatever was asked
        raise CapabilityError(
            "a policy asks how long things take; name the machine's profile with --hardware"
        )

    copy_ns = read_ns = experts_gpu_ns = expert_cpu_ns = layer_ns = host_layer_ns = _refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciding:
    """What determines the decisions of a run, beside its routes.

    Attributes:
        policies: A spec for each axis (see ``registry``).
        budget_bytes: Room for experts, staging included.
        system: The bundle that they come from, or ``custom``.
        seed: Of the policies' random streams.
        window_bytes: Prefetches are handed over while fewer bytes are unfinished.
        costs: Of the machine, for policies that ask.
        profile_trace: Another recording of the same model, for offline-profiled policies.
        told: Signals that a trace tells whose routes are forced; see ``told.py``.
        kv_bytes: Room for the KV caches of all requests together.
        tiers: What another GPU lends, if one does; RAM holds all experts.
        gpus: How many GPUs compute; experts live on all of them, the rest of the model on the
            first.
        placement: Which GPU is an expert's home.
    """

    policies: Mapping[Axis, str]
    budget_bytes: int
    system: str = "custom"
    seed: int = 0
    window_bytes: int = DEFAULT_WINDOW_BYTES
    costs: Costs = field(default_factory=UnknownCosts)
    profile_trace: RoutingTrace | None = None
    told: frozenset[str] = frozenset()
    kv_bytes: int = UNLIMITED_BYTES
    tiers: TierPlan | None = None
    gpus: int = 1
    placement: str = PLACEMENTS[0]

    def specs(self) -> dict[Axis, PolicySpec]:
        """Return the policies, resolved."""
        return {axis: registry.parse(axis, self.policies[axis]) for axis in registry.AXES}

    @property
    def needs(self) -> frozenset[str]:
        """What the policies must be granted."""
        return frozenset().union(*(policy.needs for policy in self._deciding().values()))

    @property
    def is_lossy(self) -> bool:
        """Whether a policy may change the router's choices, and so the text."""
        return any(policy.is_lossy for policy in self.specs().values())

    @property
    def timing_free(self) -> bool:
        """Whether decisions depend on the order of demands alone."""
        return all(policy.timing_free for policy in self._deciding().values())

    def _deciding(self) -> dict[str, PolicySpec]:
        """Return every policy, those of tiers too, by what messages call it."""
        named = {f"{axis} policy {policy.text}": policy for axis, policy in self.specs().items()}
        below = {} if self.tiers is None else self.tiers.policies
        return named | {f"{tier} {policy.text}": policy for tier, policy in below.items()}

    def controller(
        self,
        *,
        experts: int,
        top_k: int,
        sizes_L: Sequence[int],
        future: RecordedFuture | None = None,
        keep_log: bool = False,
    ) -> Controller:
        """Return a fresh controller with fresh policies.

        Args:
            experts: Experts of each MoE layer.
            top_k: Experts that a token uses in each layer.
            sizes_L: Bytes of one expert of each layer.
            future: The demands to come, where routes are forced.
            keep_log: Whether the controller keeps every call.

        Raises:
            CapabilityError: A policy needs what the run cannot grant.
        """
        specs = self.specs()
        shape = (len(sizes_L), experts)
        for name, policy in self._deciding().items():
            _check(name, policy.needs - self.told, self.profile_trace, shape, future)
        return assemble(
            specs,
            experts=experts,
            top_k=top_k,
            sizes_L=sizes_L,
            budget_bytes=self.budget_bytes,
            costs=self.costs,
            window_bytes=self.window_bytes,
            seed=self.seed,
            profile_trace=self.profile_trace,
            future=future,
            kv_bytes=self.kv_bytes,
            tiers=self.tiers,
            gpus=self.spread(experts, sizes_L),
            keep_log=keep_log,
        )

    def spread(self, experts: int, sizes_L: Sequence[int]) -> GpuPlan | None:
        """Return which expert lives where, or None on one GPU.

        Args:
            experts: Experts of each MoE layer.
            sizes_L: Bytes of one expert of each layer.

        Raises:
            CapabilityError: Another GPU lends memory too, or the placement is not executed.
        """
        if self.gpus == 1:
            return None
        if self.tiers is not None:
            raise CapabilityError(
                f"--gpus {self.gpus}: tiers below VRAM are for one GPU alone; leave out "
                "--peer-cache"
            )
        return plan_experts(
            self.gpus,
            self.placement,
            experts=experts,
            sizes_L=sizes_L,
            budget_bytes=self.budget_bytes,
            profile_trace=self.profile_trace,
        )


def splits(policies: Mapping[Axis, str]) -> bool:
    """Return whether a cache policy has experts copied and run in parts."""
    return "split" in registry.parse("cache", policies["cache"]).does


def _check(
    policy: str,
    needs: frozenset[str],
    profile: RoutingTrace | None,
    shape: tuple[int, int],
    future: RecordedFuture | None,
) -> None:
    """Refuse what a live run cannot grant.

    Raises:
        CapabilityError: One line that names the policy, what it needs and the way out.
    """
    for need in sorted(needs - LIVE_SIGNALS):
        if need in ("profile", "transitions"):
            if profile is None:
                raise CapabilityError(
                    f"{policy} is profiled on another trace of the model; "
                    "give it with --profile-trace TRACE"
                )
            if (profile.layers, profile.experts) != shape:
                raise CapabilityError(
                    f"the profile trace has {profile.layers} layers x {profile.experts} experts, "
                    f"the model has {shape[0]} x {shape[1]}"
                )
        elif need == "future":
            if future is None:
                raise CapabilityError(
                    f"{policy} sees the future, which a live model does not have; "
                    "force the routes of a trace with --routes TRACE"
                )
        else:
            raise CapabilityError(
                f"{policy} reads the signal '{need}'; an execution can give "
                f"{', '.join(sorted(LIVE_SIGNALS))}"
            )
