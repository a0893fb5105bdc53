"""Train narrow models with the routing shapes of public ones, and record their traces.

``python -m moesim.backends.reference.twins CORPORA... -o DIR`` reads the texts as ``train.py`` does
and, for each twin, learns for the minutes given, says what it reached on held-out text, and records
held-out pieces of five tasks: all of them to ``NAME.safetensors``, and as many as fit into
``--sample-mib`` to ``NAME.npz``. The weights stay in DIR, and ``traces.json`` there lists every
trace with its SHA-256. Started again, it goes on: a twin that has learned is not trained again, a
recording goes on at the piece where it was stopped, and a trace that is whole is left. With the
same texts and seed a twin reads the same rows, but the number of its steps depends on the machine's
speed, unless ``--steps`` is given: traces of another machine are alike, not equal.
"""

import argparse
import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moesim.backends.generation import Request, Sampling
from moesim.backends.loading import load_checkpoint
from moesim.backends.models import Model, find_moe
from moesim.backends.pieces import record_in_pieces
from moesim.backends.recorder import Origin, Recording
from moesim.backends.reference.architecture import (
    TWINS,
    make_model,
    use_dense_experts,
    use_grouped_experts,
)
from moesim.backends.reference.judge import measure, random_routes, reuse, usage
from moesim.backends.reference.learning import Trainer, steps_per_second
from moesim.backends.reference.prompts import choose_prompts
from moesim.backends.reference.texts import SEED, Split, check_learned, pack_rows, read_split
from moesim.backends.reference.train import learn, make_rows, provenance, say, write_model
from moesim.simulator.results.rows import write_text
from moesim.traces import write
from moesim.traces.statistics import describe
from moesim.traces.store import read

TASKS = ("python", "metamath", "dialogue", "go", "intent")
SIGNALS = ("router_top", "look_in", "look_out", "embedding", "prompt_embedding", "token")
HELD_OUT_ROWS = 3
DECIDE = (
    "minutes", "steps", "batch_rows", "row_tokens", "rate", "load_balance", "seed", "each",
    "new_tokens", "batch", "sample_mib",
)  # fmt: skip
EXPERTS = {"grouped": use_grouped_experts, "dense": use_dense_experts}
MIB = 2**20
LICENCE = "Apache-2.0; the texts' licences are in the manifests of the corpora"


def fresh(name: str, seed: int, experts: str, device: torch.device) -> Model:
    """Return an untrained twin."""
    torch.manual_seed(seed)
    model = make_model(TWINS[name])
    EXPERTS[experts](model)
    return model.to(device)


