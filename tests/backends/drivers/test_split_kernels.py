"""Parts of experts by the decode kernel and the grouped one, in Triton's interpreter.

What graphs would capture is called instead; the rest is what runs on a GPU.
"""

import os
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from moesim.backends.experts import LayerWork
from moesim.backends.formats import FP32
from moesim.backends.layouts import ExpertLayout

pytest.importorskip("triton", reason="needs triton: the kernels are written in it")
if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 on a CPU", allow_module_level=True)

from moesim.backends.drivers.cuda import graphed_experts, grouped_experts
from moesim.backends.drivers.cuda.graphed_experts import GroupedRows, KernelExperts
from moesim.backends.drivers.cuda.kernels import merge, timing

# B rows, K chosen, E experts, D width.

ROWS, TOP_K, EXPERTS, WIDTH, INTERMEDIATE, PIECES = 3, 2, 5, 128, 64, 4
WHOLE = ExpertLayout.make("by-row", FP32, width=WIDTH, intermediate=INTERMEDIATE, pieces=PIECES)


@pytest.fixture(autouse=True)
def _without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let plain memory and no stream stand for a GPU's, and call what would be captured."""
    for module in (graphed_experts, grouped_experts):
        monkeypatch.setattr(
            module, "pinned_bytes", lambda size: torch.zeros(size, dtype=torch.uint8)
        )
        monkeypatch.setattr(module, "mapped", lambda pinned: pinned)

    def capture(self: Any, layer: int, part: ExpertLayout) -> Any:
        work = self._works[layer]
        graph = SimpleNamespace(replay=lambda: self._launch(work, part))
        self._graphs[layer, part.first_piece, part.pieces] = graph
        return graph

    fetch = merge.fetch_offsets
    monkeypatch.setattr(merge, "fetch_offsets", lambda r, n, o, _: fetch(r, n, o))
    monkeypatch.setattr(timing, "add_elapsed", lambda *_: None)
    stream = SimpleNamespace(wait_stream=lambda _: None)
    monkeypatch.setattr(KernelExperts, "_capture", capture)
    monkeypatch.setattr(graphed_experts, "new_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def cut(pieces: int) -> list[ExpertLayout]:
    """Return the top of so many pieces, and the bottom."""
    row = pieces * WHOLE.piece
    return [WHOLE.part(0, row), WHOLE.part(row, INTERMEDIATE)]


@pytest.fixture
def layer() -> Any:
    """Return inputs and choices, and an arena that holds whole experts at ``offsets``."""
    random = torch.Generator().manual_seed(3)
    arena_B = (
        torch.randn(EXPERTS * WHOLE.blob_bytes // 4, generator=random).mul_(0.1).view(torch.uint8)
    )
    ids_BK = torch.tensor([[4, 1], [1, 0], [3, 1]])
    choices = ids_BK.flatten().tolist()
    work = LayerWork(
        None,
        torch.randn(ROWS, WIDTH, generator=random),
        ids_BK,
        torch.rand(ROWS, TOP_K, generator=random),
        np.array(choices),
    )
    work.choose(choices)
    return SimpleNamespace(
        arena_B=arena_B,
        offsets=[expert * WHOLE.blob_bytes for expert in range(EXPERTS)],
        work=work,
        chosen=[4, 1, 0, 3],
        tokens=[1, 3, 1, 1],
    )


def by_kernels(it: Any, pieces: int) -> KernelExperts:
    """Return the decode kernel's side, captured for a top of so many pieces; 0 is no split."""
    parts_of = (lambda _: cut(pieces)) if pieces else None
    experts = KernelExperts(it.arena_B, WHOLE, TOP_K, ROWS, parts_of)
    experts.cut(0, it.work)
    experts.finish()
    return experts


def grouped(it: Any, pieces: int) -> GroupedRows:
    """Return the grouped kernel's side, which knows of parts when it launches them."""
    del pieces
    experts = GroupedRows(it.arena_B, WHOLE, EXPERTS)
    experts.cut(0, it.work)
    experts.finish()
    return experts


def launched(it: Any, experts: Any, pieces: int) -> Any:
    """Return the merged rows after bottoms, the last expert's first, and then all tops."""
    experts.open(it.work)
    if pieces == 0:
        experts.run(it.work, it.chosen, [it.offsets[e] for e in it.chosen], it.tokens)
    else:
        top, bottom = cut(pieces)
        for expert, tokens in [*zip(it.chosen, it.tokens, strict=True)][::-1]:
            at = it.offsets[expert] + top.blob_bytes
            experts.run(it.work, [expert], [at], [tokens], bottom)
        experts.run(it.work, it.chosen, [it.offsets[e] for e in it.chosen], it.tokens, top)
    out_BD = torch.empty(ROWS, WIDTH)
    experts.merge(0, it.work, out_BD)
    return out_BD


@pytest.mark.parametrize("make", [by_kernels, grouped])
def test_parts_give_the_bits_of_whole_experts(layer: Any, make: Any) -> None:
    """Bottoms one by one and then all tops at once add up to what whole experts give."""
    whole = launched(layer, make(layer, 0), 0)
    assert float(whole.abs().max()) > 0
    for pieces in (1, 2, 3):
        split = launched(layer, make(layer, pieces), pieces)
        assert torch.equal(whole, split)


def test_a_part_of_another_size_is_captured_when_it_is_first_launched(layer: Any) -> None:
    """Captured for halves, then cut in quarters: the bits stay, and so does the ring's place."""
    whole = launched(layer, by_kernels(layer, 0), 0)
    experts = by_kernels(layer, 2)
    for pieces in (2, 1, 3, 2):
        assert torch.equal(whole, launched(layer, experts, pieces))
    assert experts._launched == int(experts._launches_1)
