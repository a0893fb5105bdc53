"""Experts computed by the CPU: time against tokens, alone and beside copies, and the round trip."""

from functools import partial
from typing import Any

from moesim.backends.calibration import sheet as write
from moesim.backends.calibration import works
from moesim.backends.calibration.bench import Bench
from moesim.backends.calibration.fitting import Check
from moesim.backends.calibration.sampling import Probe, summarise
from moesim.backends.calibration.sheet import Sheet
from moesim.backends.calibration.worker import Worker

_SECOND_NS = 1e9
_FEW_TOKENS = 4


class CpuExperts:
    """One warm worker and more experts than the CPU's caches hold.

    Args:
        bench: The device beside; its element type and its copies.
        make: Makes tensors in host memory.
        cores: How many a product may use; the host loop needs one of its own.
    """

    def __init__(self, bench: Bench, make: works.Weights, cores: int) -> None:
        self._bench = bench
        self._shape = bench.scale.cpu_expert
        self._bytes = works.expert_bytes(self._shape, make.dtype.itemsize)
        self._experts = [
            works.expert_matrices(self._shape, make) for _ in range(make.rotation(self._bytes))
        ]
        self._inputs = {
            tokens: make.normal(tokens, self._shape.hidden)
            for tokens in (*bench.scale.cpu_tokens, *bench.scale.held_cpu_tokens)
        }
        self._next = 0
        self._cores = cores
        self._worker = Worker(cores)

    def probes(self) -> list[Probe]:
        """Return the probes of products, alone and beside copies, and of the round trip."""
        found = [
            Probe(_alone(tokens), partial(self._product_ns, tokens)) for tokens in self._inputs
        ]
        found += [
            Probe(_beside(tokens), partial(self._product_beside_ns, tokens))
            for tokens in self._few()
        ]
        hand_over = Probe("cpu hand over", lambda: self._worker.round_trip().hand_over_ns)
        notice = Probe("cpu notice", lambda: self._worker.round_trip().notice_ns)
        return [*found, hand_over, notice]

    def _few(self) -> list[int]:
        return [tokens for tokens in self._bench.scale.cpu_tokens if tokens <= _FEW_TOKENS]

    def _product_ns(self, tokens: int) -> float:
        gate_up, down = self._experts[self._next]
        self._next = (self._next + 1) % len(self._experts)
        inputs = self._inputs[tokens]
        trip = self._worker.round_trip(lambda: works.gated_product(inputs, gate_up, down))
        return float(trip.work_ns)

    def _product_beside_ns(self, tokens: int) -> float:
        with self._bench.copies_beside():
            return self._product_ns(tokens)

    def host(self, sheet: Sheet) -> dict[str, Any]:
        """Return the rates of the profile's section ``host``."""
        few, most = self._few(), max(self._bench.scale.cpu_tokens)
        alone_ns = summarise([sheet.median(_alone(tokens)) for tokens in few]).median
        beside_ns = summarise([sheet.median(_beside(tokens)) for tokens in few]).median
        rate = self._bytes * _SECOND_NS / alone_ns
        rate_beside = min(rate, self._bytes * _SECOND_NS / beside_ns)
        flops = works.expert_flops(self._shape)
        flop_rate = most * flops * _SECOND_NS / sheet.median(_alone(most))
        what = (
            f"an expert of {self._shape.hidden}x{self._shape.width} in "
            f"{str(self._bench.dtype).removeprefix('torch.')} on {self._cores} cores, cold, "
            f"{', '.join(map(str, few))} tokens"
        )
        checks = [
            Check(
                _alone(tokens),
                max(self._bytes * _SECOND_NS / rate, tokens * flops * _SECOND_NS / flop_rate),
                sheet.median(_alone(tokens)),
            )
            for tokens in self._bench.scale.held_cpu_tokens
        ]
        alone = sheet.source("cpu-experts", what, [_alone(tokens) for tokens in few], checks)
        beside = sheet.source(
            "cpu-experts-beside",
            f"{what}, beside copies to the device",
            [_beside(tokens) for tokens in few],
        )
        compute = sheet.source("cpu-compute", f"the same expert, {most} tokens", [_alone(most)])
        return {
            "expert_bandwidth": [write.bytes_per_s(rate), alone],
            "expert_bandwidth_while_copying": [write.bytes_per_s(rate_beside), beside],
            "expert_flops": [write.flop_per_s(flop_rate), compute],
        }

    def runtime(self, sheet: Sheet) -> dict[str, Any]:
        """Return the runtime's section ``cpu_experts``."""
        probes = ("cpu hand over", "cpu notice")
        source = sheet.source("round-trip", "a warm thread has nothing done", probes)
        return {
            "hand_over": [write.ns(sheet.median(probes[0])), source],
            "notice": [write.ns(sheet.median(probes[1])), source],
        }

    def close(self) -> None:
        """End the worker."""
        self._worker.close()


def _alone(tokens: int) -> str:
    return f"cpu expert, {tokens} tokens"


def _beside(tokens: int) -> str:
    return f"cpu expert, {tokens} tokens, beside copies"
