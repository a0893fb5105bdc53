"""What a user says of the tiers below VRAM, and what follows from it before anything is replayed.

RAM is a tier with a policy where it cannot hold all experts, and nothing worth a word where it can:
then a run is what it would be without tiers. Another GPU's VRAM is one where it is lent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moesim.hardware_profiles import HardwareProfile
from moesim.hardware_profiles.units import format_bytes
from moesim.simulator import registry
from moesim.simulator.errors import CapabilityError, InputError, OutOfMemoryError
from moesim.simulator.memory import parse_size
from moesim.simulator.policies.base import CachePolicy, RunInfo
from moesim.simulator.registry import PolicySpec
from moesim.simulator.terms import RAM, Place, Tier
from moesim.simulator.tiers.hierarchy import Shelves
from moesim.simulator.tiers.shelf import Shelf

Build = Callable[[PolicySpec, int, int], tuple[RunInfo, CachePolicy]]
"""Builds a policy for a room, with the random stream of this number."""


_USUAL = "lru"


@dataclass(frozen=True, slots=True)
class TierSpec:
    """What the user gave; the room in RAM is a matter of ``MemorySpec``.

    Attributes:
        host_cache: The cache policy of RAM; None is lru.
        is_exclusive: See ``Shelves``.
        starts_empty: See ``Shelves``.
        peer_cache: How much of another GPU's VRAM is lent; None if none is.
        peer_policy: Its cache policy; None is lru. One that keeps what comes takes what leaves
            VRAM; one that only places (``static``) keeps what lay there before the run.
    """

    host_cache: str | None = None
    is_exclusive: bool = False
    starts_empty: bool = False
    peer_cache: str | None = None
    peer_policy: str | None = None


@dataclass(frozen=True, slots=True)
class TierPlan:
    """The tiers of a run, resolved.

    Attributes:
        host: RAM's policy, or None where RAM holds all experts.
        host_bytes: Room for experts in it.
        peer: The policy of another GPU's VRAM, or None where none is lent.
        peer_bytes: How much is.
        peer_gpu: Whose.
        is_exclusive: See ``Shelves``.
        starts_empty: See ``Shelves``.
    """

    host: PolicySpec | None = None
    host_bytes: int = 0
    peer: PolicySpec | None = None
    peer_bytes: int = 0
    peer_gpu: int = 1
    is_exclusive: bool = False
    starts_empty: bool = False

    @property
    def policies(self) -> dict[str, PolicySpec]:
        """The policy of each tier, by what messages call it."""
        named = {"host cache": self.host, "peer cache": self.peer}
        return {name: policy for name, policy in named.items() if policy is not None}

    @property
    def needs(self) -> frozenset[str]:
        """What the run must grant them."""
        return frozenset().union(*(policy.needs for policy in self.policies.values()))

    @property
    def identity(self) -> dict[str, Any]:
        """What of it determines the run."""
        found: dict[str, Any] = {}
        if self.host is not None:
            found["host"] = [self.host.text, self.host.code_hash, self.host_bytes]
            found["host"] += [self.is_exclusive, self.starts_empty]
        if self.peer is not None:
            found["peer"] = [self.peer.text, self.peer.code_hash, self.peer_bytes]
        return found

    def shelves(self, build: Build) -> Shelves:
        """Return empty shelves with fresh policies.

        Raises:
            BudgetError: A tier's room cannot hold what its policy asks for.
            CapabilityError: A policy can be none of such a tier.
        """
        ram = peer = None
        if self.host is not None:
            told, policy = build(self.host, self.host_bytes, 0)
            ram = Shelf(
                "host cache", RAM, told, policy, passes=True, reads_signals=_reads(self.host)
            )
        if self.peer is not None:
            told, policy = build(self.peer, self.peer_bytes, 1)
            place = Place(Tier.VRAM, self.peer_gpu)
            peer = Shelf(
                "peer cache", place, told, policy, passes=False, reads_signals=_reads(self.peer)
            )
        return Shelves(ram, peer, self.is_exclusive, self.starts_empty)


def plan_tiers(
    spec: TierSpec, machine: HardwareProfile, host_bytes: int | None
) -> tuple[TierPlan | None, list[str]]:
    """Return the tiers of a run, None if it needs none, and what a reader must know of them.

    Args:
        spec: What the user gave.
        machine: Where it runs.
        host_bytes: Room for experts in RAM; None if it holds them all.

    Raises:
        InputError: A size or a policy is wrong.
        CapabilityError: The machine has no other GPU to copy from.
        OutOfMemoryError: The other GPU has not so much.
    """
    host_policy = registry.parse("cache", spec.host_cache or _USUAL)  # a wrong name is always told
    host, notes = None, []
    if host_bytes is not None:
        host = host_policy
        filled = "is empty" if spec.starts_empty else "has been filled by loading the model"
        notes.append(
            f"RAM holds {format_bytes(host_bytes)} of experts and {filled} as the run begins; "
            "NVMe holds all"
        )
    elif spec.host_cache is not None or spec.is_exclusive or spec.starts_empty:
        notes.append("RAM holds all experts, so that its cache policy decides nothing")
    peer, peer_bytes, peer_gpu = None, 0, 0
    if (lent := lent_by(spec)) is not None:
        peer, peer_bytes = lent
        peer_gpu = _peer_of(machine)
        if peer_bytes > machine.vram_usable_bytes:
            raise OutOfMemoryError(
                f"--peer-cache {spec.peer_cache}: GPU {peer_gpu} of {machine.name} has "
                f"{format_bytes(machine.vram_usable_bytes)} of usable VRAM"
            )
        notes.append(f"GPU {peer_gpu} lends {format_bytes(peer_bytes)} and does nothing else")
    if host is None and peer is None:
        return None, notes
    return (
        TierPlan(
            host,
            host_bytes or 0,
            peer,
            peer_bytes,
            peer_gpu,
            is_exclusive=spec.is_exclusive and host is not None,
            starts_empty=spec.starts_empty,
        ),
        notes,
    )


def lent_by(spec: TierSpec) -> tuple[PolicySpec, int] | None:
    """Return the policy and the room of another GPU's VRAM, or None where none is lent.

    Raises:
        InputError: The size or the policy is wrong, or there is a policy for no room.
    """
    if spec.peer_cache is None:
        if spec.peer_policy is None:
            return None
        raise InputError(f"--peer-policy {spec.peer_policy}: no GPU lends VRAM; give --peer-cache")
    policy = registry.parse("cache", spec.peer_policy or _USUAL)
    return policy, parse_size("--peer-cache", spec.peer_cache)


def _reads(policy: PolicySpec) -> bool:
    """Return whether a policy reads signals of the trace."""
    return bool(policy.needs - {"future", "profile", "transitions"})


def _peer_of(machine: HardwareProfile) -> int:
    """Return the GPU that a link joins to GPU 0."""
    pairs: Sequence[tuple[int, int]] = machine.link.peer.pairs if machine.link.peer else ()
    for pair in pairs:
        if 0 in pair:
            return pair[0] + pair[1]
    raise CapabilityError(
        f"--peer-cache: {machine.name} has no link from another GPU to GPU 0; take a machine whose "
        "profile has link.peer with such a pair"
    )
