"""The compiled driver: built-in policies and machine as loops over arrays, under numba.

For sweeps and long traces: equal to the clock in every count and time, and many times as
fast. It takes one request at a time and the policies of ``compiled/acceptance.py``; everything else
it refuses by name. Nothing here imports numba before a run.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from moesim.simulator.controller import Controller
from moesim.simulator.engines.compiled.acceptance import check_installed, check_policies
from moesim.simulator.errors import CapabilityError
from moesim.simulator.ledger import Timings
from moesim.simulator.long_traces import is_long
from moesim.simulator.workload.foresight import RecordedFuture

if TYPE_CHECKING:
    from moesim.simulator.runs import Prepared

__all__ = ["replay_compiled"]


def replay_compiled(
    run: "Prepared",
    on_step: Callable[[int], None] | None = None,
    kept: Sequence[str] = (),
) -> tuple[Controller, Timings]:
    """Serve a run; return a controller that has decided nothing but holds the counts, and times.

    Args:
        run: The run.
        on_step: Called after every few thousand steps with the number of tokens processed.
        kept: What the run is to keep beside figures: none of it can be had here.

    Raises:
        UnavailableError: numba is not installed.
        CapabilityError: The engine has no such policy, or not with these options.
    """
    check_installed()
    if kept:
        raise CapabilityError(f"engine compiled keeps no {kept[0]}; use --engine clock")
    if run.served is not None:
        raise CapabilityError(
            "engine compiled serves recorded requests one after another; with --arrivals use "
            "--engine clock"
        )
    if run.tiers is not None:
        raise CapabilityError(
            "engine compiled copies all experts from RAM; where some lie on NVMe or in another "
            "GPU's VRAM use --engine clock"
        )
    if run.gpus is not None:
        raise CapabilityError(
            f"engine compiled knows one GPU; with --gpus {run.gpus.gpus} use --engine clock"
        )
    if run.spec.shared_dram:
        raise CapabilityError(
            "engine compiled gives each the DRAM to itself; with --shared-dram use --engine clock"
        )
    check_policies(run.policies)
    from moesim.simulator.engines.compiled.running import replay  # noqa: PLC0415  numba takes 0.4 s

    spec = run.spec
    controller = run.controller(future=RecordedFuture(()))
    if is_long(spec.trace):
        from moesim.simulator.engines.compiled.streaming import check_streamed, stream  # noqa: PLC0415

        check_streamed(run)
        return controller, stream(run, controller, on_step)
    return controller, replay(run, controller, on_step)
