"""Plain torch kernels on a device: attention with dense part, experts, head, and beside copies.

A kernel's time is fitted as the cost model writes it: a multiple of the roofline floor at the
measured rates, plus what does not shrink with the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from moesim.backends.calibration import host, works
from moesim.backends.calibration import sheet as write
from moesim.backends.calibration.bench import Bench
from moesim.backends.calibration.fitting import Check, fit_line
from moesim.backends.calibration.rates import PRODUCT, READ, Rates, alone, beside, gpu_section
from moesim.backends.calibration.sampling import Probe
from moesim.backends.calibration.scale import DensePoint, ExpertPoint
from moesim.backends.calibration.sheet import Sheet

_FLOPS_PER_PAIR = 4
_HEAD = "head"


@dataclass(frozen=True, slots=True)
class Captured:
    """Works as a backend launches them, and how many rounds of a rotation one launch makes."""

    work: works.Work
    rounds: int


class Kernels:
    """The kernels of one device, ready to be timed.

    Args:
        bench: The device.
        host_probes: Of what the host pays; see `host`.
    """

    words = "torch operations in float32 on threads"

    def __init__(self, bench: Bench, host_probes: Sequence[Probe]) -> None:
        self._bench = bench
        self._host_probes = host_probes
        scale = bench.scale
        make = works.Weights(bench.place, bench.dtype, scale.cold_bytes)
        self._held: dict[str, Captured] = {}
        for dense in (*scale.dense, *scale.held_dense):
            self._hold(dense.name, works.dense_works(dense, make))
        for run in (*scale.experts, *scale.held_experts):
            self._hold(run.name, works.expert_works(run, make))
        self._hold(_HEAD, works.head_works(scale.head, make, bench.host_token()))
        self._hold(READ, [works.read_work(scale.read_bytes, make)])
        self._hold(PRODUCT, [works.product_work(scale.product_width, make)])
        # What the host launches in one go: one layer, not a whole rotation.
        self.kernel = bench.captured(works.dense_works(scale.dense[0], make)[:1])

    def _hold(self, name: str, found: Sequence[works.Work]) -> None:
        self._held[name] = Captured(self._bench.captured(found), len(found))

    def _sample(self, name: str) -> float:
        captured = self._held[name]
        return self._bench.kernel_ns(captured.work) / captured.rounds

    def _sample_beside(self, name: str) -> float:
        with self._bench.copies_beside():
            return self._sample(name)

    def probes(self) -> list[Probe]:
        """Return a probe for every kernel, and for some of them beside copies."""
        found = [Probe(name, partial(self._sample, name)) for name in self._held]
        for name in self._beside():
            found.append(Probe(beside(name), partial(self._sample_beside, name)))
            found.append(Probe(alone(name), partial(self._sample, name)))
        return [*found, *self._host_probes]

    def _beside(self) -> tuple[str, str]:
        scale = self._bench.scale
        return scale.dense[1].name, scale.experts[1].name

    def gpu(self, sheet: Sheet) -> dict[str, Any]:
        """Return the rates of the profile's section ``gpu``."""
        rates = Rates.of(sheet, self._bench.scale)
        return gpu_section(self._bench, sheet, rates, [READ], self.words, self._beside())

    def sections(self, sheet: Sheet) -> dict[str, Any]:
        """Return the runtime's sections on host and kernels."""
        return {
            "launch": host.launch(sheet, self._bench.scale.experts[1].experts),
            "wait": host.wait(sheet),
            "copying": host.copying(sheet),
            "kernels": self._kernels(sheet),
        }

    def cold_ns(self, sheet: Sheet) -> float:  # noqa: ARG002 - there is nothing to read off
        """Return 0: no token was served."""
        return 0.0

    def complete(self, machine: dict[str, Any], runtime: dict[str, Any], sheet: Sheet) -> None:
        """Fill in nothing: no token was served."""

    def close(self) -> None:
        """Hold nothing but tensors."""
        self._held.clear()

    def _kernels(self, sheet: Sheet) -> dict[str, Any]:
        """Return the runtime's section ``kernels``."""
        scale, size = self._bench.scale, self._bench.dtype.itemsize
        rates = Rates.of(sheet, scale)
        dense = _fit_points(
            sheet,
            {point.name: _dense_floor(point, rates, size) for point in scale.dense},
            {point.name: _dense_floor(point, rates, size) for point in scale.held_dense},
        )
        run = _fit_points(
            sheet,
            {point.name: _expert_floor(point, rates, size) for point in scale.experts},
            {point.name: _expert_floor(point, rates, size) for point in scale.held_experts},
        )
        how = f"{self.words}, weights cold"
        dense_source = sheet.source(
            "dense",
            f"attention and router of one layer, {how}",
            [point.name for point in scale.dense],
            dense.checks,
        )
        run_source = sheet.source(
            "experts",
            f"runs of experts, {how}",
            [point.name for point in scale.experts],
            run.checks,
        )
        head = sheet.source("head", f"norm, head, argmax, token to the host, {how}", [_HEAD])
        head_bytes = scale.head[0] * scale.head[1] * size
        head_fixed = sheet.median(_HEAD) - dense.multiple * rates.reading_ns(head_bytes)
        return {
            "dense_multiple": [f"{dense.multiple:.4f}", dense_source],
            "dense_fixed": [write.ns(dense.fixed_ns), dense_source],
            "expert_multiple": [f"{run.multiple:.4f}", run_source],
            "expert_fixed": [write.ns(run.fixed_ns), run_source],
            "head_fixed": [write.ns(head_fixed), head],
        }


def _dense_floor(point: DensePoint, rates: Rates, itemsize: int) -> float:
    shape, positions = point.shape, point.batch * point.context
    weights = works.dense_bytes(shape, itemsize)
    flops = point.batch * 2 * weights / itemsize
    pair_flops = _FLOPS_PER_PAIR * shape.heads * shape.head_width
    return rates.floor_ns(weights, flops) + rates.floor_ns(
        positions * works.kv_bytes(shape, itemsize), positions * pair_flops
    )


def _expert_floor(point: ExpertPoint, rates: Rates, itemsize: int) -> float:
    one = rates.floor_ns(
        works.expert_bytes(point.shape, itemsize), point.tokens * works.expert_flops(point.shape)
    )
    return point.experts * one


@dataclass(frozen=True, slots=True)
class _Fitted:
    multiple: float
    fixed_ns: float
    checks: list[Check]


def _fit_points(sheet: Sheet, floors: dict[str, float], held: dict[str, float]) -> _Fitted:
    measured = [sheet.median(name) for name in floors]
    multiple, fixed_ns = fit_line(list(floors.values()), measured, least_slope=1.0)
    checks = [
        Check(name, multiple * floor + fixed_ns, sheet.median(name)) for name, floor in held.items()
    ]
    return _Fitted(multiple, fixed_ns, checks)
