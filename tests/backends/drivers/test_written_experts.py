"""Stores of experts in fp8 and int4 are read by the decode kernel and the grouped one, interpreted.

What graphs would capture is called instead; the reference is torch on the decoded weights.
"""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moesim.backends.experts import LayerWork
from moesim.backends.opening import open_model
from moesim.backends.sources import Source

pytest.importorskip("triton", reason="needs triton: the kernels are written in it")
if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 on a CPU", allow_module_level=True)

from moesim.backends.drivers.cuda import graphed_experts, grouped_experts
from moesim.backends.drivers.cuda.graphed_experts import KernelExperts, kernel_layout
from moesim.backends.drivers.cuda.grouped_experts import GroupedExperts

EXPERTS, TOP_K, WIDTH = 8, 2, 128
NOISE = 2e-6


@pytest.fixture(autouse=True)
def _without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let plain memory stand for page-locked memory, and call what would be captured."""
    for module in (graphed_experts, grouped_experts):
        monkeypatch.setattr(
            module, "pinned_bytes", lambda size: torch.zeros(size, dtype=torch.uint8)
        )
        monkeypatch.setattr(module, "mapped", lambda pinned: pinned)

    def capture(self: Any, layer: int, part: Any) -> Any:
        graph = SimpleNamespace(replay=lambda: self._launch(self._works[layer], part))
        self._graphs[layer, part.first_piece, part.pieces] = graph
        return graph

    monkeypatch.setattr(KernelExperts, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@pytest.mark.parametrize("tokens", [1, 12])
@pytest.mark.parametrize("form", ["fp8", "int4"])
def test_codes_are_read_as_they_decode(
    write_shape: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    tokens: int,
) -> None:
    """One token by the graphs' kernel, a prompt by the grouped product: what torch makes of it."""
    shape = write_shape(hidden=WIDTH, expert_width=64, experts=EXPERTS, top_k=TOP_K)
    store = open_model(Source(str(shape), "random", format=form), torch.device("cpu")).store
    layout: Any = kernel_layout(store)
    size = layout.blob_bytes
    arena_B = torch.cat([store.blob(expert) for expert in range(EXPERTS)])
    random = torch.Generator().manual_seed(1)
    hidden_TD = torch.randn(tokens, WIDTH, generator=random)
    ids_TK = torch.stack([torch.randperm(EXPERTS, generator=random)[:TOP_K] for _ in range(tokens)])
    choices = ids_TK.flatten().tolist()
    work, expected = (
        LayerWork(
            store.parts.layers[0].experts,
            hidden_TD,
            ids_TK,
            torch.full((tokens, TOP_K), 0.5),
            choices,
        )
        for _ in range(2)
    )
    chosen = sorted(set(choices))
    expected.pieces = store.pieces
    for expert in chosen:
        expected.compute(expert, store.matrices(expert))
    if tokens == 1:
        kernels = KernelExperts(arena_B, layout, TOP_K)
        fetch = kernels._merge.fetch_offsets
        monkeypatch.setattr(kernels._merge, "fetch_offsets", lambda r, n, o, _: fetch(r, n, o))
        monkeypatch.setattr(kernels._timing, "add_elapsed", lambda *_: None)
        kernels.cut(0, work)
        kernels.finish()
        kernels.run(work, choices, [expert * size for expert in choices])
        out_TD = torch.empty_like(hidden_TD)
        kernels.merge(0, work, out_TD)
    else:
        grouped = GroupedExperts(arena_B, layout, EXPERTS)
        grouped.open(work)
        counts = [choices.count(expert) for expert in chosen]
        grouped.run(chosen, counts, [expert * size for expert in chosen])
        out_TD = grouped.merge(work)
    wanted_TD = expected.merge()
    assert float((out_TD - wanted_TD).abs().max() / wanted_TD.abs().max()) < NOISE
