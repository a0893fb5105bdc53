"""How close the expert kernels come to the bandwidth of a GPU's memory.

    python benchmarks/expert_kernels.py [--sweep] [-o FILE.json]

Kernels run in captured graphs, over experts that together exceed the L2 cache many times, so each
launch reads its weights from memory. Times are medians over replays. ``--sweep`` also times block
sizes that are not in use; needs a GPU.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton

from moesim.backends.drivers.cuda.kernels.decode import (
    activate_rows,
    decode_experts,
    project_rows,
)
from moesim.backends.drivers.cuda.kernels.grouped import Groups, grouped_experts
from moesim.backends.drivers.cuda.kernels.merge import fetch_offsets, merge_rows
from moesim.backends.drivers.cuda.kernels.tuning import (
    Blocks,
    down_blocks,
    fitted,
    gate_up_blocks,
)
from moesim.backends.formats import FORMATS
from moesim.backends.layouts import ExpertLayout, LayoutName

SHAPES = {  # width, intermediate, chosen, experts
    "olmoe": (2048, 1024, 8, 64),
    "qwen3-30b-a3b": (2048, 768, 8, 128),
    "mixtral-8x7b": (4096, 14336, 2, 8),
}
KINDS: tuple[tuple[LayoutName, str, int], ...] = (
    ("by-matrix", "bf16", 1),
    ("by-row", "bf16", 8),
    ("by-matrix", "fp8", 1),
    ("by-row", "fp8", 8),
    ("by-row", "int4", 8),
)
GROUPED_KINDS: tuple[tuple[LayoutName, str], ...] = (
    ("by-matrix", "bf16"),
    ("by-row", "bf16"),
    ("by-row", "fp8"),
    ("by-row", "int4"),
)
TOKENS = (1, 4, 16)
PREFILL = (128, 512, 2048)
ARENA_BYTES = 3 << 30
LAUNCHES = 24
REPLAYS = 9
GATE_UP_CANDIDATES = [
    Blocks(j, d, warps, stages)
    for (j, d), warps, stages in product(
        ((2, 2048), (4, 1024), (8, 512), (16, 256), (1, 2048)), (4,), (1, 3)
    )
]
DOWN_CANDIDATES = {
    "by-matrix": [
        Blocks(j, d, 4, stages)
        for (j, d), stages in product(((1024, 4), (512, 8), (256, 16), (1024, 8)), (1, 3))
    ],
    "by-row": [
        Blocks(j, d, 4, stages)
        for (j, d), stages in product(((32, 128), (32, 256), (16, 512), (16, 256)), (1, 3))
    ],
}


@dataclass
class Bench:
    """Experts of one shape and kind, all over an arena."""

    layout: ExpertLayout
    arena_B: torch.Tensor
    slots: int
    top_k: int

    @classmethod
    def make(
        cls,
        shape: str,
        name: LayoutName,
        form: str,
        pieces: int,
        arena_bytes: int,
        at_least: int = 0,
    ) -> "Bench":
        """Return experts that fill that many bytes, or twice what one token chooses."""
        width, intermediate, top_k, _ = SHAPES[shape]
        layout = ExpertLayout.make(
            name, FORMATS[form], width=width, intermediate=intermediate, pieces=pieces
        )
        random = torch.Generator("cuda").manual_seed(1)

        def weights(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, generator=random, device="cuda") * columns**-0.5

        blob_B = layout.pack(
            weights(intermediate, width), weights(intermediate, width), weights(width, intermediate)
        )
        slots = max(2 * top_k, at_least, arena_bytes // layout.blob_bytes)
        return cls(layout, blob_B.repeat(slots), slots, top_k)

    def offsets(self, tokens: int, launch: int) -> torch.Tensor:
        """Return offsets of distinct experts; each launch has others than the one before."""
        rows = tokens * self.top_k
        slots = torch.arange(launch * rows, (launch + 1) * rows, device="cuda") % self.slots
        return slots * self.layout.blob_bytes

    def buffers(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return inputs, scratch and rows."""
        layout, rows = self.layout, tokens * self.top_k
        return (
            torch.randn(tokens, layout.width, device="cuda").to(torch.bfloat16),
            torch.zeros(rows, layout.intermediate, device="cuda"),
            torch.zeros(layout.pieces, rows, layout.width, device="cuda"),
        )


def graph_us(launch: Callable[[int], None], launches: int = LAUNCHES) -> float:
    """Return the time of one launch in a graph of many, in microseconds."""
    for number in range(2):
        launch(number)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(launches):
            launch(number)
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / launches)
    return median(times)


def halves(bench: Bench, tokens: int, gate_up: Blocks, down: Blocks) -> tuple[float, float]:
    """Return the time of the two launches, each by itself."""
    hidden, scratch, rows = bench.buffers(tokens)
    offsets = [bench.offsets(tokens, number) for number in range(LAUNCHES)]
    layout = bench.layout
    return (
        graph_us(
            lambda n: activate_rows(hidden, bench.arena_B, offsets[n], layout, scratch, gate_up)
        ),
        graph_us(lambda n: project_rows(scratch, bench.arena_B, offsets[n], layout, rows, down)),
    )


