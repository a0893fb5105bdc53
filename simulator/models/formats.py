"""How weights are stored: bits, groups and scales, hence bytes.

Quantised checkpoints leave embeddings, LM head, router, norms and biases at 16 bits. What they
quantise falls in two kinds: the routed experts, and the other large matrices (attention, shared
experts, dense layers).
"""

import re
from dataclasses import dataclass

from moesim.hardware_profiles import ProfileError

_MIN_DENSE_BITS = 4
_INT = re.compile(r"int([2348])(?:-g(\d+))?")


@dataclass(frozen=True, slots=True)
class Storage:
    """One way to store a matrix.

    Attributes:
        bits: Of each weight.
        group: Weights along a row that share a scale; None for a scale per tensor, not counted.
        scale_bytes: Of each scale.
    """

    bits: int
    group: int | None = None
    scale_bytes: int = 0

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of a matrix; groups lie along its rows, the last may be short.

        >>> Storage(4, group=32, scale_bytes=1).matrix_bytes(2, 64)
        68
        """
        scales = 0 if self.group is None else rows * -(-columns // self.group)
        return -(-rows * columns * self.bits // 8) + scales * self.scale_bytes


@dataclass(frozen=True, slots=True)
class Format:
    """A named way to store a model.

    Attributes:
        expert: The routed experts.
        dense: Attention, shared experts and dense layers.
    """

    name: str
    expert: Storage
    dense: Storage


_FLOAT = {
    "bf16": Format("bf16", Storage(16), Storage(16)),
    "fp8": Format("fp8", Storage(8), Storage(8)),
    "mxfp4": Format("mxfp4", Storage(4, group=32, scale_bytes=1), Storage(16)),
}


def weight_format(name: str) -> Format:
    """Return a format by name: bf16, fp8, mxfp4, int8, int4, int3, int2, or int4-g64 and the like.

    Integer formats have one 16-bit scale per group, of 128 weights unless the name says otherwise.
    Below 4 bits only the experts are that narrow, the rest has 4.

    Raises:
        ProfileError: If there is no such format.

    >>> weight_format("int2-g16").dense
    Storage(bits=4, group=16, scale_bytes=2)
    """
    if name in _FLOAT:
        return _FLOAT[name]
    match = _INT.fullmatch(name)
    if match is None or int(match[2] or 1) == 0:
        raise ProfileError(
            f"no weight format {name!r}; there are {sorted(_FLOAT)}, and int8, int4, int3, int2 "
            "with a group size if it is not 128, as in int4-g64"
        )
    bits, group = int(match[1]), int(match[2] or 128)
    return Format(
        name,
        Storage(bits, group, scale_bytes=2),
        Storage(max(bits, _MIN_DENSE_BITS), group, scale_bytes=2),
    )
