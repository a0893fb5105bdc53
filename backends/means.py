"""What a driver of one device with slots at fixed offsets can do; the rest is refused by name."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from moesim.simulator.errors import CapabilityError, ProtocolError
from moesim.simulator.messages import Copy, Run
from moesim.simulator.terms import Place, Tier

Handed = TypeVar("Handed")

H2D, PEER, PEER_OUT = "h2d", "peer", "peer_out"
"""The copy engines: from RAM, from another GPU that lends memory, and to it."""


class Way(NamedTuple):
    """How a copy's bytes go.

    Attributes:
        engine: Which engine moves them.
        source_bytes: Where they begin in what is lent, or in VRAM; 0 of what comes from RAM.
        target_bytes: Where they go in VRAM, or in what is lent.
    """

    engine: str
    source_bytes: int
    target_bytes: int


def named(handed_over: Mapping[int, Handed], numbers: Sequence[int]) -> list[Handed]:
    """Return what was handed over under these numbers.

    Raises:
        ProtocolError: A number was not.
    """
    try:
        return [handed_over[n] for n in numbers]
    except KeyError as error:
        raise ProtocolError(
            f"a command waits for {error.args[0]}, which was not handed over"
        ) from None


def fixed_offset(driver: str, place: Place) -> int:
    """Return where a place begins in the arena.

    Raises:
        CapabilityError: It is in a pool without slots.
    """
    if place.offset_bytes is None:
        raise CapabilityError(
            f"the {driver} driver needs slots at fixed offsets: experts of unequal size "
            "need a cache policy with a pool for each layer"
        )
    return place.offset_bytes


def way_of(driver: str, command: Copy, lender: int | None, gpus: int = 1) -> Way:
    """Return how a copy's bytes go.

    Args:
        driver: Its name.
        command: The copy.
        lender: The GPU that lends memory, if one does.
        gpus: How many compute.

    Raises:
        CapabilityError: It is from elsewhere than RAM and that GPU, or to elsewhere than the VRAM
            of those that compute and that GPU.
    """
    src, dst = command.src, command.dst
    if lender is not None and src.tier is dst.tier is Tier.VRAM:
        ends = src.device, dst.device
        engine = {(lender, 0): PEER, (0, lender): PEER_OUT}.get(ends)
        if engine is not None:
            return Way(engine, fixed_offset(driver, src), fixed_offset(driver, dst))
    if src.tier is not Tier.RAM:
        raise CapabilityError(
            f"the {driver} driver copies experts from RAM, not part {command.part} "
            f"of expert {command.expert} from {src.tier.name}"
        )
    if dst.tier is not Tier.VRAM or dst.device >= gpus:
        raise CapabilityError(
            f"the {driver} driver copies to the VRAM of {_devices(gpus)}, not to {dst}"
        )
    return Way(H2D, 0, fixed_offset(driver, dst))


def run_offsets(
    driver: str, command: Run, offsets: Mapping[int, int], first: int = 0, gpus: int = 1
) -> Sequence[int]:
    """Return where the part of each expert of a run lies; nothing for a run on the CPU.

    Args:
        driver: Its name.
        command: The run.
        offsets: Where each expert's part lies, or will when its copy ends.
        first: What the part's number of an expert is counted from.
        gpus: How many compute.

    Raises:
        CapabilityError: It is on another device.
        ProtocolError: An expert was never given room.
    """
    kind, number = command.device
    if number >= (gpus if kind == "gpu" else 1):
        raise CapabilityError(
            f"the {driver} driver runs experts on {_devices(gpus)}, not on {kind} {number}"
        )
    if kind == "cpu":
        return ()
    try:
        return [offsets[first + expert] for expert in command.experts]
    except KeyError as error:
        raise ProtocolError(
            f"run {command.n} names expert {error.args[0] - first}, which never had room"
        ) from None


def _devices(gpus: int) -> str:
    return "device 0" if gpus == 1 else f"devices 0 to {gpus - 1}"