def fastest(name: str, options: argparse.Namespace, device: torch.device) -> tuple[str, float]:
    """Return the way to compute the experts that gives most steps per second here, and those.

    A way that this device can't go, or has no memory for, is left out.
    """
    speeds = {}
    for experts in EXPERTS if device.type == "cuda" else ("dense",):
        try:
            speeds[experts] = steps_per_second(
                lambda experts=experts: Trainer(  # type: ignore[misc]
                    fresh(name, options.seed, experts, device), rate=options.rate, compiled=False
                ),
                options.batch_rows,
                options.row_tokens,
            )
        except (RuntimeError, LookupError, AttributeError, TypeError) as error:
            say(f"{name}: {experts}: {str(error).partition(chr(10))[0]}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    say(f"{name}: steps per second: {speeds}")
    best = max(speeds, key=lambda experts: speeds[experts])
    return best, speeds[best]


def train_twin(
    name: str, split: Split, options: argparse.Namespace, folder: Path, device: torch.device
) -> dict[str, Any]:
    """Train one twin, write its folder and return what made it."""
    experts, speed = fastest(name, options, device)
    if options.steps is None:
        options.steps = max(1, int(speed * 60 * options.minutes))
    rows, given = make_rows(
        split,
        wanted=options.steps * options.batch_rows,
        row_tokens=options.row_tokens,
        seed=options.seed,
    )
    options.steps = len(rows) // options.batch_rows
    say(f"{name}: {options.steps} steps over {rows.size / 1e6:.1f} MB of text, {experts}")
    trainer = Trainer(
        fresh(name, options.seed, experts, device),
        rate=options.rate,
        compiled=False,
        load_balance=options.load_balance,
    )
    started = time.perf_counter()
    curve = learn(trainer, rows, options.batch_rows)
    seconds = round(time.perf_counter() - started, 1)
    write_model(trainer.model, folder)
    made = provenance(options, split, given) | {
        "recipe": "python -m moesim.backends.reference.twins",
        "shape": asdict(TWINS[name]),
        "experts": experts,
        "train_seconds": seconds,
        "text_bytes_read": int(rows.size),
    }
    return {"provenance": made, "curve": curve}


def reached(model: Model, split: Split, seed: int) -> dict[str, Any]:
    """Return bits per byte by task, with its own routes and with random ones, and the load."""
    experts = find_moe(model).experts
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    tasks: dict[str, dict[str, float]] = {}
    used: list[NDArray[np.float64]] = []
    for task in sorted(split.held_out):
        rows = pack_rows(split.held_out[task], 1_025)[:HELD_OUT_ROWS]
        bits, expert_BSLK = measure(model, rows)
        used.append(usage(expert_BSLK, experts))
        tasks[task] = {
            "bits_per_byte": bits,
            "random_routing": measure(model, rows, reroute=random_routes(experts, generator))[0],
            "reuse_at_lag_1": reuse(expert_BSLK),
        }
    share_LE = np.mean(used, axis=0)
    share_LE /= share_LE.sum(axis=1, keepdims=True)
    overall = {
        key: float(np.mean([figures[key] for figures in tasks.values()]))
        for key in ("bits_per_byte", "random_routing", "reuse_at_lag_1")
    }
    overall["least_load_over_even"] = float(share_LE.min() * experts)
    return {"overall": overall, "tasks": tasks}


def record_twin(
    name: str, split: Split, options: argparse.Namespace, folder: Path, device: torch.device
) -> dict[str, Any]:
    """Record the twin that lies in the folder: the whole trace and the sample of it."""
    checkpoint = load_checkpoint(str(folder), torch.device("cpu"))
    model = checkpoint.model.to(device)
    use_dense_experts(model)
    prompts = choose_prompts(split.held_out, TASKS, options.each, options.seed)
    requests = [
        Request(prompt=checkpoint.tokenizer(entry["prompt"]).input_ids, task=entry["task"])
        for entry in prompts
    ]
    shape = TWINS[name]
    recording = Recording(
        model=model,
        requests=requests,
        sampling=Sampling(new_tokens=options.new_tokens, temperature=0.8, ignore_eos=True),
        origin=Origin(
            model=f"moesim/twin-{name}",
            revision=checkpoint.revision,
            tokenizer_hash=checkpoint.tokenizer_hash,
            licence=LICENCE,
            source="held-out pieces of " + ", ".join(TASKS),
            notes=(
                f"narrow twin of {name}: {shape.layers} layers, {shape.experts} experts,"
                f" top-{shape.top_k}, width {shape.width}, bytes as tokens"
            ),
            is_twin=True,
        ),
        signals=SIGNALS,
        batch=options.batch,
    )
    started = time.perf_counter()
    whole = folder.parent / f"twin-{name}.safetensors"
    record_in_pieces(recording, whole)
    seconds = time.perf_counter() - started
    sample = folder.parent / f"twin-{name}.npz"
    kept = write_sample(whole, sample, int(options.sample_mib * MIB))
    trace = read(whole)
    return {
        "seconds": round(seconds, 1),
        "requests": trace.requests,
        "tokens": trace.tokens,
        "sha256": file_hash(whole),
        "sample_requests": kept,
        "sample_sha256": file_hash(sample),
        "statistics": describe(trace),
    }


def write_sample(whole: Path, sample: Path, most_bytes: int) -> int:
    """Write the first requests, of every task equally many if possible; return their number.

    Raises:
        ValueError: Not even one request fits.
    """
    trace = read(whole)
    turn = min(len(TASKS), trace.requests)
    write(trace.head(requests=turn), sample)
    requests = min(trace.requests, turn * max(1, int(most_bytes / sample.stat().st_size)))
    while requests:
        write(trace.head(requests=requests), sample)
        if sample.stat().st_size <= most_bytes:
            return requests
        requests -= turn if requests > turn else 1
    raise ValueError(f"{sample}: one request is larger than {most_bytes} bytes; allow more")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train and record topology twins.")
    parser.add_argument("corpora", type=Path, nargs="+", help="folders with a manifest.json")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--twins", default=",".join(TWINS))
    parser.add_argument("--minutes", type=float, default=3.0, help="of training, for each twin")
    parser.add_argument("--steps", type=int, help="exactly so many steps, in place of --minutes")
    parser.add_argument("--batch-rows", type=int, default=96)
    parser.add_argument("--row-tokens", type=int, default=1_025)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--load-balance", type=float, default=0.02, help="weight of that loss")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--each", type=int, default=200, help="prompts of each task")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=100, help="requests recorded together")
    parser.add_argument("--sample-mib", type=float, default=2.7)
    return parser.parse_args()


