"""What the host costs in decode: from a router's choice to the launch of its experts, on a GPU.

``python benchmarks/host_loop.py --model olmoe --layers 4`` makes a model of random weights, lets it
generate with room for all experts and with room for a part, and prints for each

- host time of a layer whose experts are all resident, and how much of it is the controller's,
- host time that one miss adds,
- time per token, against one CUDA graph of the same kernels without offloading; the claim is that
  it takes at most 1.3 times as long with all experts resident.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from torch import Tensor

from moesim.backends.calibration.fingerprint import fingerprint
from moesim.backends.controllers import Deciding
from moesim.backends.drivers.cuda.graph_driver import GraphDriver
from moesim.backends.drivers.cuda.graphed_experts import kernel_layout
from moesim.backends.execution import execute
from moesim.backends.experts import LayerWork, attach
from moesim.backends.generation import Request, Sampling
from moesim.backends.models import Model
from moesim.backends.opening import open_model
from moesim.backends.sources import Source
from moesim.backends.store import ExpertStore
from moesim.simulator.messages import LayerRouted
from moesim.validation.provenance import made_by

PROMPT_TOKENS = 32
CLAIM = 1.3
"""Times the graph without offloading that a token may take, all experts resident."""
PACKAGES = ("moesim", "torch", "triton", "transformers")
REPLAYS = 200
POLICIES = {"cache": "lru", "prefetch": "none", "schedule": "resident_first"}


class Timed(GraphDriver):
    """Notes misses, host time and the controller's share of it, for each layer of decode."""

    notes: ClassVar[list[tuple[int, int, int]]] = []

    def wait_until(self, has_come: Callable[[], bool]) -> None:
        """Note when the wait was over."""
        super().wait_until(has_come)
        self.came_ns = perf_counter_ns()

    def run_layer(self, routed: LayerRouted, work: LayerWork) -> None:
        """Note how long it took since then."""
        misses, decided_ns = self._controller.counts.misses, self.timings.decision_ns
        super().run_layer(routed, work)
        took_ns = perf_counter_ns() - self.came_ns
        if isinstance(routed.experts, list):
            missed = self._controller.counts.misses - misses
            self.notes.append((missed, took_ns, self.timings.decision_ns - decided_ns))


def generate(model: Model, store: ExpertStore, share: float, tokens: int) -> dict[str, Any]:
    """Let the model generate with room for a share of its experts, and return figures."""
    Timed.notes = []
    slots = max(store.parts.top_k, round(store.parts.experts * len(store.sizes_L) * share))
    vocabulary = model.config.get_text_config().vocab_size
    prompt = torch.randint(vocabulary, (PROMPT_TOKENS,), generator=torch.manual_seed(1)).tolist()
    done = execute(
        model,
        store,
        [Request(prompt=prompt)],
        Deciding(policies=POLICIES, budget_bytes=slots * store.sizes_L[0]),  # type: ignore[arg-type]
        Sampling(new_tokens=tokens, ignore_eos=True),
        make_driver=Timed,
    )
    ends_ns = done.timings.requests[0].token_ends_ns[tokens // 4 :]
    by_misses: dict[int, list[int]] = defaultdict(list)
    for missed, took_ns, _ in Timed.notes:
        by_misses[missed].append(took_ns)
    medians = {missed: statistics.median(took) for missed, took in sorted(by_misses.items())}
    resident = [note for note in Timed.notes if note[0] == 0]
    slope = np.polyfit(list(medians), list(medians.values()), 1)[0] if len(medians) > 1 else None
    return {
        "share": share,
        "layer_us": None if 0 not in medians else medians[0] / 1e3,
        "decision_us": statistics.median(note[2] for note in resident) / 1e3 if resident else None,
        "miss_us": None if slope is None else float(slope) / 1e3,
        "tpot_ms": statistics.median(np.diff(ends_ns)) / 1e6,
        "misses_per_layer": statistics.mean(note[0] for note in Timed.notes),
        "link_ms_per_token": done.timings.link_busy_ns / len(ends_ns) / 1e6,
        "longest_gap_ms": done.timings.longest_gap_ns / 1e6,
    }


@torch.inference_mode()
def without_offloading(model: Model, store: ExpertStore, longest: int) -> float:
    """Return the time per token, in ms, of one graph of the same kernels with all in place."""
    # Here, not above: they need triton, which has no wheel for every machine.
    from moesim.backends.drivers.cuda.kernels.decode import decode_experts  # noqa: PLC0415
    from moesim.backends.drivers.cuda.kernels.merge import merge_rows  # noqa: PLC0415

    layout, parts, size = kernel_layout(store), store.parts, store.sizes_L[0]
    assert layout is not None
    experts = parts.experts * len(store.sizes_L)
    arena_B = torch.empty(experts * size, dtype=torch.uint8, device="cuda")
    for expert in range(experts):
        arena_B[expert * size : (expert + 1) * size].copy_(store.blob(expert))
    activation_SI = torch.empty(parts.top_k, layout.intermediate, device="cuda")
    rows_PSD = torch.zeros(layout.pieces, parts.top_k, layout.width, device="cuda")

    def serve(layer: int, work: LayerWork) -> Tensor:
        offsets_S = (work.ids_TK.reshape(-1) + layer * parts.experts) * size
        decode_experts(work.hidden_TD, arena_B, offsets_S, layout, activation_SI, rows_PSD)
        out_TD = torch.empty_like(work.hidden_TD)
        merge_rows(rows_PSD, work.gates_TK.contiguous(), out_TD)
        return out_TD

    cache = transformers.StaticCache(config=model.config, max_cache_len=-(-longest // 128) * 128)
    ids = torch.zeros(1, 1, dtype=torch.long, device="cuda")

    def forward() -> Tensor:
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits[0, -1].argmax()
        return logits

    detach = attach(model, parts, serve, lambda ids_S: np.arange(len(ids_S)))
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        forward()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            forward()
    detach()
    took = []
    for _ in range(REPLAYS):
        cache.reset()
        torch.cuda.synchronize()
        began_ns = perf_counter_ns()
        graph.replay()
        torch.cuda.synchronize()
        took.append(perf_counter_ns() - began_ns)
    return statistics.median(took) / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="olmoe", help="a shape of ours")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.75, 0.5])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--commit", help="of the code, in a copy without its history")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("host_loop times graphs and kernels on an NVIDIA GPU; there is none here")
    opened = open_model(Source(args.model, "random", args.layers, "8GiB"), torch.device("cuda"))
    model, store = opened.checkpoint.model, opened.store
    one_ms = without_offloading(model, store, PROMPT_TOKENS + args.tokens)
    print(f"{args.model}, {args.layers} layers: one graph without offloading {one_ms:.3f} ms")
    rows = []
    for share in args.shares:
        row = generate(model, store, share, args.tokens)
        row["over_one_graph"] = row["tpot_ms"] / one_ms
        rows.append(row)
        shown = {name: value for name, value in row.items() if value is not None}
        print("  ".join(f"{name} {value:.3f}" for name, value in shown.items()), flush=True)
    resident = [row["over_one_graph"] for row in rows if row["share"] == 1]
    if resident:
        shown = "shown" if max(resident) <= CLAIM else "missed"
        print(f"all resident {max(resident):.2f}x one graph; at most {CLAIM}x: {shown}")
    if args.json is not None:
        figures = {
            **made_by(args.commit, PACKAGES),
            "machine": fingerprint(torch.device("cuda")).model_dump(),
            "model": args.model,
            "layers": args.layers,
            "one_graph_ms": one_ms,
            "rows": rows,
        }
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
