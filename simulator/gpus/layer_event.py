"""One event on several GPUs: schedules plan for a GPU, and each expert runs on its home.

All else is as on one: a layer's runs have ended, on whichever GPU, when the next router has run,
since it is fed by their results.
"""

from typing import cast

from moesim.simulator.control.layer_event import LayerEvents
from moesim.simulator.gpus.residency import GpusResidency
from moesim.simulator.policies.base import Demand, Group
from moesim.simulator.terms import Device


class GpusEvents(LayerEvents):
    """Serves the demand of one layer of one step after another on several GPUs."""

    def _run_on_gpu(self, group: Group, demand: Demand, *, has_waves: bool) -> None:
        """Hand over the runs of those that have room and have not run, GPU by GPU."""
        residency = cast("GpusResidency", self.residency)
        for gpu, experts in enumerate(residency.by_home(group.experts)):
            if experts:
                mine = Group(Device("gpu", gpu), experts, group.each)
                super()._run_on_gpu(mine, demand, has_waves=has_waves)
