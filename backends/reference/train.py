"""Train the reference model: texts to weights and a report, in some minutes on one GPU.

``python -m moesim.backends.reference.train CORPORA... -o DIR`` reads folders of texts (see
``texts.py``; ``gather.py`` makes one), trains, writes the model's folder and judges what it wrote.
``--minutes`` measures the speed first and takes as many steps as fit; ``--steps`` takes that many,
and with the same seed, texts and machine it repeats a run.
"""

import argparse
import datetime
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from moesim.backends.models import find_moe
from moesim.backends.reference.architecture import make_config, use_dense_experts
from moesim.backends.reference.judge import judge
from moesim.backends.reference.texts import Split, pack_rows, read_split, share_rows
from moesim.backends.reference.vocabulary import SEPARATOR, make_tokenizer

# T tokens, L MoE layers, E experts of a layer, K chosen.
WARM_UP_STEPS = 100
SPEED_STEPS = (12, 24)
TASK_SIZE_POWER = 0.7
MOST_EPOCHS = 4.0
LOAD_BALANCE = 0.01
FINAL_RATE = 0.02
SHARD_SIZE = "13MB"


def balance_loss(logits_of_layers: Sequence[Tensor], top_k: int) -> Tensor:
    """Return the load-balancing loss over the whole batch, mean over layers; 1 when even.

    It is the loss of the Switch Transformer, taken for each layer by itself.
    """
    losses = []
    for logits_TE in logits_of_layers:
        probs_TE = logits_TE.float().softmax(dim=-1)
        experts = probs_TE.shape[1]
        chosen_TK = probs_TE.topk(top_k, dim=-1).indices
        load_E = torch.zeros(experts, device=probs_TE.device).scatter_add(
            0, chosen_TK.flatten(), torch.ones_like(chosen_TK.flatten(), dtype=torch.float32)
        )
        losses.append(experts * (load_E / chosen_TK.numel() * probs_TE.mean(dim=0)).sum())
    return torch.stack(losses).mean()


def _keep_logits(module: Any, inputs: object, output: tuple[Tensor, ...]) -> None:  # noqa: ANN401 - torch's signature
    """Keep a router's logits on the router: a list would be a different graph for each layer."""
    del inputs
    module.kept_logits = output[0]


class Trainer:
    """One model on its way: its optimiser and the step."""

    def __init__(self, model: Any, *, rate: float, compiled: bool, autocast: bool) -> None:  # noqa: ANN401 - a transformers model
        """Prepare the optimiser; matrices decay, vectors don't."""
        self.model = model
        self.rate = rate
        self.device = next(model.parameters()).device
        self.autocast = autocast
        matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=rate,
            betas=(0.9, 0.95),
            fused=self.device.type == "cuda",
        )
        parts = find_moe(model)
        self.top_k = parts.top_k
        self.routers: list[Any] = [layer.router for layer in parts.layers]
        for router in self.routers:
            router.register_forward_hook(_keep_logits)
        if compiled:
            for layer in parts.layers:
                layer.decoder_layer.compile()

    def step(self, rows: NDArray[np.uint16], progress: float) -> tuple[Tensor, Tensor]:
        """Learn from one batch; ``progress`` in [0, 1] sets the rate by a cosine.

        Returns:
            loss: Cross-entropy in nats per token, on the device.
            balance: Load-balancing loss, on the device.
        """
        batch = torch.from_numpy(rows.astype(np.int64)).to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            logits = self.model(batch[:, :-1], use_cache=False).logits
            loss = nn.functional.cross_entropy(
                logits.float().flatten(0, 1), batch[:, 1:].flatten()
            )
            balance = balance_loss([router.kept_logits for router in self.routers], self.top_k)
        (loss + LOAD_BALANCE * balance).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * cosine
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss.detach(), balance.detach()


def make_batches(
    split: Split, *, steps: int, batch_rows: int, row_tokens: int, seed: int
) -> tuple[NDArray[np.uint16], dict[str, int]]:
    """Return all rows of the training run in the order they are read, and their number by task."""
    rng = np.random.default_rng(seed)
    epochs = {task: [pack_rows(split.train[task], row_tokens, rng)] for task in sorted(split.train)}
    available = {task: len(rows[0]) for task, rows in epochs.items()}
    given = share_rows(available, steps * batch_rows, MOST_EPOCHS, TASK_SIZE_POWER)
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