def decode_row(
    shape: str, bench: Bench, tokens: int, first: Blocks, second: Blocks
) -> dict[str, Any]:
    """Return a row of the table: both launches and the merge, and the bandwidth they reach."""
    hidden, scratch, rows = bench.buffers(tokens)
    gates = torch.rand(tokens, bench.top_k, device="cuda")
    out = torch.empty_like(hidden)
    offsets = [bench.offsets(tokens, number) for number in range(LAUNCHES)]

    def both(number: int) -> None:
        activate_rows(hidden, bench.arena_B, offsets[number], bench.layout, scratch, first)
        project_rows(scratch, bench.arena_B, offsets[number], bench.layout, rows, second)

    def whole(number: int) -> None:
        both(number)
        merge_rows(rows, gates, out)

    both_us, whole_us = graph_us(both), graph_us(whole)
    both(0)
    wrong = error(rows.sum(0)[0], wanted(bench, hidden)[1])
    first_us, second_us = halves(bench, tokens, first, second)
    read_bytes = tokens * bench.top_k * bench.layout.blob_bytes
    return {
        "shape": shape,
        "layout": bench.layout.name,
        "format": bench.layout.format.name,
        "tokens": tokens,
        "gate_up_us": first_us,
        "down_us": second_us,
        "both_us": both_us,
        "with_merge_us": whole_us,
        "gb_per_s": read_bytes / both_us / 1e3,
        "error": wrong,
    }


