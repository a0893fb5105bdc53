"""Figures with their evidence, collected section by section as a profile wants them.

Every figure names a source; a source says which probes it rests on, how many samples they had, how
far they spread and how well the fit meets the points that it has not seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from moesim.backends.calibration.fitting import Check, mean_error
from moesim.backends.calibration.sampling import Samples, Summary, summarise

_LEAST_PPM = 1_000
_WHOLE_PPM = 1_000_000
_MB = 1e6
_GIGA = 1e9

Figure = list[Any]
"""``[value, name of a source]``, as a profile's YAML has it."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What was run, when, and on which driver."""

    command: str
    date: str
    driver: str


@dataclass(slots=True)
class Sheet:
    """Sources and checks of one profile file.

    Attributes:
        samples: By name of the probe.
        provenance: Stands in each source.
        sources: By name, as the YAML has them.
        checks: The points held out, of all sources.
    """

    samples: Samples
    provenance: Provenance
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def summary(self, probe: str) -> Summary:
        """Return what a probe's samples say."""
        return summarise(self.samples[probe])

    def median(self, probe: str) -> float:
        """Return the median of a probe's samples."""
        return self.summary(probe).median

    def source(
        self, name: str, text: str, probes: Sequence[str], checks: Sequence[Check] = ()
    ) -> str:
        """Add a measured source and return its name.

        Args:
            name: What figures call it.
            text: What was measured, and how.
            probes: Whose samples it rests on; the source's spread is the median of theirs.
            checks: Points that its fit has not seen; the band is their mean error or the spread,
                whichever is wider.
        """
        summaries = [self.summary(probe) for probe in probes]
        spread = summarise([summary.spread for summary in summaries]).median
        if checks:
            text += f"; {len(checks)} points not fitted are met within {mean_error(checks):.1%}"
            text += f" on average, {max(abs(check.error) for check in checks):.1%} at worst"
        self.sources[name] = {
            "evidence": "measured",
            "source": text,
            "band": _ppm(max(spread, mean_error(checks)), least_ppm=_LEAST_PPM),
            "measured": {
                "command": self.provenance.command,
                "date": self.provenance.date,
                "driver": self.provenance.driver,
                "samples": str(sum(summary.samples for summary in summaries)),
                "spread": _ppm(spread),
            },
        }
        self.checks.extend(checks)
        return name

    def read_off(self, name: str, text: str) -> str:
        """Add a source that was asked once and does not vary: a size that the system reports."""
        self.sources[name] = {
            "evidence": "measured",
            "source": text,
            "measured": {
                "command": self.provenance.command,
                "date": self.provenance.date,
                "driver": self.provenance.driver,
                "samples": "1",
                "spread": "0ppm",
            },
        }
        return name

    def estimate(self, name: str, text: str, band: str) -> str:
        """Add a source for what could not be measured here and return its name."""
        self.sources[name] = {"evidence": "estimated", "source": text, "band": band}
        return name


def ns(time_ns: float) -> str:
    """Return a time as a profile writes it.

    >>> ns(2913.4)
    '2.913us'
    """
    return f"{max(0.0, time_ns) / 1000:.3f}us"


def bytes_per_s(rate: float) -> str:
    """Return a bandwidth as a profile writes it: GB/s, or MB/s below 1."""
    return f"{rate / _GIGA:.3f} GB/s" if rate >= _GIGA else f"{max(rate, _MB) / _MB:.3f} MB/s"


def flop_per_s(rate: float) -> str:
    """Return a compute rate as a profile writes it."""
    return f"{max(rate, _MB) / _GIGA:.3f} GFLOP/s"


def share(value: float) -> str:
    """Return a share of 0 to 1 as a profile writes it."""
    return _ppm(value)


def _ppm(value: float, *, least_ppm: int = 0) -> str:
    return f"{min(_WHOLE_PPM, max(least_ppm, round(value * _WHOLE_PPM)))}ppm"
