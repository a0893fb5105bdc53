"""What a driver of one device with slots at fixed offsets can do; the rest is refused by name."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from moesim.simulator.errors import CapabilityError, ProtocolError
from moesim.simulator.messages import Copy, Run
from moesim.simulator.terms import Place, Tier

Handed = TypeVar("Handed")


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


def copy_offset(driver: str, command: Copy) -> int:
    """Return where a copy's bytes go.

    Raises:
        CapabilityError: It is not from RAM to the VRAM of the one device.
    """
    if command.src.tier is not Tier.RAM:
        raise CapabilityError(
            f"the {driver} driver copies experts from RAM, not part {command.part} "
            f"of expert {command.expert} from {command.src.tier.name}"
        )
    if command.dst.tier is not Tier.VRAM or command.dst.device != 0:
        raise CapabilityError(
            f"the {driver} driver copies to the VRAM of device 0, not to {command.dst}"
        )
    return fixed_offset(driver, command.dst)


def run_offsets(
    driver: str, command: Run, offsets: Mapping[int, int], first: int = 0
) -> Sequence[int]:
    """Return where the part of each expert of a run lies; nothing for a run on the CPU.

    Args:
        driver: Its name.
        command: The run.
        offsets: Where each expert's part lies, or will when its copy ends.
        first: What the part's number of an expert is counted from.

    Raises:
        CapabilityError: It is on another device.
        ProtocolError: An expert was never given room.
    """
    if command.device.number != 0:
        raise CapabilityError(
            f"the {driver} driver runs experts on device 0, not on {command.device.kind} "
            f"{command.device.number}"
        )
    if command.device.kind == "cpu":
        return ()
    try:
        return [offsets[first + expert] for expert in command.experts]
    except KeyError as error:
        raise ProtocolError(
            f"run {command.n} names expert {error.args[0] - first}, which never had room"
        ) from None
