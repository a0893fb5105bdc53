"""The default driver: carries out a controller's commands in virtual time, by arithmetic alone.

The host is the only agent and every end is known before it comes, so that nothing has to be
scheduled: time is a number that grows.
"""

from moesim.simulator.engines.host import Host

__all__ = ["ClockEngine"]


class ClockEngine(Host):
    """One run on a clock that is a plain integer; see `Host`."""

    def _pass(self, ns: int) -> None:
        self.now_ns += ns