def measure_speed(trainer_of: Any, batch_rows: int, row_tokens: int, seed: int) -> float:  # noqa: ANN401 - a function that makes a throw-away trainer
    """Return steps per second of a throw-away model on random bytes."""
    rng = np.random.default_rng(seed)
    trainer = trainer_of()
    started = 0.0
    warm, total = SPEED_STEPS
    for step in range(total):
        if step == warm:
            _settle(trainer.device)
            started = time.perf_counter()
        trainer.step(rng.integers(0, SEPARATOR, (batch_rows, row_tokens), dtype=np.uint16), 0.5)
    _settle(trainer.device)
    return (total - warm) / (time.perf_counter() - started)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _driver() -> str | None:
    if not torch.cuda.is_available():
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    return done.stdout.strip() or None


def provenance(options: argparse.Namespace, split: Split, given: Mapping[str, int]) -> dict[str, Any]:
    """Say what made the weights."""
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "recipe": "python -m moesim.backends.reference.train",
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "driver": _driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "seed": options.seed,
        "steps": options.steps,
        "batch_rows": options.batch_rows,
        "row_tokens": options.row_tokens,
        "rate": options.rate,
        "load_balance": LOAD_BALANCE,
        "texts_sha256": dict(sorted(split.source_sha256.items())),
        "train_bytes": {task: sum(map(len, docs)) for task, docs in sorted(split.train.items())},
        "rows_read": dict(sorted(given.items())),
    }


def main() -> None:
    """Train, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("corpora", type=Path, nargs="+", help="folders of texts with a manifest.json")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.0, help="of training")
    parser.add_argument("--steps", type=int, help="exactly so many steps, in place of --minutes")
    parser.add_argument("--batch-rows", type=int, default=96)
    parser.add_argument("--row-tokens", type=int, default=1_025)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=20_261_124)
    parser.add_argument("--layers", type=int, default=12, help="fewer for a test of the recipe")
    parser.add_argument("--judge-rows", type=int, help="held-out rows of a task at most")
    parser.add_argument("--compile", action="store_true", help="compile the decoder layers")
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    split = read_split(options.corpora, options.seed)

    def fresh() -> Any:  # noqa: ANN401 - a transformers model
        torch.manual_seed(options.seed)
        model = transformers.Qwen3MoeForCausalLM(make_config(layers=options.layers)).to(device)
        use_dense_experts(model)
        return model

    def trainer() -> Trainer:
        return Trainer(
            fresh(), rate=options.rate, compiled=options.compile, autocast=device.type == "cuda"
        )

    if options.steps is None:
        speed = measure_speed(trainer, options.batch_rows, options.row_tokens, options.seed)
        options.steps = max(1, int(speed * 60 * options.minutes))
        _say(f"{speed:.2f} steps/s, {speed * options.batch_rows * options.row_tokens / 1e6:.2f} MB/s")
    rows, given = make_batches(
        split,
        steps=options.steps,
        batch_rows=options.batch_rows,
        row_tokens=options.row_tokens,
        seed=options.seed,
    )
    options.steps = len(rows) // options.batch_rows
    _say(f"{options.steps} steps over {rows.size / 1e6:.1f} MB of text")
    learner = trainer()
    started = time.perf_counter()
    curve = []
    for step, batch in enumerate(batches(rows, options.batch_rows)):
        warm = min(1.0, (step + 1) / WARM_UP_STEPS)
        learner.rate = options.rate * warm
        loss, balance = learner.step(batch, step / options.steps)
        if step % 100 == 0 or step == options.steps - 1:
            curve.append([step, float(loss) / math.log(2), float(balance)])
            _say(f"step {step}: {curve[-1][1]:.3f} bits per token, balance {curve[-1][2]:.3f}")
    _settle(device)
    seconds = time.perf_counter() - started

    options.output.mkdir(parents=True, exist_ok=True)
    model = learner.model
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(options.output, max_shard_size=SHARD_SIZE)
    make_tokenizer().save_pretrained(options.output)
    report = {
        "provenance": provenance(options, split, given) | {"train_seconds": round(seconds, 1)},
        "curve": curve,
        "trained": _judge_written(options.output, split, options, device),
        "untrained": judge(
            fresh().eval(), split.train, split.held_out, seed=options.seed, most_rows=8
        )["overall"],
    }
    (options.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    _say(json.dumps(report["trained"]["overall"], indent=1))


def _judge_written(
    folder: Path, split: Split, options: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Judge the very weights that were written, in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    use_dense_experts(model)
    return judge(
        model.to(device).eval(),
        split.train,
        split.held_out,
        seed=options.seed,
        most_rows=options.judge_rows,
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a script's progress


if __name__ == "__main__":
    main()
