"""Formats and layouts of experts, without any kernel: sizes, round trips, parts, refusals."""

from types import SimpleNamespace

import pytest
import torch

from moesim.backends.drivers.cuda.kernels.families import readable_format
from moesim.backends.drivers.cuda.kernels.tuning import (
    down_blocks,
    gate_up_blocks,
    is_for_decode,
)
from moesim.backends.formats import BF16, FORMATS, FP8, FP32, GROUP, INT4, format_of
from moesim.backends.layouts import ExpertLayout
from moesim.simulator.errors import CapabilityError

# I intermediate dimension, D width, B bytes.

WIDTH, ROWS = 256, 64
CASES = [
    (name, form)
    for name in ("by-matrix", "by-row")
    for form in FORMATS.values()
    if (name, form) != ("by-matrix", INT4)
]
WORST_STEP = {  # of a weight, relative to the largest weight that shares its scale
    "bf16": 2**-8,
    "fp16": 2**-11,
    "fp32": 2**-23,
    "fp8": 2**-4,
    "int4": 0.5 / 7 * 1.01,  # the scale is rounded to bf16
}


def weights() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return gate, up and down."""
    random = torch.Generator().manual_seed(5)
    return (
        torch.randn(ROWS, WIDTH, generator=random),
        torch.randn(ROWS, WIDTH, generator=random),
        torch.randn(WIDTH, ROWS, generator=random),
    )


def identify(value):
    """Return how a case is called in pytest's output."""
    return getattr(value, "name", value)


@pytest.mark.parametrize(("name", "form"), CASES, ids=identify)
def test_unpacking_gives_back_the_weights_to_the_format_s_step(name, form):
    """No weight is further from what was packed than half a step of its format."""
    layout = ExpertLayout.make(name, form, width=WIDTH, intermediate=ROWS)
    packed = weights()
    largest = max(float(matrix.abs().max()) for matrix in packed)
    for before, after in zip(packed, layout.unpack(layout.pack(*packed)), strict=True):
        assert float((before - after).abs().max()) <= WORST_STEP[form.name] * largest


@pytest.mark.parametrize("form", [FP8, INT4], ids=identify)
def test_quantising_again_changes_nothing_but_roundings(form):
    """What was quantised once moves by no more than a rounding of its scale."""
    layout = ExpertLayout.make("by-row", form, width=WIDTH, intermediate=ROWS)
    blob_B = layout.pack(*weights())
    once = layout.unpack(blob_B)
    again = layout.unpack(layout.pack(*once))
    assert all(torch.allclose(a, b, rtol=1e-2, atol=0) for a, b in zip(once, again, strict=True))


def test_layouts_stand_for_the_same_weights():
    """By row or by matrix, an fp8 expert has the same values."""
    unpacked = []
    for name in ("by-matrix", "by-row"):
        layout = ExpertLayout.make(name, FP8, width=WIDTH, intermediate=ROWS)
        unpacked.append(layout.unpack(layout.pack(*weights())))
    assert all(torch.equal(a, b) for a, b in zip(*unpacked, strict=True))


