"""The same shape offloaded by Hugging Face accelerate and by moesim, one after the other.

    python benchmarks/accelerate_offload.py --model qwen3-30b-a3b --layers 4 [-o FILE.json]

The claim is at least ten times the speed of accelerate; on a GPU the last line says if it holds.

Accelerate keeps each layer's experts in host memory and brings all of them to the device before
every forward: the module holds them as two tensors. moesim brings those that the router chose: on
demand and no cache, or what an LRU lacks; with room for a share of them. Weights are random, all
route by themselves. Needs accelerate; without a GPU everything runs on the CPU, which shows that
the benchmark runs and nothing else.
"""

import argparse
import gc
import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import accelerate
import torch
import transformers

from moesim.backends import random_weights
from moesim.backends.calibration.fingerprint import fingerprint
from moesim.backends.controllers import Deciding
from moesim.backends.drivers.cuda.graph_driver import GraphDriver
from moesim.backends.drivers.threads import ThreadsDriver
from moesim.backends.execution import MakeDriver, execute
from moesim.backends.generation import Request, Sampling
from moesim.backends.models import Model, find_moe
from moesim.backends.opening import Opened, open_model
from moesim.backends.sources import RANDOM, Source
from moesim.simulator.registry import Axis
from moesim.validation.provenance import made_by, without_folder

PROMPT_TOKENS = 32
SETTLING = 2
BLOCK = 2**24
SCALE = 0.02
CLAIM = 10
"""How many times as fast as accelerate the issue wants it."""
PACKAGES = ("moesim", "accelerate", "torch", "transformers")
SYSTEMS: Mapping[str, Mapping[Axis, str]] = {
    "on-demand": {"cache": "transient", "prefetch": "none", "schedule": "on_demand"},
    "lru": {"cache": "lru", "prefetch": "none", "schedule": "resident_first"},
}


def main() -> None:
    """Time both and print a line for each."""
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = Source(options.model, RANDOM, layers=options.layers, pinned_pool=options.pinned_pool)
    began_s = perf_counter()
    rows = {"accelerate": _accelerate_ms(source, device, options.tokens)}
    gc.collect()
    opened = open_model(source, device)
    for name, policies in SYSTEMS.items():
        rows[name] = _moesim_ms(opened, policies, device, options.tokens, options.share)
    place = fingerprint(device).model_dump()
    ratio = rows["accelerate"] / rows["on-demand"]
    for name, ms in rows.items():
        print(f"{name:12}{ms:10.2f} ms per token")
    model = without_folder(options.model)
    print(f"{model}, {options.layers} layers, {place['gpu']}: on demand {ratio:.1f} times as fast")
    if device.type == "cuda":  # a CPU says nothing of a link
        print(f"at least {CLAIM} times: {'shown' if ratio >= CLAIM else 'missed'}")
    if options.output is not None:
        found = {
            **made_by(options.commit, PACKAGES),
            "machine": place,
            "ms_per_token": {name: round(ms, 4) for name, ms in rows.items()},
            "ratio": round(ratio, 4),
            "claim": CLAIM,
            "seconds": round(perf_counter() - began_s, 1),
        }
        found |= _plain(options) | {"model": model}
        options.output.write_text(json.dumps(found, indent=1) + "\n")


def _accelerate_ms(source: Source, device: torch.device, tokens: int) -> float:
    """Return a decode token's median time with experts in host memory."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    checkpoint, _ = random_weights.build(source, dtype)
    model = checkpoint.model
    model.to_empty(device="cpu")
    _fill(model)
    experts = [layer.experts for layer in find_moe(model).layers]
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if any(child is one for one in experts)
    ]
    for parent, name, _ in places:
        setattr(parent, name, torch.nn.Identity())
    model.to(device)
    for parent, name, child in places:
        setattr(parent, name, child)
        accelerate.cpu_offload(child, execution_device=device)
    return _token_ms(model, device, tokens)


@torch.inference_mode()
def _fill(model: Model) -> None:
    """Give a model weights of the scale that training begins with, and its buffers."""
    block = torch.empty(BLOCK).normal_(0.0, SCALE, generator=torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        flat = parameter.view(-1)
        for begin in range(0, len(flat), BLOCK):
            piece = flat[begin : begin + BLOCK]
            piece.copy_(block[: len(piece)])
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # noqa: SLF001  leave it
    model.initialize_weights()


@torch.inference_mode()
def _token_ms(model: Model, device: torch.device, tokens: int) -> float:
    """Return the median time of decode tokens, each waited for."""
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else int
    cache = transformers.DynamicCache(config=model.config)
    ids = torch.arange(PROMPT_TOKENS, device=device)[None]
    times = []
    for _ in range(1 + tokens):
        began_s = perf_counter()
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids = out.logits[:, -1].argmax(dim=-1, keepdim=True)
        wait()
        times.append(perf_counter() - began_s)
    return 1e3 * median(times[1 + SETTLING :])


def _moesim_ms(
    opened: Opened, policies: Mapping[Axis, str], device: torch.device, tokens: int, share: float
) -> float:
    """Return a decode token's median time with room for a share of the experts."""
    make_driver: MakeDriver = GraphDriver if device.type == "cuda" else ThreadsDriver
    size = max(opened.store.sizes_L)
    budget_bytes = int(opened.store.total_bytes * share) // size * size
    done = execute(
        opened.checkpoint.model,
        opened.store,
        [Request(prompt=range(PROMPT_TOKENS))],
        Deciding(policies=policies, budget_bytes=budget_bytes),
        Sampling(new_tokens=1 + tokens, ignore_eos=True),
        make_driver=make_driver,
    )
    ends_ns = done.timings.requests[0].token_ends_ns
    gaps_ns = [after - before for before, after in pairwise(ends_ns)]
    return median(gaps_ns[SETTLING:]) / 1e6


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="qwen3-30b-a3b", help="a shape")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--pinned-pool", help="host memory that moesim's experts share")
    parser.add_argument("--share", type=float, default=0.25, help="of the experts in VRAM")
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--commit", help="of the code, in a copy without its history")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {
        name: value for name, value in vars(options).items() if name not in ("output", "commit")
    }


if __name__ == "__main__":
    main()
