"""What a calibration asks of the software that runs on a device: its kernels and its host costs."""

from typing import Any, Protocol

from moesim.backends.calibration.sampling import Probe
from moesim.backends.calibration.sheet import Sheet
from moesim.backends.calibration.works import Work


class Software(Protocol):
    """The software under measurement.

    Attributes:
        words: What its kernels are.
        kernel: One of them as it is launched, for what follows a pause.
    """

    words: str
    kernel: Work

    def probes(self) -> list[Probe]:
        """Return all of its probes."""
        ...

    def gpu(self, sheet: Sheet) -> dict[str, Any]:
        """Return the rates of the profile's section ``gpu``."""
        ...

    def sections(self, sheet: Sheet) -> dict[str, Any]:
        """Return the runtime's sections ``launch``, ``wait``, ``copying`` and ``kernels``."""
        ...

    def cold_ns(self, sheet: Sheet) -> float:
        """Return how much longer a decision takes in a run than in a row; 0 if not measured."""
        ...

    def complete(self, machine: dict[str, Any], runtime: dict[str, Any], sheet: Sheet) -> None:
        """Fill in, in place, what only whole tokens tell, now that all else is known."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...
