"""Which sizes a calibration measures on each kind of device, and which it never fits."""

from dataclasses import dataclass
from typing import NamedTuple

_KIB = 1024
_MIB = 1024 * 1024


class DenseShape(NamedTuple):
    """Attention and router of one decoder layer."""

    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    experts: int


class DensePoint(NamedTuple):
    """One decode step of one layer: `batch` requests at a context of `context` tokens each."""

    shape: DenseShape
    context: int
    batch: int

    @property
    def name(self) -> str:
        """What its probe is called."""
        return f"dense {self.shape.hidden} wide, context {self.context}, batch {self.batch}"


class ExpertShape(NamedTuple):
    """Width of the residual stream and of the expert."""

    hidden: int
    width: int


class ExpertPoint(NamedTuple):
    """One run of `experts` experts that serve `tokens` tokens each."""

    shape: ExpertShape
    experts: int
    tokens: int

    @property
    def name(self) -> str:
        """What its probe is called, behind the device's name."""
        return (
            f"experts {self.experts} of {self.shape.hidden}x{self.shape.width}, {self.tokens} tok"
        )


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes for one kind of device; those called `held_*` are measured and never fitted.

    Points of plain torch kernels stand here; those of our graphs in ``graph_points.py``.

    Attributes:
        copy_bytes: Sizes of copies.
        long_copy_bytes: Of the copies that run beside kernels, and after a pause.
        pauses_s: How long everything idles before the probes that follow a pause; ascending.
        cold_bytes: Weights rotate over at least so many bytes, more than any cache holds.
        product_width: Of the square product that gives the compute rate.
        read_bytes: Of the read that gives the memory bandwidth.
        head: Hidden width and vocabulary.
        cpu_expert: The expert that the CPU computes.
        cpu_tokens: For how many tokens.
    """

    copy_bytes: tuple[int, ...]
    held_copy_bytes: tuple[int, ...]
    long_copy_bytes: int
    pauses_s: tuple[float, ...]
    cold_bytes: int
    product_width: int
    read_bytes: int
    cpu_expert: ExpertShape
    head: tuple[int, int] = (0, 0)
    dense: tuple[DensePoint, ...] = ()
    held_dense: tuple[DensePoint, ...] = ()
    experts: tuple[ExpertPoint, ...] = ()
    held_experts: tuple[ExpertPoint, ...] = ()
    cpu_tokens: tuple[int, ...] = (1, 2, 4, 16, 128)
    held_cpu_tokens: tuple[int, ...] = (8,)


_OLMOE = ExpertShape(2048, 1024)

CUDA = Scale(
    copy_bytes=tuple(size * _KIB for size in (16, 64, 256, 1024, 4096, 16384, 65536)),
    held_copy_bytes=tuple(size * _KIB for size in (128, 2048, 9216, 32768)),
    long_copy_bytes=16 * _MIB,
    pauses_s=(0.0003, 0.001, 0.01, 0.1, 1.0),
    cold_bytes=512 * _MIB,
    product_width=8192,
    read_bytes=1024 * _MIB,
    cpu_expert=_OLMOE,
)

_SMALL = DenseShape(512, 8, 4, 64, 32)
_MIDDLE = DenseShape(1024, 16, 8, 64, 8)
_SMALL_EXPERT = ExpertShape(512, 512)
_MIDDLE_EXPERT = ExpertShape(1024, 1024)

THREADS = Scale(
    copy_bytes=tuple(size * _KIB for size in (64, 256, 1024, 4096, 16384)),
    held_copy_bytes=tuple(size * _KIB for size in (512, 2048, 8192)),
    long_copy_bytes=4 * _MIB,
    pauses_s=(0.01, 0.1, 1.0),
    cold_bytes=96 * _MIB,
    product_width=768,
    read_bytes=64 * _MIB,
    head=(512, 8_192),
    dense=(
        DensePoint(_SMALL, 64, 1),
        DensePoint(_SMALL, 1024, 1),
        DensePoint(_SMALL, 256, 8),
        DensePoint(_MIDDLE, 64, 1),
        DensePoint(_MIDDLE, 1024, 1),
        DensePoint(_MIDDLE, 256, 8),
    ),
    held_dense=(DensePoint(_SMALL, 512, 1), DensePoint(_MIDDLE, 256, 4)),
    experts=(
        ExpertPoint(_SMALL_EXPERT, 1, 1),
        ExpertPoint(_SMALL_EXPERT, 4, 1),
        ExpertPoint(_SMALL_EXPERT, 4, 16),
        ExpertPoint(_MIDDLE_EXPERT, 1, 1),
        ExpertPoint(_MIDDLE_EXPERT, 4, 1),
        ExpertPoint(_MIDDLE_EXPERT, 4, 16),
    ),
    held_experts=(ExpertPoint(_SMALL_EXPERT, 2, 1), ExpertPoint(_MIDDLE_EXPERT, 2, 4)),
    cpu_expert=_MIDDLE_EXPERT,
)
