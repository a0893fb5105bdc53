"""Experts of a step of rows, by the decode kernel or the grouped one, in Triton's interpreter.

What graphs would capture is called instead; the rest is what runs on a GPU.
"""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import silu

from moesim.backends.experts import LayerWork
from moesim.backends.formats import FP32
from moesim.backends.layouts import ExpertLayout

pytest.importorskip("triton", reason="needs triton: the kernels are written in it")
if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 on a CPU", allow_module_level=True)

from moesim.backends.drivers.cuda import graphed_experts, grouped_experts
from moesim.backends.drivers.cuda.graphed_experts import GroupedRows, KernelExperts

# B rows, K chosen, S = B x K choices, E experts, D width.

ROWS, TOP_K, EXPERTS, WIDTH, INTERMEDIATE = 4, 2, 6, 128, 64
IDLE = 2
"""A row of nobody: it chooses an expert that there is not."""
NOISE = 2e-6


@pytest.fixture(autouse=True)
def _without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let plain memory stand for page-locked memory, and call what would be captured."""

    def plain(size: int) -> Any:
        return torch.zeros(size, dtype=torch.uint8)

    for module in (graphed_experts, grouped_experts):
        monkeypatch.setattr(module, "pinned_bytes", plain)
        monkeypatch.setattr(module, "mapped", lambda pinned: pinned)

    def capture(self: Any, layer: int, part: ExpertLayout) -> Any:
        work = self._works[layer]
        graph = SimpleNamespace(replay=lambda: self._launch(work, part))
        self._graphs[layer, part.first_piece, part.pieces] = graph
        return graph

    monkeypatch.setattr(KernelExperts, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@pytest.fixture
def layer() -> Any:
    """Return inputs, choices, gates, an arena of experts, and what float64 makes of them."""
    random = torch.Generator().manual_seed(3)
    layout = ExpertLayout.make("by-matrix", FP32, width=WIDTH, intermediate=INTERMEDIATE)
    offsets = [e * layout.blob_bytes for e in range(EXPERTS)]
    arena_B = torch.zeros(EXPERTS * layout.blob_bytes, dtype=torch.uint8)
    hidden_BD = torch.randn(ROWS, WIDTH, generator=random)
    ids_BK = torch.tensor([[4, 1], [1, 0], [EXPERTS, EXPERTS], [1, 5]])
    gates_BK = torch.rand(ROWS, TOP_K, generator=random)
    wanted_BD = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
    for expert, offset in enumerate(offsets):
        gate_up = torch.randn(2 * INTERMEDIATE, WIDTH, generator=random) * WIDTH**-0.5
        down = torch.randn(WIDTH, INTERMEDIATE, generator=random) * INTERMEDIATE**-0.5
        blob_B = torch.cat([gate_up.flatten(), down.flatten()]).view(torch.uint8)
        arena_B[offset : offset + len(blob_B)] = blob_B
        for row, rank in (ids_BK == expert).nonzero().tolist():
            gate, up = (hidden_BD[row].double() @ gate_up.double().T).chunk(2)
            product = down.double() @ (silu(gate) * up)
            wanted_BD[row] += gates_BK[row, rank].double() * product
    choices = ids_BK.flatten().tolist()
    work = LayerWork(None, hidden_BD, ids_BK, gates_BK, np.array(choices))
    work.choose(choices)
    return SimpleNamespace(
        layout=layout, arena_B=arena_B, offsets=offsets, work=work, wanted_BD=wanted_BD
    )


def by_kernels(it: Any, monkeypatch: pytest.MonkeyPatch) -> KernelExperts:
    """Return the decode kernel's side, without the clock that the interpreter does not have."""
    experts = KernelExperts(it.arena_B, it.layout, TOP_K, ROWS)
    fetch = experts._merge.fetch_offsets
    monkeypatch.setattr(experts._merge, "fetch_offsets", lambda r, n, o, _: fetch(r, n, o))
    monkeypatch.setattr(experts._timing, "add_elapsed", lambda *_: None)
    return experts


def grouped(it: Any, monkeypatch: pytest.MonkeyPatch) -> GroupedRows:
    """Return the grouped kernel's side."""
    del monkeypatch
    return GroupedRows(it.arena_B, it.layout, EXPERTS)


def merged(it: Any, experts: Any) -> Any:
    """Return what the next piece takes in."""
    out_BD = torch.empty(ROWS, WIDTH)
    experts.merge(0, it.work, out_BD)
    return out_BD


def error(it: Any, out_BD: Any) -> float:
    """Return the largest error of rows that are somebody's."""
    live = [row for row in range(ROWS) if row != IDLE]
    return float((out_BD.double() - it.wanted_BD)[live].abs().max())


@pytest.mark.parametrize("make", [by_kernels, grouped])
def test_runs_in_any_pieces_give_the_products(
    layer: Any, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever arrives first, each row gets its experts; a row of nobody disturbs none."""
    experts = make(layer, monkeypatch)
    experts.cut(0, layer.work)
    experts.finish()
    results = []
    for parts in ([[4, 1, 0, 5]], [[0], [5, 1], [4]]):
        experts.open(layer.work)
        for part in parts:
            tokens = [layer.work.choices.count(expert) for expert in part]
            experts.run(layer.work, part, [layer.offsets[expert] for expert in part], tokens)
        results.append(merged(layer, experts))
        assert error(layer, results[-1]) < NOISE
        assert bool(results[-1][IDLE].isfinite().all())
    live = [row for row in range(ROWS) if row != IDLE]
    assert torch.equal(results[0][live], results[1][live])


@pytest.mark.parametrize("make", [by_kernels, grouped])
def test_products_of_the_cpu_are_taken_in(
    layer: Any, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows computed elsewhere stand where the kernels' own would."""
    experts = make(layer, monkeypatch)
    experts.cut(0, layer.work)
    experts.finish()
    experts.open(layer.work)
    experts.run(layer.work, [4, 0, 5], [layer.offsets[e] for e in (4, 0, 5)], [1, 1, 1])
    blob = layer.arena_B[layer.offsets[1] : layer.offsets[2]].view(torch.float32)
    gate_up = blob[: 2 * INTERMEDIATE * WIDTH].view(-1, WIDTH)
    down = blob[2 * INTERMEDIATE * WIDTH :].view(WIDTH, INTERMEDIATE)
    gate, up = (layer.work.hidden_TD @ gate_up.T).chunk(2, dim=-1)
    rows_SD = (silu(gate) * up @ down.T).repeat_interleave(TOP_K, dim=0)

    experts.take(layer.work, 1, rows_SD)

    assert error(layer, merged(layer, experts)) < NOISE


def test_more_launches_than_the_ring_holds(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring begins again where it ends."""
    experts = by_kernels(layer, monkeypatch)
    experts.cut(0, layer.work)
    experts.finish()
    for _ in range(70):
        experts.run(layer.work, [5], [layer.offsets[5]], [1])
    experts.run(layer.work, [4, 1, 0], [layer.offsets[e] for e in (4, 1, 0)], [1, 3, 1])
    assert error(layer, merged(layer, experts)) < NOISE