def prefill_row(shape: str, bench: Bench, tokens: int) -> dict[str, Any]:
    """Return the time of a grouped product, its routes spread evenly."""
    layout, experts = bench.layout, min(SHAPES[shape][3], bench.slots)
    hidden, _, rows = bench.buffers(tokens)
    scratch = torch.empty(tokens * bench.top_k, layout.intermediate, device="cuda").to(hidden.dtype)
    places: dict[int, list[int]] = {}
    for row in range(tokens * bench.top_k):
        places.setdefault(row * 7 % experts, []).append(row)
    groups = Groups.plan(places, {e: e * layout.blob_bytes for e in places}, torch.device("cuda"))
    time_us = graph_us(
        lambda _: grouped_experts(hidden, bench.arena_B, groups, layout, scratch, rows), 4
    )
    mine = next(iter(places[0]))  # the inputs differ by token: check one row of expert 0
    wrong = error(rows.sum(0)[mine], wanted(bench, hidden[mine // bench.top_k :])[1])
    operations = 6 * tokens * bench.top_k * layout.width * layout.intermediate
    return {
        "shape": shape,
        "layout": layout.name,
        "format": layout.format.name,
        "tokens": tokens,
        "grouped_us": time_us,
        "tflop_per_s": operations / time_us / 1e6,
        "error": wrong,
    }


def small_launches() -> dict[str, float]:
    """Return the time of the fetch over PCIe and of an empty decode launch."""
    ring = torch.zeros(8, 64, dtype=torch.int64).pin_memory()
    launches = torch.zeros(1, dtype=torch.int64, device="cuda")
    offsets = torch.zeros(64, dtype=torch.int64, device="cuda")
    bench = Bench.make("olmoe", "by-row", "bf16", 8, 0)
    hidden, scratch, rows = bench.buffers(1)
    nowhere = torch.full((bench.top_k,), -1, device="cuda")
    return {
        "fetch_us": graph_us(lambda _: fetch_offsets(ring, launches, offsets)),
        "skipped_us": graph_us(
            lambda _: decode_experts(hidden, bench.arena_B, nowhere, bench.layout, scratch, rows)
        ),
    }


def copy_gb_per_s() -> float:
    """Return what a copy within the GPU moves, bytes read plus bytes written."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / graph_us(lambda _: target.copy_(source), 4) / 1e3


def candidates(layout: ExpertLayout) -> Iterator[tuple[str, Blocks]]:
    """Yield each way of cutting that fits a layout, once."""
    for half, all_blocks in (
        ("gate_up", GATE_UP_CANDIDATES),
        ("down", DOWN_CANDIDATES[layout.name]),
    ):
        for blocks in dict.fromkeys(fitted(blocks, layout) for blocks in all_blocks):
            yield half, blocks


def wanted(bench: Bench, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what torch makes of the expert and the first input: activation and product."""
    gate_ID, up_ID, down_DI = (
        matrix.double() for matrix in bench.layout.unpack(bench.arena_B[: bench.layout.blob_bytes])
    )
    x_D = hidden[0].double()
    active_I = torch.nn.functional.silu(gate_ID @ x_D) * (up_ID @ x_D)
    return active_I, down_DI @ active_I


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the error's norm over the norm."""
    return float((found.double() - expected).norm() / expected.norm())


def sweep(bench: Bench, shape: str) -> list[dict[str, Any]]:
    """Time every candidate at one token."""
    hidden, scratch, rows = bench.buffers(1)
    offsets = [bench.offsets(1, number) for number in range(LAUNCHES)]
    layout, arena = bench.layout, bench.arena_B
    _, expected = wanted(bench, hidden)
    found = []
    for half, blocks in candidates(layout):
        one, other = (blocks, None) if half == "gate_up" else (None, blocks)
        rows.fill_(torch.nan)
        activate_rows(hidden, arena, offsets[0], layout, scratch, one)
        project_rows(scratch, arena, offsets[0], layout, rows, other)
        wrong = error(rows.sum(0)[0], expected)
        if half == "gate_up":
            time_us = graph_us(
                lambda n, b=blocks: activate_rows(hidden, arena, offsets[n], layout, scratch, b)
            )
        else:
            time_us = graph_us(
                lambda n, b=blocks: project_rows(scratch, arena, offsets[n], layout, rows, b)
            )
        share = (2 if half == "gate_up" else 1) / 3
        found.append(
            {
                "shape": shape,
                "layout": layout.name,
                "format": layout.format.name,
                "half": half,
                **asdict(blocks),
                "error": wrong,
                "us": time_us,
                "gb_per_s": bench.top_k * layout.blob_bytes * share / time_us / 1e3,
            }
        )
    return found


def compile_share(share: int, shares: int, *, with_candidates: bool) -> None:
    """Compile every n-th of the kernels into Triton's cache on disk."""
    number = 0
    for shape, (name, form, pieces) in product(SHAPES, KINDS):
        bench = None
        for tokens, half, blocks in jobs(shape, name, form, pieces, with_candidates):
            number += 1
            if number % shares != share:
                continue
            bench = bench or Bench.make(shape, name, form, pieces, 0)
            hidden, scratch, rows = bench.buffers(tokens)
            where = (bench.arena_B, bench.offsets(tokens, 0), bench.layout)
            if half == "gate_up":
                activate_rows(hidden, *where, scratch, blocks)
            else:
                project_rows(scratch, *where, rows, blocks)
    for number, (shape, (name, form)) in enumerate(product(SHAPES, GROUPED_KINDS)):
        if number % shares == share:
            prefill_row(shape, Bench.make(shape, name, form, 1, 0), PREFILL[0])
    torch.cuda.synchronize()


def jobs(
    shape: str, name: LayoutName, form: str, pieces: int, with_candidates: bool
) -> Iterator[tuple[int, str, Blocks]]:
    """Yield what has to be compiled for a shape and kind."""
    width, intermediate, _, _ = SHAPES[shape]
    layout = ExpertLayout.make(
        name, FORMATS[form], width=width, intermediate=intermediate, pieces=pieces
    )
    for tokens in TOKENS:
        yield tokens, "gate_up", gate_up_blocks(layout)
        yield tokens, "down", down_blocks(layout)
    if with_candidates:
        yield from ((1, half, blocks) for half, blocks in candidates(layout))


def fastest(found: list[dict[str, Any]], half: str) -> Blocks:
    """Return the candidate of one launch that took the least time."""
    best = min((row for row in found if row["half"] == half), key=lambda row: row["us"])
    return Blocks(*(best[field.name] for field in fields(Blocks)))


def show(row: dict[str, Any]) -> None:
    print(*(f"{v:.3g}" if isinstance(v, float) else v for v in row.values()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true", help="also time other block sizes")
    parser.add_argument("--workers", type=int, default=12, help="processes that compile")
    parser.add_argument("-o", "--output", type=Path, help="a JSON file")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    workers = [
        spawn.Process(
            target=compile_share,
            args=(share, options.workers),
            kwargs={"with_candidates": options.sweep},
        )
        for share in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    result: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_gb_per_s": copy_gb_per_s(),
        **small_launches(),
        "decode": [],
        "grouped": [],
        "sweep": [],
    }
    print({key: value for key, value in result.items() if not isinstance(value, list)}, flush=True)
    for shape, (name, form, pieces) in product(SHAPES, KINDS):
        bench = Bench.make(shape, name, form, pieces, ARENA_BYTES)
        first, second = gate_up_blocks(bench.layout), down_blocks(bench.layout)
        if options.sweep:
            found = sweep(bench, shape)
            result["sweep"] += found
            first, second = (fastest(found, half) for half in ("gate_up", "down"))
            print("  ", first, second, flush=True)
        for tokens in TOKENS:
            row = decode_row(shape, bench, tokens, first, second)
            result["decode"].append(row)
            show(row)
        if options.output:
            options.output.write_text(json.dumps(result, indent=1))
    for shape, (name, form) in product(SHAPES, GROUPED_KINDS):
        bench = Bench.make(shape, name, form, 1, 0, SHAPES[shape][3])
        for tokens in PREFILL:
            row = prefill_row(shape, bench, tokens)
            result["grouped"].append(row)
            show(row)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
