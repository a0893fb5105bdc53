"""Kernels on the device: rates, attention with dense part, experts, head, and all beside copies.

A kernel's time is fitted as the cost model writes it: a multiple of the roofline floor at the
measured rates, plus what does not shrink with the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from moesim.backends.calibration import sheet as write
from moesim.backends.calibration import works
from moesim.backends.calibration.bench import Bench
from moesim.backends.calibration.fitting import Check, fit_line
from moesim.backends.calibration.sampling import Probe
from moesim.backends.calibration.scale import DensePoint, ExpertPoint
from moesim.backends.calibration.sheet import Sheet

_SECOND_NS = 1e9
_FLOPS_PER_PAIR = 4
_HEAD = "head"
_READ = "read of the device's memory"
_PRODUCT = "large product"


@dataclass(frozen=True, slots=True)
class Captured:
    """Works as a backend launches them, and how many rounds of a rotation one launch makes."""

    work: works.Work
    rounds: int


class Kernels:
    """The kernels of one device, ready to be timed.

    Args:
        bench: The device.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        scale = bench.scale
        make = works.Weights(bench.place, bench.dtype, scale.cold_bytes)
        self._held: dict[str, Captured] = {}
        for dense in (*scale.dense, *scale.held_dense):
            self._hold(dense.name, works.dense_works(dense, make))
        for run in (*scale.experts, *scale.held_experts):
            self._hold(run.name, works.expert_works(run, make))
        self._hold(_HEAD, works.head_works(scale.head, make, bench.host_token()))
        self._hold(_READ, [works.read_work(scale.read_bytes, make)])
        self._hold(_PRODUCT, [works.product_work(scale.product_width, make)])
        # What the host launches in one go: one layer, one run, not a whole rotation.
        self.layer = bench.captured(works.dense_works(scale.dense[0], make)[:1])
        self.run = bench.captured(works.expert_works(scale.experts[1], make)[:1])
        self.run_of_one = bench.captured(works.expert_works(scale.experts[0], make)[:1])

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
            found.append(Probe(f"{name}, beside copies", partial(self._sample_beside, name)))
            found.append(Probe(f"{name}, not beside", partial(self._sample, name)))
        return found

    def _beside(self) -> tuple[str, str]:
        scale = self._bench.scale
        return scale.dense[1].name, scale.experts[1].name

    def gpu(self, sheet: Sheet) -> dict[str, Any]:
        """Return the rates of the profile's section ``gpu``."""
        rates = self._rates(sheet)
        read = sheet.source(
            "memory", f"one pass over {self._bench.scale.read_bytes} bytes", [_READ]
        )
        width = self._bench.scale.product_width
        product = sheet.source(
            "product", f"a square product of width {width}, {self._bench.kernels}", [_PRODUCT]
        )
        pairs = [(f"{name}, beside copies", f"{name}, not beside") for name in self._beside()]
        slow_down = max(
            0.0, sum(sheet.median(a) / sheet.median(b) - 1 for a, b in pairs) / len(pairs)
        )
        beside = sheet.source(
            "beside",
            f"{' and '.join(self._beside())}, with and without copies to the device beside",
            [name for pair in pairs for name in pair],
        )
        return {
            "memory_bandwidth": [write.bytes_per_s(rates.bytes_per_s), read],
            "bf16": [write.flop_per_s(rates.flop_per_s), product],
            "memory_efficiency": ["100%", read],
            "compute_efficiency": ["100%", product],
            "slow_down_while_copying": [write.share(min(1.0, slow_down)), beside],
        }

    def kernels(self, sheet: Sheet) -> dict[str, Any]:
        """Return the runtime's section ``kernels``."""
        scale, rates, size = self._bench.scale, self._rates(sheet), self._bench.dtype.itemsize
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
        how = f"{self._bench.kernels}, weights cold"
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

    def _rates(self, sheet: Sheet) -> "_Rates":
        scale = self._bench.scale
        return _Rates(
            scale.read_bytes * _SECOND_NS / sheet.median(_READ),
            2 * scale.product_width**3 * _SECOND_NS / sheet.median(_PRODUCT),
        )


@dataclass(frozen=True, slots=True)
class _Rates:
    bytes_per_s: float
    flop_per_s: float

    def reading_ns(self, read_bytes: float) -> float:
        return read_bytes * _SECOND_NS / self.bytes_per_s

    def floor_ns(self, read_bytes: float, flops: float) -> float:
        return max(self.reading_ns(read_bytes), flops * _SECOND_NS / self.flop_per_s)


def _dense_floor(point: DensePoint, rates: _Rates, itemsize: int) -> float:
    shape, positions = point.shape, point.batch * point.context
    weights = works.dense_bytes(shape, itemsize)
    flops = point.batch * 2 * weights / itemsize
    pair_flops = _FLOPS_PER_PAIR * shape.heads * shape.head_width
    return rates.floor_ns(weights, flops) + rates.floor_ns(
        positions * works.kv_bytes(shape, itemsize), positions * pair_flops
    )


def _expert_floor(point: ExpertPoint, rates: _Rates, itemsize: int) -> float:
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
