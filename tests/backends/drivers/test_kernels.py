"""The Triton kernels against torch, in Triton's interpreter where there is no GPU.

Without Triton they are skipped. ``TRITON_INTERPRET=1 pytest`` runs them on a CPU; with a GPU they
run there.
"""

import os
from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import silu

from moesim.backends.formats import BF16, FORMATS, FP32, INT4, Format
from moesim.backends.layouts import ExpertLayout

pytest.importorskip("triton", reason="needs triton: the kernels are written in it")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1 on a CPU", allow_module_level=True)

from moesim.backends.drivers.cuda.kernels.decode import decode_experts
from moesim.backends.drivers.cuda.kernels.grouped import Groups, grouped_experts
from moesim.backends.drivers.cuda.kernels.merge import fetch_offsets, merge_rows

# T tokens, K chosen, E experts, S = T x K rows, P partial rows, I intermediate dimension, D width,
# J = 2 x I, B bytes, N ring entries.

TOKENS, TOP_K, EXPERTS, WIDTH, ROWS, PIECES = 5, 2, 4, 256, 64, 2
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = (
    torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
)  # the interpreter's dot has no bf16
GROUPED_ERROR = 8e-3 if torch.bfloat16 == DTYPE else 2e-6
GAP_BYTES = 48  # experts lie at no multiple of their size
CASES = [("by-matrix", form) for form in FORMATS.values() if form != INT4] + [
    ("by-row", form) for form in FORMATS.values()
]