@pytest.mark.parametrize(
    ("name", "form", "width", "intermediate", "expected"),
    [
        ("by-matrix", BF16, 2048, 1024, 12 * 2**20),
        ("by-row", BF16, 4096, 14336, 336 * 2**20),
        ("by-matrix", FP8, 2048, 768, 3 * 768 * (2048 + 4)),
        ("by-row", FP8, 2048, 768, 768 * (3 * 2048 + 16)),
        ("by-row", INT4, 2048, 1024, 1024 * 3 * (2048 // 2 + 2048 // GROUP * 2)),
    ],
    ids=identify,
)
def test_blobs_have_the_size_of_codes_and_scales(name, form, width, intermediate, expected):
    """Nothing but codes, scales and padding to 16 bytes is in a blob."""
    layout = ExpertLayout.make(name, form, width=width, intermediate=intermediate)
    assert layout.blob_bytes == expected


def test_by_matrix_in_bf16_is_what_transformers_stores():
    """Its bytes are gate_up_proj and then down_proj."""
    gate_ID, up_ID, down_DI = (matrix.to(torch.bfloat16) for matrix in weights())
    layout = ExpertLayout.make("by-matrix", BF16, width=WIDTH, intermediate=ROWS)
    fused = torch.cat([gate_ID.flatten(), up_ID.flatten(), down_DI.flatten()])
    assert torch.equal(layout.pack(gate_ID, up_ID, down_DI), fused.view(torch.uint8))


@pytest.mark.parametrize("form", [BF16, FP8, INT4], ids=identify)
def test_parts_by_row_are_stretches_of_the_whole(form):
    """The bytes of rows [begin, end) are one stretch, and it is the part's own blob."""
    gate_ID, up_ID, down_DI = weights()
    layout = ExpertLayout.make("by-row", form, width=WIDTH, intermediate=ROWS, pieces=4)
    blob_B = layout.pack(gate_ID, up_ID, down_DI)
    part = layout.part(16, 48)
    row_bytes = layout.blob_bytes // ROWS
    alone_B = part.pack(gate_ID[16:48], up_ID[16:48], down_DI[:, 16:48])
    assert torch.equal(alone_B, blob_B[16 * row_bytes : 48 * row_bytes])
    assert (part.first_piece, part.pieces) == (1, 2)


def test_within_reads_the_rows_where_they_lie():
    """A range of a blob that stays whole unpacks to those rows, in both layouts."""
    for name in ("by-matrix", "by-row"):
        layout = ExpertLayout.make(name, FP8, width=WIDTH, intermediate=ROWS, pieces=2)
        blob_B = layout.pack(*weights())
        gate_ID, up_ID, down_DI = layout.unpack(blob_B)
        gate, up, down = layout.within(32, 64).unpack(blob_B)
        assert torch.equal(gate, gate_ID[32:])
        assert torch.equal(up, up_ID[32:])
        assert torch.equal(down, down_DI[:, 32:])


def test_what_no_kernel_reads_is_refused():
    """Each refusal says what does not fit and what would."""
    with pytest.raises(CapabilityError, match="use by-row"):
        ExpertLayout.make("by-matrix", INT4, width=WIDTH, intermediate=ROWS)
    with pytest.raises(CapabilityError, match="no multiple of 128; use fp8 or bf16"):
        ExpertLayout.make("by-row", INT4, width=96, intermediate=ROWS)
    with pytest.raises(CapabilityError, match="3 equal pieces of 64 rows"):
        ExpertLayout.make("by-row", BF16, width=WIDTH, intermediate=ROWS, pieces=3)
    with pytest.raises(CapabilityError, match="multiples of 32"):
        ExpertLayout.make("by-row", BF16, width=WIDTH, intermediate=ROWS, pieces=2).part(16, 64)
    with pytest.raises(CapabilityError, match="multiples of 16 bytes; use by-row"):
        ExpertLayout.make("by-matrix", BF16, width=WIDTH, intermediate=4)
    with pytest.raises(CapabilityError, match=r"torch\.int8"):
        format_of(torch.int8)


def test_families_that_the_kernels_lack_are_named():
    """Experts in the plain form are read; gpt-oss' are refused with every reason."""
    plain = SimpleNamespace(
        is_transposed=False,
        is_concatenated=True,
        has_bias=False,
        has_gate=True,
        act_fn=torch.nn.SiLU(),
        gate_up_proj=torch.zeros(1),
    )
    assert readable_format(plain) == FP32
    plain.is_transposed, plain.is_concatenated, plain.has_bias = True, False, True
    with pytest.raises(CapabilityError, match="transposed, gate and up interleaved, biases; torch"):
        readable_format(plain)
    plain = SimpleNamespace(act_fn=torch.nn.GELU())
    with pytest.raises(CapabilityError, match="the activation GELU"):
        readable_format(plain)


def test_blocks_do_not_depend_on_which_part_is_computed():
    """A part is cut as the whole is, and blocks divide its piece and width."""
    for name, form in CASES:
        layout = ExpertLayout.make(
            name, form, width=2816 if form != INT4 else 2048, intermediate=1408, pieces=4
        )
        part = layout.part(352, 1056)
        for blocks_of in (gate_up_blocks, down_blocks):
            blocks = blocks_of(layout)
            assert blocks_of(part) == blocks
            assert layout.piece % blocks.j == 0
            assert layout.width % blocks.d == 0


def test_decode_is_for_fewer_rows_than_experts():
    """The choice between the two kernels follows from counts alone."""
    chosen = [is_for_decode(tokens, 8, 64) for tokens in (1, 8, 9, 512)]
    assert chosen == [True, True, False, False]
