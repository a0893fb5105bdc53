"""Train the reference model: texts to weights and a report, in some minutes on one GPU.

``python -m moesim.backends.reference.train CORPORA... -o DIR`` reads folders of texts (see
``texts.py``; ``gather.py`` makes one), trains, writes the model's folder and judges what it wrote.
``--minutes`` measures the speed first and takes as many steps as fit; ``--steps`` takes that many,
and with the same seed, texts and machine it repeats a run.
"""

import argparse
import datetime as dt
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from moesim.backends.models import Model
from moesim.backends.reference.architecture import REFERENCE, make_model, use_dense_experts
from moesim.backends.reference.judge import judge
from moesim.backends.reference.learning import LOAD_BALANCE, Trainer, steps_per_second
from moesim.backends.reference.texts import REPORT, SEED, Split, pack_rows, read_split, share_rows
from moesim.backends.reference.upcycle import dense_shape, upcycle
from moesim.backends.reference.vocabulary import make_tokenizer

WARM_UP_STEPS = 100
TASK_SIZE_POWER = 0.7
MOST_EPOCHS = 4.0
SHARD_SIZE = "13MB"
UNTRAINED_ROWS = 8
SAY_EVERY_STEPS = 100


def make_rows(
    split: Split, *, wanted: int, row_tokens: int, seed: int
) -> tuple[NDArray[np.uint16], dict[str, int]]:
    """Return all rows of the run in the order they are read, and their number by task."""
    rng = np.random.default_rng(seed)
    epochs = {task: [pack_rows(split.train[task], row_tokens, rng)] for task in sorted(split.train)}
    available = {task: len(rows[0]) for task, rows in epochs.items()}
    given = share_rows(available, wanted, MOST_EPOCHS, TASK_SIZE_POWER)
    pieces = []
    for task in sorted(epochs):
        while sum(map(len, epochs[task])) < given[task]:
            epochs[task].append(pack_rows(split.train[task], row_tokens, rng))
        pieces.append(np.concatenate(epochs[task])[: given[task]])
    rows = np.concatenate(pieces)
    return rows[rng.permutation(len(rows))], given


def batches(rows: NDArray[np.uint16], batch_rows: int) -> Iterator[NDArray[np.uint16]]:
    """Yield whole batches; the rest is left."""
    for start in range(0, len(rows) - batch_rows + 1, batch_rows):
        yield rows[start : start + batch_rows]


def learn(
    trainer: Trainer,
    rows: NDArray[np.uint16],
    batch_rows: int,
    span: tuple[float, float] = (0.0, 1.0),
) -> list[list[float]]:
    """Take every batch once; return step, bits per token and balance every 100 steps.

    Args:
        trainer: The model.
        rows: Texts, in order.
        batch_rows: Rows of a batch.
        span: Which part of the whole run this is, for the rate.
    """
    steps = len(rows) // batch_rows
    curve: list[list[float]] = []
    for step, batch in enumerate(batches(rows, batch_rows)):
        warmth = min(1.0, (step + 1) / WARM_UP_STEPS)
        loss, balance = trainer.step(
            batch, progress=span[0] + (span[1] - span[0]) * step / steps, warmth=warmth
        )
        if step % SAY_EVERY_STEPS == 0 or step == steps - 1:
            curve.append([step, float(loss) / math.log(2), float(balance)])
            say(f"step {step}: {curve[-1][1]:.3f} bits per token, balance {curve[-1][2]:.3f}")
    trainer.settle()
    return curve


def learn_upcycled(
    rows: NDArray[np.uint16], options: argparse.Namespace, device: torch.device
) -> tuple[Trainer, list[list[float]]]:
    """Learn dense for half the steps, then as a MoE whose experts begin as copies.

    The optimiser begins anew with the MoE; the rate goes on falling where it was.
    """
    shape = replace(REFERENCE, layers=options.layers)
    torch.manual_seed(options.seed)
    dense: Model = make_model(dense_shape(shape)).to(device)
    use_dense_experts(dense)
    half = options.steps // 2 * options.batch_rows
    trainer = Trainer(dense, rate=options.rate, compiled=options.compile)
    curve = learn(trainer, rows[:half], options.batch_rows, (0.0, 0.5)) if half else []
    moe = upcycle(dense, shape)
    use_dense_experts(moe)
    trainer = Trainer(moe, rate=options.rate, compiled=options.compile)
    return trainer, curve + learn(trainer, rows[half:], options.batch_rows, (0.5, 1.0))


