"""How bytes reach a GPU: the link's connection, its routes, what each copy takes."""

import re
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, Field, WithJsonSchema

from moesim.hardware_profiles import units
from moesim.hardware_profiles.errors import ProfileError
from moesim.hardware_profiles.figures import BytesPerSecond, Figure, Nanoseconds, Strict

# Payload of one lane and direction, after line coding (8b/10b up to 2.0, 128b/130b from 3.0).
_LANE_BYTES_PER_S = {
    "1.0": 250_000_000,
    "2.0": 500_000_000,
    "3.0": 984_615_384,
    "4.0": 1_969_230_769,
    "5.0": 3_938_461_538,
    "6.0": 7_563_636_363,
}
_SECOND_NS = 10**9
_WIDTHS = (1, 2, 4, 8, 16)


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
    for (size, rate), (next_size, next_rate) in pairwise(points):
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


class Route(Strict):
    """One way of copying: a copy takes latency + bytes / bandwidth.

    Attributes:
        latency: What each copy costs beyond its bytes when copies follow one another.
        bandwidth: One quantity, or a mapping from copy size to bandwidth (time is interpolated
            linearly between sizes).
    """

    latency: Figure[Nanoseconds]
    bandwidth: Figure[Bandwidth]

    def time_ns(self, nbytes: Fraction) -> Fraction:
        """Return how long a copy of `nbytes` takes, exactly."""
        points = self.bandwidth.value
        after = next((i for i, point in enumerate(points) if point.size_bytes >= nbytes), None)
        if not after:
            rate = points[-1 if after is None else 0].bytes_per_s
            return self.latency.value + nbytes * _SECOND_NS / rate
        (left, left_rate), (right, right_rate) = points[after - 1], points[after]
        left_ns = Fraction(left * _SECOND_NS, left_rate)
        right_ns = Fraction(right * _SECOND_NS, right_rate)
        between = (nbytes - left) / (right - left)
        return self.latency.value + left_ns + (right_ns - left_ns) * between


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


class Shared(Strict):
    """What the links of some GPUs cross together, such as a PCIe switch with one link upwards.

    One that all GPUs cross says what the host gives them together; without such a one that is
    ``host.dram_bandwidth``.

    Attributes:
        gpus: Whose links, by number.
        h2d: What they carry together to these GPUs; while fewer ask for less, nobody waits.
        d2h: The same from these GPUs; without it nobody waits.
    """

    gpus: tuple[int, ...]
    h2d: Figure[BytesPerSecond]
    d2h: Figure[BytesPerSecond] | None = None


class Link(Strict):
    """How bytes reach a GPU.

    Attributes:
        pcie: Generation and width, such as ``4.0 x16``.
        h2d: To the GPU from pinned memory.
        d2h: From the GPU to pinned memory.
        pageable: To the GPU from memory that is not pinned.
        first_copy: What a copy to the GPU costs more after a pause.
        peer: Between GPUs, where they are joined.
        peer_pcie: Between any other two GPUs, where the driver lets them copy over PCIe; without
            it such copies go through the host.
        shared: What the links of several GPUs share, by name.
    """

    pcie: Figure[PcieConnection]
    h2d: Route
    d2h: Route
    pageable: Route
    first_copy: FirstCopy
    peer: Peer | None = None
    peer_pcie: Route | None = None
    shared: dict[str, Shared] = Field(default_factory=dict)
