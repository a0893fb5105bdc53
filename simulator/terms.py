"""The nouns that policies, controller and drivers share.

An expert is a plain int, ``layer * E + expert`` with E experts in each MoE layer, so that ids sort
in execution order and index flat arrays; tuples and objects as keys cost two to four times more.
"""

from enum import IntEnum
from typing import NamedTuple


class Tier(IntEnum):
    """Where weights can lie, nearest to the compute first."""

    VRAM = 0
    RAM = 1
    NVME = 2


class Place(NamedTuple):
    """One place for one expert part.

    ``offset_bytes`` is where the part begins in its pool; kernels get it instead of a slot number.
    It is None where places are not laid out: in RAM and NVMe, and in a pool of unequal experts.
    """

    tier: Tier
    device: int = 0
    pool: int = 0
    slot: int = 0
    offset_bytes: int | None = None


RAM = Place(Tier.RAM)
NVME = Place(Tier.NVME)


class Device(NamedTuple):
    """What an expert runs on."""

    kind: str
    number: int = 0


GPU = Device("gpu")
CPU = Device("cpu")


class Cause(IntEnum):
    """Why bytes move."""

    DEMAND = 0
    PREFETCH = 1
    REBALANCE = 2
    DEMOTION = 3


class Phase(IntEnum):
    """What a request does in a step."""

    PREFILL = 0
    DECODE = 1


class Slo(NamedTuple):
    """What was promised to a request; None is no promise.

    ``ttft_ns`` is the longest time to its first token, ``tpot_ns`` the longest mean time of the
    tokens after it, ``e2e_ns`` the longest time to its last.
    """

    ttft_ns: int | None = None
    tpot_ns: int | None = None
    e2e_ns: int | None = None


NO_PROMISE = Slo()


class Verdict(IntEnum):
    """What a cache policy says of an expert that is about to be copied.

    KEEP gives it room in the cache, if need be a victim's. TRANSIENT gives it room in the staging
    slots, which it leaves when its layer is done.
    """

    KEEP = 0
    TRANSIENT = 1


SECOND_NS = 10**9
MILLISECOND_NS = 10**6
FOREVER_NS = 1 << 62
"""A time that never comes."""

ALL = 0
"""The part number of an expert that is not split, and of the top of one that is."""

PIECES = 16
"""Equal pieces of its intermediate dimension between which kernels can cut an expert."""
