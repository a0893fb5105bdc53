"""What a token must take: its bytes, attention, and one expert of each layer that waits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moesim.simulator.messages import Copy
from moesim.simulator.terms import RAM, Cause, Place, Tier
from moesim.validation.anchoring import COPY, COPY_BYTES, Anchors
from moesim.validation.physical import floor_ms
from moesim.validation.protocol import run_cells
from moesim.validation.tables import _floor_ms

STILL = {"copy": 1000, "loop": 500}
STILL_COPY = {COPY: COPY_BYTES // 20, "loop": 500}
LAYERS, TOP_K, COPY_MS = 3, 2, 0.105


def kernels_ms(machine: Any, waiting: int) -> float:
    """Return attention of all layers, an expert for each that waits, and the head, in ms."""
    costs = machine.costs
    attention = sum(costs.attention_ns(layer, 1, 30) for layer in range(LAYERS))
    return (attention + waiting * costs.experts_gpu_ns(0, [1]) + costs.head_ns(1)) / 1e6


def test_the_floor_is_what_was_moved_and_what_waits(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """On demand each layer moves both experts and waits; host and runs come on top."""
    cells = cells_of(machine, systems=("on-demand",), repeats=1)
    [one] = run_cells(machine, cells, folder, origin, anchors_ns=STILL)
    floor = one.executions[0].floor_ms
    expected = LAYERS * TOP_K * COPY_MS + kernels_ms(machine, LAYERS)
    assert floor == pytest.approx(expected, rel=1e-3)
    assert floor < one.judged.measured.mean_tpot < 1.15 * floor


def test_the_anchor_of_copies_gives_the_bandwidth(
    machine: Any, cells_of: Callable[..., Any]
) -> None:
    """A link that is twice as fast as the profile says lowers the floor."""
    [cell] = cells_of(machine, systems=("on-demand",), repeats=1)
    done = machine.execute(cell)
    anchors = {COPY: COPY_BYTES // 20}  # 0.05 ns a byte
    found = floor_ms(done, machine.costs, machine.trace.experts, anchors, (2, 20))
    expected = LAYERS * TOP_K * 0.05 + kernels_ms(machine, LAYERS)
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_burst_lifts_no_floor(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """Of the copies before and after an execution the faster count; of its executions the least."""
    calm, hit = ({COPY: nbytes, "loop": 500} for nbytes in (COPY_BYTES // 20, COPY_BYTES // 10))
    cells = cells_of(machine, systems=("on-demand",), repeats=3)
    anchors = Anchors()
    for reading in (calm, hit, calm):  # what a burst does is known, nothing is repeated
        anchors.take(reading)
    machine.anchor_readings = [hit, calm, hit, hit]
    [one] = run_cells(machine, cells, folder, origin, anchors_ns=STILL_COPY, anchors=anchors)
    first, second, third = (execution.floor_ms for execution in one.executions)
    assert first == second < third
    assert _floor_ms(one) == first


def test_what_is_prefetched_may_move_beside_kernels(
    machine: Any, cells_of: Callable[..., Any]
) -> None:
    """The longer of copies and kernels is the floor then."""
    [cell] = cells_of(machine, systems=("on-demand",), repeats=1)
    done = machine.execute(cell)
    done.spans[:] = [
        (place, label._replace(cause=Cause.PREFETCH) if isinstance(label, Copy) else label, *when)
        for place, label, *when in done.spans
    ]
    found = floor_ms(done, machine.costs, machine.trace.experts, {}, (2, 20))
    assert found == pytest.approx(max(LAYERS * TOP_K * COPY_MS, kernels_ms(machine, 0)), rel=1e-3)


def test_parts_of_experts_have_no_floor_here(machine: Any, cells_of: Callable[..., Any]) -> None:
    """How many bytes a part has, an execution does not say."""
    [cell] = cells_of(machine, systems=("on-demand",), repeats=1)
    done = machine.execute(cell)
    part = Copy(1, 0, 1, RAM, Place(Tier.VRAM), Cause.DEMAND)
    done.spans.append(("h2d", part, 0, 1))
    assert floor_ms(done, machine.costs, machine.trace.experts, {}, (2, 20)) is None
