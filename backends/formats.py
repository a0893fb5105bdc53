"""How weights are written down: the formats that an expert may have, as bytes and back.

A format encodes vectors of the model's width D: row j of gate, row j of up and column j of down,
in every layout alike. So an expert has the same values wherever its vectors lie
(``backends/layouts.py``), and the kernels of ``drivers/cuda/kernels`` and `Format.decode` agree.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moesim.simulator.errors import CapabilityError

# I intermediate dimension, D width, C codes and G scales of a vector, E elements of a group,
# H bytes of a group.

GROUP = 128
"""Elements of a vector that share a scale in int4."""

FP8_MAX = 448.0
INT4_MAX = 7.0
INT4_ZERO = 8


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write a vector of D weights.

    Attributes:
        name: How a user calls it.
        codes: The dtype in which codes are stored.
        code_bits: Bits of one weight, its scale aside.
        scales: The dtype of scales, or None where codes are the weights themselves.
    """

    name: str
    codes: torch.dtype
    code_bits: int
    scales: torch.dtype | None = None

    def codes_of(self, width: int) -> int:
        """Return how many elements of ``codes`` hold a vector.

        Raises:
            CapabilityError: The width is no multiple of the group.
        """
        if self.code_bits == INT4.code_bits and width % GROUP:
            raise CapabilityError(
                f"format {self.name}: width {width} is no multiple of {GROUP}; use fp8 or bf16"
            )
        return width * self.code_bits // (8 * self.codes.itemsize)

    def scales_of(self, width: int) -> int:
        """Return how many scales a vector has."""
        if self.scales is None:
            return 0
        return width // GROUP if self.code_bits == INT4.code_bits else 1

    def encode(self, weights_ID: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return codes [I, C] and scales [I, G], rounded to nearest."""
        if self.scales is None:
            return weights_ID.to(self.codes), None
        if self.code_bits == INT4.code_bits:
            groups_IGE = weights_ID.float().reshape(len(weights_ID), -1, GROUP)
            scales_IG = _scales(groups_IGE, INT4_MAX).to(self.scales)
            ratio_IGE = groups_IGE / scales_IG.float().unsqueeze(-1)
            levels_IGE = ratio_IGE.round().clamp(-INT4_MAX, INT4_MAX).to(torch.int16) + INT4_ZERO
            low, high = levels_IGE.chunk(2, dim=-1)  # a byte holds elements e and e + GROUP / 2
            return (low | high << 4).to(torch.uint8).flatten(1), scales_IG
        scales_I1 = _scales(weights_ID.float(), FP8_MAX).to(self.scales)[:, None]
        ratio_ID = (weights_ID.float() / scales_I1).clamp(-FP8_MAX, FP8_MAX)
        return ratio_ID.to(self.codes), scales_I1

    def decode(self, codes_IC: Tensor, scales_IG: Tensor | None) -> Tensor:
        """Return the weights [I, D] that codes stand for, in float32."""
        if scales_IG is None:
            return codes_IC.float()
        if self.code_bits == INT4.code_bits:
            bytes_IGH = codes_IC.reshape(len(codes_IC), -1, GROUP // 2)
            levels_IGE = torch.cat([bytes_IGH & 15, bytes_IGH >> 4], dim=-1).float() - INT4_ZERO
            return (levels_IGE * scales_IG.float().unsqueeze(-1)).flatten(1)
        return codes_IC.float() * scales_IG


BF16 = Format("bf16", torch.bfloat16, 16)
FP16 = Format("fp16", torch.float16, 16)
FP32 = Format("fp32", torch.float32, 32)
FP8 = Format("fp8", torch.float8_e4m3fn, 8, torch.float32)
INT4 = Format("int4", torch.uint8, 4, torch.bfloat16)

FORMATS = {known.name: known for known in (BF16, FP16, FP32, FP8, INT4)}


def format_of(dtype: torch.dtype) -> Format:
    """Return the format that keeps a dtype's values as they are.

    Raises:
        CapabilityError: There is none.
    """
    for known in (BF16, FP16, FP32):
        if known.codes == dtype:
            return known
    raise CapabilityError(
        f"expert weights are {dtype}; the kernels read {', '.join(FORMATS)}: convert the model"
    )


def _scales(vectors: Tensor, largest: float) -> Tensor:
    """Return the scale of each vector of the last axis; a vector of zeros has scale 1."""
    peaks = vectors.abs().amax(dim=-1)
    return torch.where(peaks > 0, peaks / largest, 1.0)
