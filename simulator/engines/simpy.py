"""The reference driver: carries out a controller's commands in virtual time, on SimPy.

The host sleeps on events of a SimPy environment, in which other agents may live beside it: what an
arithmetic clock cannot express belongs here. All that falls due up to the instant at which the host
wakes has happened before it does (departures before arrivals).
"""

from typing import Any

import simpy
from simpy.events import Timeout

from moesim.simulator.engines.host import Host

__all__ = ["SimpyEngine"]


class SimpyEngine(Host):
    """One run in a SimPy environment; see `Host`."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  those of Host
        super().__init__(*args, **options)
        self._env = simpy.Environment()

    def _pass(self, ns: int) -> None:
        awake = Timeout(self._env, ns)
        while not awake.processed:
            self._env.step()
        self.now_ns = int(self._env.now)
