"""A hardware profile: what one machine can do, each figure with its evidence.

Written in human units, held in bytes, nanoseconds, bytes per second, FLOP per second and parts per
million. What the serving software adds on top is a runtime profile (`runtime_schema`).
"""

from typing import Any, Self

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from moesim.hardware_profiles import units
from moesim.hardware_profiles.errors import ProfileError
from moesim.hardware_profiles.figures import (
    Bytes,
    BytesPerSecond,
    Count,
    Efficiency,
    Figure,
    FlopPerSecond,
    ProfileFile,
    Share,
    Strict,
)
from moesim.hardware_profiles.link import Link, Route

_WHOLE_PPM = 1_000_000


class Gpu(Strict):
    """One GPU of the machine.

    Attributes:
        name: As the driver calls it.
        vram: What the driver reports.
        vram_usable: The share left for weights, KV cache and workspace once the driver context
            and the allocator's losses are gone.
        memory_bandwidth: Peak of the device memory.
        bf16: Dense peak of the tensor cores with FP32 accumulation; never the sparse figure.
        fp8: The same; absent where the GPU has no FP8 units.
        int8: The same for 8-bit integers.
        memory_efficiency: Share of `memory_bandwidth` that a good memory-bound kernel reaches.
        compute_efficiency: Share of the peak that a good compute-bound kernel reaches.
        slow_down_while_copying: By how much kernels are longer while copies run.
    """

    name: str
    vram: Figure[Bytes]
    vram_usable: Figure[Efficiency]
    memory_bandwidth: Figure[BytesPerSecond]
    bf16: Figure[FlopPerSecond]
    fp8: Figure[FlopPerSecond] | None = None
    int8: Figure[FlopPerSecond] | None = None
    memory_efficiency: Figure[Efficiency]
    compute_efficiency: Figure[Efficiency]
    slow_down_while_copying: Figure[Share]


class Host(Strict):
    """CPU and RAM.

    Attributes:
        cpu: Its name.
        cores: Physical cores, or virtual ones of a rented machine.
        ram: What is there.
        dram_bandwidth: What a stream of reads reaches, not the modules' peak.
        expert_bandwidth: Rate at which all cores together read expert weights in a product of few
            tokens.
        expert_bandwidth_while_copying: The same while copies to the GPU run: they share the DRAM.
        expert_flops: Rate of the product when it is bound by compute (many tokens).
    """

    cpu: str
    cores: Count
    ram: Figure[Bytes]
    dram_bandwidth: Figure[BytesPerSecond]
    expert_bandwidth: Figure[BytesPerSecond]
    expert_bandwidth_while_copying: Figure[BytesPerSecond]
    expert_flops: Figure[FlopPerSecond]


class Fingerprint(Strict):
    """The machine that was measured: a calibration holds for it alone.

    Attributes:
        host: Tells this GPU and this start of its host from others of the same parts; a hash, that
            names neither. None where it was measured before there was one.
    """

    gpu: str
    driver: str
    cpu: str
    pcie: str
    host: str | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = write(self)
        return {name: text for name, text in tree.items() if text is not None}


class HardwareProfile(ProfileFile):
    """What one machine can do.

    Attributes:
        gpus: How many GPUs like `gpu` it has, each with a link like `link`.
        nvme: From disk to RAM, where the disk serves as a third tier.
        fingerprint: The machine that was measured.
    """

    gpus: Count = 1
    gpu: Gpu
    link: Link
    host: Host
    nvme: Route | None = None
    fingerprint: Fingerprint | None = None

    @property
    def vram_bytes(self) -> int:
        """VRAM of one GPU."""
        return self.gpu.vram.value

    @property
    def vram_usable_bytes(self) -> int:
        """VRAM of one GPU that weights, KV cache and workspace may fill."""
        return self.gpu.vram.value * self.gpu.vram_usable.value // _WHOLE_PPM

    @property
    def ram_bytes(self) -> int:
        """RAM of the host."""
        return self.host.ram.value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        """Refuse a machine that cannot be."""
        limit = self.link.pcie.value.bytes_per_s
        for name in ("h2d", "d2h", "pageable"):
            fastest = max(point.bytes_per_s for point in getattr(self.link, name).bandwidth.value)
            if fastest > limit:
                raise ProfileError(
                    f"link.{name}.bandwidth: {units.format_bytes_per_s(fastest)} is more than "
                    f"PCIe {self.link.pcie.value.generation} x{self.link.pcie.value.width} "
                    f"carries ({units.format_bytes_per_s(limit)}); correct it or link.pcie"
                )
        host = self.host
        if host.expert_bandwidth_while_copying.value > host.expert_bandwidth.value:
            raise ProfileError(
                "host.expert_bandwidth_while_copying: expected at most host.expert_bandwidth "
                f"({units.format_bytes_per_s(host.expert_bandwidth.value)}), got "
                f"{units.format_bytes_per_s(host.expert_bandwidth_while_copying.value)}"
            )
        for pair in self.link.peer.pairs if self.link.peer else ():
            if len(set(pair)) != len(pair) or not all(0 <= gpu < self.gpus for gpu in pair):
                raise ProfileError(
                    f"link.peer.pairs: expected two different GPUs of 0 to {self.gpus - 1}, "
                    f"got {list(pair)}"
                )
        for name, part in self.link.shared.items():
            gpus = part.gpus
            if len(set(gpus)) != len(gpus) or not all(0 <= gpu < self.gpus for gpu in gpus):
                raise ProfileError(
                    f"link.shared.{name}.gpus: expected different GPUs of 0 to {self.gpus - 1}, "
                    f"got {list(gpus)}"
                )
        return self


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a hardware profile, for editors that complete YAML."""
    return HardwareProfile.model_json_schema(by_alias=True)
