"""What the device can do at best: bytes read and products made per second, and loss beside copies.

All kernels' times are fitted as multiples of the roofline floor at these rates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from moesim.backends.calibration import sheet as write
from moesim.backends.calibration.bench import Bench
from moesim.backends.calibration.scale import Scale
from moesim.backends.calibration.sheet import Sheet

READ = "read of the device's memory"
PRODUCT = "large product"
_SECOND_NS = 1e9


@dataclass(frozen=True, slots=True)
class Rates:
    """The two rates of a roofline."""

    bytes_per_s: float
    flop_per_s: float

    @classmethod
    def of(cls, sheet: Sheet, scale: Scale) -> Self:
        """Return the rates that the samples say."""
        return cls(
            scale.read_bytes * _SECOND_NS / sheet.median(READ),
            2 * scale.product_width**3 * _SECOND_NS / sheet.median(PRODUCT),
        )

    def reading_ns(self, read_bytes: float) -> float:
        """Return how long so many bytes are read."""
        return read_bytes * _SECOND_NS / self.bytes_per_s

    def floor_ns(self, read_bytes: float, flops: float) -> float:
        """Return the longer of reading and multiplying."""
        return max(self.reading_ns(read_bytes), flops * _SECOND_NS / self.flop_per_s)


def beside(name: str) -> str:
    """Return what a kernel's probe beside copies is called."""
    return f"{name}, beside copies"


def alone(name: str) -> str:
    """Return what the probe that belongs to `beside` is called."""
    return f"{name}, not beside"


def slow_down(sheet: Sheet, names: Sequence[str]) -> float:
    """Return the share by which copies beside them make kernels longer.

    Args:
        sheet: The samples.
        names: The kernels that were timed beside copies and alone.
    """
    losses = [sheet.median(beside(name)) / sheet.median(alone(name)) - 1 for name in names]
    return min(1.0, max(0.0, sum(losses) / len(losses)))


def gpu_section(
    bench: Bench,
    sheet: Sheet,
    rates: Rates,
    readers: Sequence[str],
    kernels: str,
    names: Sequence[str],
) -> dict[str, Any]:
    """Return the rates of the profile's section ``gpu``.

    Args:
        bench: The device.
        sheet: Its samples; sources are added.
        rates: What they say.
        readers: The probes that the rate of reading rests on.
        kernels: What its kernels are, in words.
        names: Which of them were timed beside copies.
    """
    text = f"one pass over {bench.scale.read_bytes} bytes, or what more one large expert takes"
    read = sheet.source("memory", text, readers)
    width = bench.scale.product_width
    product = sheet.source("product", f"a square product of width {width}", [PRODUCT])
    source = sheet.source(
        "beside",
        f"{' and '.join(names)}, with and without copies to the device beside; {kernels}",
        [probe for name in names for probe in (beside(name), alone(name))],
    )
    return {
        "memory_bandwidth": [write.bytes_per_s(rates.bytes_per_s), read],
        "bf16": [write.flop_per_s(rates.flop_per_s), product],
        "memory_efficiency": ["100%", read],
        "compute_efficiency": ["100%", product],
        "slow_down_while_copying": [write.share(slow_down(sheet, names)), source],
    }