def make_twin(name: str, split: Split, options: argparse.Namespace) -> None:
    """Train, judge and record one twin, and write its report; what is there is not made again.

    Raises:
        ValueError: What is there was made with other options or texts.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = options.output / name
    path = options.output / f"twin-{name}.json"
    asked = {key: getattr(options, key) for key in DECIDE}
    report = json.loads(path.read_text()) if path.is_file() else {"asked": asked}
    if report.get("asked") != asked:
        raise ValueError(f"{path}: made with other options; delete it, or write to another folder")
    if "curve" not in report:
        torch.set_float32_matmul_precision("high")
        report |= train_twin(name, split, argparse.Namespace(**vars(options)), folder, device)
        write_json(path, report)
    check_learned(split, report["provenance"]["train_bytes"], path)
    torch.set_float32_matmul_precision("highest")
    if "reached" not in report:
        model = load_checkpoint(str(folder), torch.device("cpu")).model.to(device)
        use_dense_experts(model)
        report["reached"] = reached(model, split, options.seed)
        say(f"{name}: {json.dumps(report['reached']['overall'])}")
        write_json(path, report)
    whole = options.output / f"twin-{name}.safetensors"
    if "trace" not in report or not has_hash(whole, report["trace"]["sha256"]):
        report["trace"] = record_twin(name, split, options, folder, device)
        write_json(path, report)
        say(f"{name}: recorded {report['trace']['tokens']} tokens")


def write_json(path: Path, content: object) -> None:
    """Write a file whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def has_hash(path: Path, sha256: str) -> bool:
    """Return whether the file is there and has that SHA-256."""
    return path.is_file() and file_hash(path) == sha256


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, which is not held in memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def list_traces(output: Path) -> dict[str, dict[str, Any]]:
    """Return SHA-256 and size of every trace in the folder that its report calls whole."""
    listed = {}
    for path in sorted(output.glob("twin-*.json")):
        trace = json.loads(path.read_text()).get("trace")
        if trace is not None:
            facts = {key: trace[key] for key in ("sha256", "requests", "tokens")}
            listed[path.with_suffix(".safetensors").name] = facts
            listed[path.with_suffix(".npz").name] = {
                "sha256": trace["sample_sha256"],
                "requests": trace["sample_requests"],
            }
    return listed


def main() -> None:
    """Make every twin asked for."""
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    split = read_split(options.corpora, options.seed)
    for name in options.twins.split(","):
        make_twin(name, split, options)
        write_json(options.output / "traces.json", list_traces(options.output))


if __name__ == "__main__":
    main()