@dataclass
class Case:
    """Some experts in an arena, some tokens, and what float64 makes of them."""

    layout: ExpertLayout
    arena_B: torch.Tensor
    hidden_TD: torch.Tensor
    ids_S: list[int]
    offsets_E: list[int]
    wanted_SD: torch.Tensor

    @property
    def offsets_S(self) -> torch.Tensor:
        """Where the expert of each row begins."""
        return torch.tensor([self.offsets_E[expert] for expert in self.ids_S], device=DEVICE)

    def rows(self) -> torch.Tensor:
        """Return partial rows that nothing was written to."""
        return torch.full((PIECES, TOKENS * TOP_K, WIDTH), float("nan"), device=DEVICE)

    def scratch(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return room for an activation."""
        return torch.full((TOKENS * TOP_K, ROWS), float("nan"), dtype=dtype, device=DEVICE)

    def groups(self, *, backwards: bool = False) -> Groups:
        """Sort all rows by expert."""
        experts = sorted(set(self.ids_S), reverse=backwards)
        rows = {e: [s for s, other in enumerate(self.ids_S) if other == e] for e in experts}
        return Groups.plan(rows, dict(enumerate(self.offsets_E)), DEVICE)


def make(name: str, form: Format, dtype: torch.dtype = DTYPE) -> Case:
    """Return a case with random weights."""
    random = torch.Generator().manual_seed(7)
    layout = ExpertLayout.make(name, form, width=WIDTH, intermediate=ROWS, pieces=PIECES)
    offsets_E = [GAP_BYTES + e * (layout.blob_bytes + GAP_BYTES) for e in range(EXPERTS)]
    arena_B = torch.zeros(offsets_E[-1] + layout.blob_bytes, dtype=torch.uint8)
    weights = []
    for offset in offsets_E:
        gate_up_JD = torch.randn(2 * ROWS, WIDTH, generator=random) * WIDTH**-0.5
        down_DI = torch.randn(WIDTH, ROWS, generator=random) * ROWS**-0.5
        blob_B = layout.pack(gate_up_JD[:ROWS], gate_up_JD[ROWS:], down_DI)
        arena_B[offset : offset + layout.blob_bytes] = blob_B
        weights.append([matrix.double() for matrix in layout.unpack(blob_B)])
    hidden_TD = torch.randn(TOKENS, WIDTH, generator=random).to(dtype)
    ids_S = [
        e for _ in range(TOKENS) for e in torch.randperm(EXPERTS, generator=random)[:TOP_K].tolist()
    ]
    wanted = []
    for row, expert in enumerate(ids_S):
        gate_ID, up_ID, down_DI = weights[expert]
        x_D = hidden_TD[row // TOP_K].double()
        wanted.append(down_DI @ (silu(gate_ID @ x_D) * (up_ID @ x_D)))
    return Case(
        layout, arena_B.to(DEVICE), hidden_TD.to(DEVICE), ids_S, offsets_E, torch.stack(wanted)
    )


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the error's norm over the norm."""
    return float((found.double().cpu() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("name", "form"), CASES, ids=lambda value: getattr(value, "name", value))
def test_decode_is_the_gated_product(name, form):
    """Every row is the product of its own expert with its own token, to float32 rounding."""
    case = make(name, form)
    rows_PSD = case.rows()
    decode_experts(
        case.hidden_TD, case.arena_B, case.offsets_S, case.layout, case.scratch(), rows_PSD
    )
    assert relative(rows_PSD.sum(0), case.wanted_SD) < 2e-6


@pytest.mark.parametrize(("name", "form"), CASES, ids=lambda value: getattr(value, "name", value))
def test_grouped_is_the_gated_product(name, form):
    """The grouped product agrees with float64 to the rounding of the inputs' dtype."""
    case = make(name, form)
    rows_PSD = case.rows()
    scratch = case.scratch(case.hidden_TD.dtype)
    grouped_experts(case.hidden_TD, case.arena_B, case.groups(), case.layout, scratch, rows_PSD)
    assert relative(rows_PSD.sum(0), case.wanted_SD) < GROUPED_ERROR


def test_grouped_in_float32_is_exact_to_rounding():
    """With float32 inputs and weights nothing is rounded to less."""
    case = make("by-row", FP32, torch.float32)
    rows_PSD = case.rows()
    grouped_experts(
        case.hidden_TD, case.arena_B, case.groups(), case.layout, case.scratch(), rows_PSD
    )
    assert relative(rows_PSD.sum(0), case.wanted_SD) < 2e-6


@pytest.mark.parametrize("name", ["by-matrix", "by-row"])
def test_parts_in_any_order_give_the_bits_of_the_whole(name):
    """Bottom before top, in place or as a blob of its own, equals the whole expert bit by bit."""
    case = make(name, BF16)
    whole_PSD, split_PSD, alone_PSD = case.rows(), case.rows(), case.rows()
    layout, scratch = case.layout, case.scratch()
    decode_experts(case.hidden_TD, case.arena_B, case.offsets_S, layout, scratch, whole_PSD)
    for begin, end in ((ROWS // 2, ROWS), (0, ROWS // 2)):
        within, part = layout.within(begin, end), layout.part(begin, end)
        decode_experts(case.hidden_TD, case.arena_B, case.offsets_S, within, scratch, split_PSD)
        blobs = []
        for offset in case.offsets_E:
            blob_B = case.arena_B[offset : offset + layout.blob_bytes].cpu()
            gate_ID, up_ID, down_DI = layout.unpack(blob_B)
            blobs.append(part.pack(gate_ID[begin:end], up_ID[begin:end], down_DI[:, begin:end]))
        offsets_S = torch.tensor([e * part.blob_bytes for e in case.ids_S], device=DEVICE)
        parts_B = torch.cat(blobs).to(DEVICE)
        decode_experts(case.hidden_TD, parts_B, offsets_S, part, scratch, alone_PSD)
    assert torch.equal(whole_PSD, split_PSD)
    assert torch.equal(whole_PSD, alone_PSD)


def test_rows_without_an_offset_are_left_alone():
    """A negative offset skips its row; launching the rest later completes the same bits."""
    case = make("by-row", BF16)
    whole_PSD, pieced_PSD = case.rows(), case.rows()
    arguments = (case.layout, case.scratch())
    decode_experts(case.hidden_TD, case.arena_B, case.offsets_S, *arguments, whole_PSD)
    later_S = torch.arange(TOKENS * TOP_K, device=DEVICE) % 3 == 0
    for chosen_S in (~later_S, later_S):
        offsets_S = torch.where(chosen_S, case.offsets_S, -1)
        before_PSD = pieced_PSD.clone()
        decode_experts(case.hidden_TD, case.arena_B, offsets_S, *arguments, pieced_PSD)
        untouched = before_PSD[:, ~chosen_S].nan_to_num(1e9)
        assert torch.equal(untouched, pieced_PSD[:, ~chosen_S].nan_to_num(1e9))
    assert torch.equal(whole_PSD, pieced_PSD)


def test_grouped_rows_do_not_depend_on_their_company():
    """Other tiles, another order, one expert at a time: a row keeps its bits."""
    case = make("by-matrix", BF16)
    whole_PSD, backwards_PSD, single_PSD = case.rows(), case.rows(), case.rows()
    rest = (case.layout, case.scratch(DTYPE))
    grouped_experts(case.hidden_TD, case.arena_B, case.groups(), *rest, whole_PSD)
    backwards = case.groups(backwards=True)
    grouped_experts(case.hidden_TD, case.arena_B, backwards, *rest, backwards_PSD)
    for row, expert in enumerate(case.ids_S):
        alone = Groups.plan({expert: [row]}, {expert: case.offsets_E[expert]}, DEVICE)
        grouped_experts(case.hidden_TD, case.arena_B, alone, *rest, single_PSD)
    assert torch.equal(whole_PSD, backwards_PSD)
    assert torch.equal(whole_PSD, single_PSD)


def test_merge_weights_rows_in_router_order():
    """The result is the gated sum of all partial rows, rounded once to the output's dtype."""
    random = torch.Generator().manual_seed(3)
    rows_PSD = torch.randn(PIECES, TOKENS * TOP_K, WIDTH, generator=random)
    gates_TK = torch.rand(TOKENS, TOP_K, generator=random).to(torch.bfloat16)
    out_TD = torch.empty(TOKENS, WIDTH, dtype=torch.float32, device=DEVICE)
    merge_rows(rows_PSD.to(DEVICE), gates_TK.to(DEVICE), out_TD)
    rows_TKD = rows_PSD.double().sum(0).view(TOKENS, TOP_K, WIDTH)
    wanted_TD = (rows_TKD * gates_TK.double().unsqueeze(-1)).sum(1)
    assert relative(out_TD, wanted_TD) < 1e-6


def test_fetch_reads_the_ring_entry_of_each_launch():
    """Launch n reads entry n modulo the ring's length."""
    ring_NS = torch.arange(12).view(3, 4)
    if DEVICE.type == "cuda":
        ring_NS = ring_NS.pin_memory()
    launches_1 = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    fetched = []
    for _ in range(4):
        offsets_S = torch.zeros(4, dtype=torch.int64, device=DEVICE)
        fetch_offsets(ring_NS, launches_1, offsets_S)
        fetched.append(offsets_S.tolist())
    assert fetched == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [0, 1, 2, 3]]
