"""A hardware profile: what one machine can do, each figure with its evidence.

Written in human units, held in bytes, nanoseconds, bytes per second, FLOP per second and parts per
million. What the serving software adds on top is a runtime profile (`runtime_schema`).
"""

import re
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from moesim.hardware_profiles import units
from moesim.hardware_profiles.errors import ProfileError
from moesim.hardware_profiles.figures import (
    Bytes,
    BytesPerSecond,
    Count,
    Efficiency,
    Figure,
    FlopPerSecond,
    Nanoseconds,
    ProfileFile,
    Share,
    Strict,
)

# Payload of one lane and direction, after line coding (8b/10b up to 2.0, 128b/130b from 3.0).
_LANE_BYTES_PER_S = {
    "1.0": 250_000_000,
    "2.0": 500_000_000,
    "3.0": 984_615_384,
    "4.0": 1_969_230_769,
    "5.0": 3_938_461_538,
    "6.0": 7_563_636_363,
}
_WIDTHS = (1, 2, 4, 8, 16)
_ONE = 1_000_000


class Pcie(NamedTuple):
    """Generation and width of a PCIe connection.

    >>> Pcie("4.0", 16).bytes_per_s
    31507692304
    """

    generation: str
    width: int

    @property
    def bytes_per_s(self) -> int:
        """What the lanes carry one way, packet headers included: no copy is faster."""
        return _LANE_BYTES_PER_S[self.generation] * self.width


def _parse_pcie(text: object) -> Pcie:
    """Return the connection written as ``4.0 x16``."""
    if isinstance(text, Pcie):
        return text
    match = re.fullmatch(r"(?:gen)?\s*(\d)(?:\.0)?\s*x\s*(\d+)", str(text).strip().lower())
    if match is not None:
        connection = Pcie(f"{match[1]}.0", int(match[2]))
        if connection.generation in _LANE_BYTES_PER_S and connection.width in _WIDTHS:
            return connection
    raise ProfileError(
        f"expected generation and width such as '4.0 x16', got {text!r} "
        f"(generations {', '.join(_LANE_BYTES_PER_S)}; widths {', '.join(map(str, _WIDTHS))})"
    )


class SizePoint(NamedTuple):
    """The bandwidth of copies of one size."""

    size_bytes: int
    bytes_per_s: int


def _parse_bandwidth(value: object) -> tuple[SizePoint, ...]:
    """Return a bandwidth as points by size; one quantity is one point that holds for all."""
    if isinstance(value, tuple):
        return value
    if not isinstance(value, dict):
        rate = units.parse_bytes_per_s(value)
        if rate == 0:
            raise ProfileError(f"expected a bandwidth above 0, got {value!r}")
        return (SizePoint(0, rate),)
    points = tuple(
        SizePoint(units.parse_bytes(size), units.parse_bytes_per_s(rate))
        for size, rate in value.items()
    )
    if not points or any(size <= 0 or rate <= 0 for size, rate in points):
        raise ProfileError("a bandwidth by size needs sizes and bandwidths above 0")
    for (size, rate), (next_size, next_rate) in zip(points, points[1:], strict=False):
        if next_size <= size:
            raise ProfileError(f"sizes must grow; {next_size} bytes comes after {size}")
        if next_size * rate < size * next_rate:
            raise ProfileError(
                f"{next_size} bytes at {units.format_bytes_per_s(next_rate)} would arrive before "
                f"{size} bytes at {units.format_bytes_per_s(rate)}; correct one of them"
            )
    return points


_SpeedSchema = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string", "examples": ["25.0 GB/s"]},
            {"type": "object", "additionalProperties": {"type": "string"}},
        ]
    }
)
_PcieSchema = WithJsonSchema({"type": "string", "examples": ["4.0 x16"]})
Bandwidth = Annotated[tuple[SizePoint, ...], BeforeValidator(_parse_bandwidth), _SpeedSchema]
PcieConnection = Annotated[Pcie, BeforeValidator(_parse_pcie), _PcieSchema]


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


class Route(Strict):
    """One way of copying: a copy takes latency + bytes / bandwidth.

    Attributes:
        latency: What each copy costs beyond its bytes when copies follow one another.
        bandwidth: One quantity, or a mapping from copy size to bandwidth (time is interpolated
            linearly between sizes).
    """

    latency: Figure[Nanoseconds]
    bandwidth: Figure[Bandwidth]


class FirstCopy(Strict):
    """The first copy after a pause is longer: the link has gone to a power-saving state.

    Attributes:
        extra: How much longer.
        after: The shortest pause that brings it about.
    """

    extra: Figure[Nanoseconds]
    after: Figure[Nanoseconds]


class Peer(Route):
    """Copies between GPUs of the machine.

    Attributes:
        kind: nvlink or pcie.
        pairs: Which GPUs the link joins, such as ``[[0, 1], [2, 3]]``.
    """

    kind: Annotated[str, Field(pattern="^(nvlink|pcie)$")]
    pairs: tuple[tuple[int, int], ...]


class Link(Strict):
    """How bytes reach a GPU.

    Attributes:
        pcie: Generation and width, such as ``4.0 x16``.
        h2d: To the GPU from pinned memory.
        d2h: From the GPU to pinned memory.
        pageable: To the GPU from memory that is not pinned.
        first_copy: What a copy to the GPU costs more after a pause.
        peer: Between GPUs, where they are joined.
    """

    pcie: Figure[PcieConnection]
    h2d: Route
    d2h: Route
    pageable: Route
    first_copy: FirstCopy
    peer: Peer | None = None


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
    """The machine that was measured: a calibration holds for it alone."""

    gpu: str
    driver: str
    cpu: str
    pcie: str


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
        return self.gpu.vram.value * self.gpu.vram_usable.value // _ONE

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
        return self


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a hardware profile, for editors that complete YAML."""
    return HardwareProfile.model_json_schema(by_alias=True)
