"""Words that the GPU posts, and tiles that it lays out, in Triton's interpreter or on a GPU."""

import os

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="needs triton: the kernels are written in it")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1 on a CPU", allow_module_level=True)

from moesim.backends.drivers.cuda.kernels.grouped import Groups
from moesim.backends.drivers.cuda.kernels.posting import post
from moesim.backends.drivers.cuda.kernels.tiles import lay_out_tiles

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STAMP = 1 << 32


def longs(*values: int) -> torch.Tensor:
    """Return whole numbers on the device."""
    return torch.tensor(values, dtype=torch.long, device=DEVICE)


def test_each_launch_stamps_its_words() -> None:
    """A word is its value and the number of the launch that wrote it."""
    launches, words = longs(0), longs(0, 0, 0)
    for launch, values in enumerate([(5, 70_000, 0), (9, 1, -1)], start=1):
        post(longs(*values), None, launches, words)
        assert words.tolist() == [value % STAMP + launch * STAMP for value in values]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_go_along_as_halves(dtype: torch.dtype) -> None:
    """Where gates are posted, a word holds value, float16 and number; negative ones too."""
    gates = torch.tensor([0.75, -0.125, 1.0], dtype=dtype, device=DEVICE)
    launches, words = longs(6), longs(0, 0, 0)

    post(longs(5, 63, 0), gates, launches, words)

    parts = words.cpu().numpy().view(np.uint16).reshape(3, 4)
    assert parts[:, 0].tolist() == [5, 63, 0]
    assert parts[:, 1].copy().view(np.float16).tolist() == [0.75, -0.125, 1.0]
    assert parts[:, 2:].tolist() == [[7, 0]] * 3
    assert launches.tolist() == [7]


def test_tiles_are_those_of_a_plan_on_the_host() -> None:
    """The device finds each tile's rows from the expert and what comes before in it."""
    tile, offsets = 4, {0: 160, 2: 4096, 3: 32}
    chosen = [0, 3, 0, 2, 0, 0, 3, 1, 0, 0, 0, 0, 0]
    rows = {e: [s for s, other in enumerate(chosen) if other == e] for e in (0, 1, 2, 3)}
    starts = [sum(len(rows[e]) for e in range(upto)) for upto in range(5)]
    wanted = Groups.plan({e: rows[e] for e in (2, 0, 3)}, offsets, DEVICE, tile)
    plan = [(e, before, offsets[e]) for e in (2, 0, 3) for before in range(0, len(rows[e]), tile)]
    tiles = torch.zeros(len(plan), 2, dtype=torch.int32, device=DEVICE)
    places = torch.zeros(len(plan), dtype=torch.long, device=DEVICE)

    lay_out_tiles(torch.tensor(plan, device=DEVICE), longs(*starts), tile, tiles, places)

    assert torch.equal(wanted.offsets_N, places)
    lengths = (tiles[:, 1] - tiles[:, 0]).tolist()
    assert lengths == (wanted.tiles_N2[:, 1] - wanted.tiles_N2[:, 0]).tolist()
    assert tiles[:, 0].tolist() == [starts[e] + before for e, before, _ in plan]
