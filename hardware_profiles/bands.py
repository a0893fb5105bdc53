"""How far a predicted time may be off, from the bands of the figures that went into it.

A time is a sum of parts. A part is a product or quotient of figures whose errors are independent,
so their relative bands add in quadrature; the errors of different parts need not be independent, so
their bands add by weight. That is a worst case for the sum and a fair one for each part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from moesim.hardware_profiles.figures import STRENGTH, Figure, Kind, weakest

_PPM = 1_000_000


@dataclass(frozen=True, slots=True)
class Part:
    """A share of a time and the figures it is the product of.

    Attributes:
        time_ns: Its weight: how long it is in a typical case.
        figures: By dotted key.
    """

    time_ns: float
    figures: Mapping[str, Figure[Any]]

    @property
    def band(self) -> float:
        """Relative band of the product."""
        return sqrt(sum((figure.band_ppm / _PPM) ** 2 for figure in self.figures.values()))


@dataclass(frozen=True, slots=True)
class Term:
    """One kind of time (copies, dense kernels, host work), as the sum of its parts.

    Attributes:
        parts: Empty where the time is exact.
        least_band: The band cannot be less; for what no figure covers.
    """

    parts: Sequence[Part]
    least_band: float = 0.0

    @property
    def band(self) -> float:
        """Relative band of the sum."""
        total_ns = sum(part.time_ns for part in self.parts)
        if total_ns == 0:
            return self.least_band
        weighted = sum(part.time_ns * part.band for part in self.parts) / total_ns
        return max(self.least_band, weighted)

    @property
    def evidence(self) -> Kind:
        """The weakest evidence among the figures; parts that take no time do not count."""
        kinds = [
            figure.evidence
            for part in self.parts
            if part.time_ns > 0
            for figure in part.figures.values()
        ]
        return "estimated" if self.least_band else weakest([*kinds, STRENGTH[-1]])

    def explain(self) -> str:
        """Return the band and the figure that contributes most to it."""
        total_ns = sum(part.time_ns for part in self.parts)
        shares = [
            (part.time_ns / total_ns * figure.band_ppm / _PPM, key, figure)
            for part in self.parts
            if part.time_ns > 0
            for key, figure in part.figures.items()
        ]
        if not shares:
            return f"±{self.band:.0%}"
        _, key, figure = max(shares, key=lambda share: share[0])
        return f"±{self.band:.0%} {self.evidence}, most of it {key} ({figure.source})"


class Terms(dict[str, Term]):
    """How sure each kind of time is, by name: copy, dense, experts, head, host, cpu."""

    @property
    def evidence(self) -> Kind:
        """The weakest evidence among all figures in use."""
        return weakest([term.evidence for term in self.values()])

    @property
    def band(self) -> float:
        """The widest relative band of all terms: it holds whatever a run is bound by."""
        return max(term.band for term in self.values())

    def evidence_for(self, busy_ns: Mapping[str, int]) -> Kind:
        """Return the weakest evidence behind a run; of all terms if none was busy.

        Args:
            busy_ns: Busy time by name of the term; one without busy time does not count.
        """
        used = [self[name] for name, share_ns in busy_ns.items() if share_ns > 0]
        return weakest([term.evidence for term in used or self.values()])

    def band_for(self, busy_ns: Mapping[str, int]) -> float:
        """Return the relative band of a run: the terms', weighted by busy time.

        The widest of all terms if none was busy.

        Args:
            busy_ns: Busy time by name of the term; one without busy time does not count.
        """
        used = {name: share_ns for name, share_ns in busy_ns.items() if share_ns > 0}
        if not used:
            return self.band
        weighted = sum(self[name].band * share_ns for name, share_ns in used.items())
        return weighted / sum(used.values())
