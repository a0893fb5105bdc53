"""What recording costs: generation with and without it, in one run, on this machine.

    python -P benchmarks/recording.py [MODEL] [--requests 4] [--new-tokens 32] [--repeat 3]

``-P`` keeps this folder out of the import path: transformers would take ``expert_kernels.py`` for a
package of that name. Every way generates the same tokens with the same loop; ``plain`` has no hook
at all. The ways take turns and each figure is the best of the repeats, so ratios may be compared
and seconds may not.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from torch import Tensor

from moesim.backends.generation import Request, Sampling, run_batch
from moesim.backends.loading import choose_device, load_checkpoint
from moesim.backends.models import Model
from moesim.backends.recorder import Origin, Recording
from moesim.backends.taps import Array, Taps

REFERENCE = Path(__file__).resolve().parents[1] / "backends" / "reference" / "weights"
PROMPT = "def main() -> None:\n    "
WAYS = {
    "plain": None,
    "ids and gates": (),
    "+ router_probs, token": ("router_probs", "token"),
    "+ look_in, 3 ahead": ("router_probs", "look_in", "token"),
    "all but hidden": (
        "router_logits", "router_probs", "router_top", "look_in", "look_out", "embedding",
        "prompt_embedding", "token",
    ),
}  # fmt: skip


class NoTaps(Taps):
    """What the generation loop asks of taps, without a hook on the model."""

    def __init__(self) -> None:
        self.signals = ()

    def rows(self, live_BS: Tensor) -> dict[str, Array]:
        """Return as many empty rows as went through."""
        empty = torch.zeros((int(live_BS.sum()), 0)).numpy()
        return {"expert_TLK": empty, "gate_TLK": empty}


def generate_plainly(model: Model, recording: Recording) -> None:
    for first in range(0, len(recording.requests), recording.batch):
        batch = recording.requests[first : first + recording.batch]
        run_batch(model, NoTaps(), batch, recording.sampling, first)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=str(REFERENCE), help="as for moesim record")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3, help="repeats of which the best counts")
    options = parser.parse_args()
    device = choose_device(options.device)
    checkpoint = load_checkpoint(options.model, device)
    prompt = checkpoint.tokenizer(PROMPT).input_ids
    bare = Recording(
        model=checkpoint.model,
        requests=[Request(prompt=prompt)] * options.requests,
        sampling=Sampling(new_tokens=options.new_tokens, ignore_eos=True),
        origin=Origin(model="benchmark"),
        batch=options.batch,
    )
    work: dict[str, Callable[[], object]] = {
        name: (
            (lambda: generate_plainly(checkpoint.model, bare))
            if signals is None
            else replace(bare, signals=signals).run
        )
        for name, signals in WAYS.items()
    }
    best = dict.fromkeys(work, float("inf"))
    generate_plainly(checkpoint.model, bare)
    for _ in range(options.repeat):
        for name, run in work.items():
            best[name] = min(best[name], seconds(run))
    tokens = options.requests * (len(prompt) + options.new_tokens - 1)
    print(f"{'recording':24} {'seconds':>8} {'tokens/s':>9} {'of plain':>9}")
    for name, found in best.items():
        print(f"{name:24} {found:8.2f} {tokens / found:9.0f} {found / best['plain']:9.2f}")
    print(
        f"{Path(options.model).name}, {options.requests} requests of {len(prompt)} + "
        f"{options.new_tokens} tokens, batch {options.batch}; {device}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers "
        f"{transformers.__version__}"
    )


if __name__ == "__main__":
    main()
