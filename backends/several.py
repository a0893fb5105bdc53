"""What drivers of several GPUs have in common."""

from collections.abc import Sequence

from moesim.simulator.controller import Controller
from moesim.simulator.gpus.residency import GpusResidency


def rooms_of(controller: Controller, budget_bytes: int) -> Sequence[int]:
    """Return the room for experts on each GPU.

    Args:
        controller: Who knows where experts live.
        budget_bytes: Room on all of them together.
    """
    residency = controller.residency
    return residency.rooms_G if isinstance(residency, GpusResidency) else (budget_bytes,)