def write_model(model: Model, folder: Path) -> None:
    """Write weights in bfloat16, configuration and tokenizer as a folder of transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=SHARD_SIZE)
    make_tokenizer().save_pretrained(folder)


def read_model(folder: Path, device: torch.device) -> Model:
    """Read back the very weights that were written, to be computed in float32."""
    model: Model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    use_dense_experts(model)
    return model.to(device).eval()


def provenance(
    options: argparse.Namespace, split: Split, given: Mapping[str, int]
) -> dict[str, Any]:
    """Say what made the weights."""
    cuda = torch.cuda.is_available()
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "recipe": "python -m moesim.backends.reference.train",
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "driver": _driver() if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "seed": options.seed,
        "steps": options.steps,
        "batch_rows": options.batch_rows,
        "row_tokens": options.row_tokens,
        "rate": options.rate,
        "upcycled": bool(getattr(options, "upcycle", False)),
        "load_balance": getattr(options, "load_balance", LOAD_BALANCE),
        "texts_sha256": dict(sorted(split.source_sha256.items())),
        "train_bytes": split.train_bytes(),
        "rows_read": dict(sorted(given.items())),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    return done.stdout.strip() or None


def say(line: str) -> None:
    """Tell the progress."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a script's progress


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the reference model.")
    parser.add_argument("corpora", type=Path, nargs="+", help="folders with a manifest.json")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0, help="of training")
    parser.add_argument("--steps", type=int, help="exactly so many steps, in place of --minutes")
    parser.add_argument("--batch-rows", type=int, default=96)
    parser.add_argument("--row-tokens", type=int, default=1_025)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--layers", type=int, default=12, help="fewer for a test of the recipe")
    parser.add_argument("--upcycle", action="store_true", help="dense for half the steps")
    parser.add_argument("--judge-rows", type=int, help="held-out rows of a task at most")
    parser.add_argument("--compile", action="store_true", help="compile the decoder layers")
    return parser.parse_args()


def main() -> None:
    """Train, write, judge."""
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    split = read_split(options.corpora, options.seed)

    def fresh() -> Model:
        torch.manual_seed(options.seed)
        model = make_model(replace(REFERENCE, layers=options.layers))
        use_dense_experts(model)
        return model.to(device)

    def make_trainer() -> Trainer:
        return Trainer(fresh(), rate=options.rate, compiled=options.compile)

    if options.steps is None:
        speed = steps_per_second(make_trainer, options.batch_rows, options.row_tokens)
        options.steps = max(1, int(speed * 60 * options.minutes))
        say(f"{speed * options.batch_rows * options.row_tokens / 1e6:.2f} MB of text per second")
    rows, given = make_rows(
        split,
        wanted=options.steps * options.batch_rows,
        row_tokens=options.row_tokens,
        seed=options.seed,
    )
    options.steps = len(rows) // options.batch_rows
    say(f"{options.steps} steps over {rows.size / 1e6:.1f} MB of text")
    started = time.perf_counter()
    if options.upcycle:
        trainer, curve = learn_upcycled(rows, options, device)
    else:
        trainer = make_trainer()
        curve = learn(trainer, rows, options.batch_rows)
    seconds = round(time.perf_counter() - started, 1)
    write_model(trainer.model, options.output)

    trained = judge(
        read_model(options.output, device),
        split.train,
        split.held_out,
        seed=options.seed,
        most_rows=options.judge_rows,
    )
    untrained = judge(
        fresh().eval(), split.train, split.held_out, seed=options.seed, most_rows=UNTRAINED_ROWS
    )
    report = {
        "provenance": provenance(options, split, given) | {"train_seconds": seconds},
        "curve": curve,
        "trained": trained,
        "untrained": untrained["overall"],
    }
    (options.output / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    say(json.dumps(trained["overall"], indent=1))


if __name__ == "__main__":
    main()
