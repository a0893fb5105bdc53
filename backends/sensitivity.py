"""How much the routing of each layer matters to each task: profiled by making it random.

eMoE (arXiv 2503.06823 sections 2.2.3 and 3.4) makes the routing of successive layers random, from
the one nearest the input on, and calls a layer insensitive for a task if the output stays like the
full model's above a threshold, such as 85 %. Likeness there is BERT's; here it is top-1 agreement,
the share of next tokens that both models hold likeliest under teacher forcing. Beside that
*progressive* profile there is the cost of each layer alone, in bits per byte, which ranks layers.

``python -m moesim.backends.sensitivity MODEL CORPORA... -o FILE.json`` profiles a reference model
on held-out documents and says how well the online estimates of ``sensitivity_online``, watched on
other rows of them, rank the layers of a task that was left out.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moesim.backends import sensitivity_online
from moesim.backends.models import Model, find_moe
from moesim.backends.reference.judge import Reroute, Routes, random_routes
from moesim.backends.reference.texts import SEED, pack_rows, read_split_of
from moesim.backends.reference.train import read_model
from moesim.backends.reference.vocabulary import BYTES
from moesim.simulator.progress import progress
from moesim.simulator.results.rows import write_text

# B rows of a batch, S tokens of a row, N bytes foretold, V vocabulary, L MoE layers, E experts.
Rows = NDArray[np.uint16]
AGREEMENT = 0.85
ROW_TOKENS = 513


@dataclass(frozen=True, slots=True)
class Profile:
    """One task's sensitivity.

    Attributes:
        bits: Bits per byte of the model as it is.
        alone_L: How many more with the routing of that layer alone random.
        progressive_L: How many more with that layer's and all before it random.
        agreement_L: Top-1 agreement with the full model under the progressive routing.
        repeats: Rank correlation of ``alone_L`` between the two halves of the bytes: no estimate
            can be held to more than the profile repeats itself.
    """

    bits: float
    alone_L: tuple[float, ...]
    progressive_L: tuple[float, ...]
    agreement_L: tuple[float, ...]
    repeats: float

    def matters_L(self, threshold: float = AGREEMENT) -> tuple[bool, ...]:
        """Return eMoE's flag s of each layer: whether agreement has fallen below the threshold."""
        return tuple(agreement < threshold for agreement in self.agreement_L)


def profile(model: Model, rows: Rows, *, seed: int = SEED) -> Profile:
    """Profile one task on its rows; every corruption draws from the same seed."""
    parts = find_moe(model)
    experts, layers = parts.experts, len(parts.layers)
    bits_N, best_N = answers(model, rows)
    half = len(bits_N) // 2
    alone, progressive, agreement = [], [], []
    for layer in range(layers):
        alone_N, _ = answers(model, rows, only(range(layer, layer + 1), experts, seed))
        alone.append(alone_N - bits_N)
        worse_N, told_N = answers(model, rows, only(range(layer + 1), experts, seed))
        progressive.append(float((worse_N - bits_N).mean()))
        agreement.append(float((told_N == best_N).float().mean()))
    return Profile(
        bits=float(bits_N.mean()),
        alone_L=tuple(float(cost_N.mean()) for cost_N in alone),
        progressive_L=tuple(progressive),
        agreement_L=tuple(agreement),
        repeats=spearman(
            [float(cost_N[:half].mean()) for cost_N in alone],
            [float(cost_N[half:].mean()) for cost_N in alone],
        ),
    )


def only(layers: Sequence[int], experts: int, seed: int) -> Reroute:
    """Return a reroute that is random in these layers and leaves the others as they are."""
    draw = random_routes(experts, torch.Generator().manual_seed(seed))

    def reroute(layer: int, logits: Tensor, gates: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return draw(layer, logits, gates, ids) if layer in layers else (gates, ids)

    return reroute


@torch.no_grad()
def answers(model: Model, rows: Rows, reroute: Reroute | None = None) -> tuple[Tensor, Tensor]:
    """Return, of every byte that is foretold, its bits and the token held likeliest; [N] each."""
    batch_BS = torch.from_numpy(rows.astype(np.int64))
    routes = Routes(model, reroute)
    try:
        logits_BSV = model(batch_BS[:, :-1], use_cache=False).logits.float()
    finally:
        routes.remove()
    targets = batch_BS[:, 1:].flatten()
    logits_NV = logits_BSV.flatten(0, 1)[targets < BYTES]
    nats_N = torch.nn.functional.cross_entropy(
        logits_NV, targets[targets < BYTES], reduction="none"
    )
    return nats_N / float(np.log(2)), logits_NV.argmax(dim=-1)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the rank correlation; equal values share the mean of their ranks.

    >>> spearman([1, 2, 3], [10, 30, 20])
    0.5
    """
    mine, others = (_ranks(np.asarray(values, np.float64)) for values in (one, other))
    mine, others = mine - mine.mean(), others - others.mean()
    spread = float(np.sqrt((mine**2).sum() * (others**2).sum()))
    return round(float((mine * others).sum()) / spread, 12) if spread else 0.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    less = (values[:, None] > values[None, :]).sum(axis=1)
    same = (values[:, None] == values[None, :]).sum(axis=1)
    ranks: NDArray[np.float64] = less + (same - 1) / 2
    return ranks


def left_out(
    profiles: Mapping[str, Profile], signs: Mapping[str, sensitivity_online.Signs]
) -> dict[str, dict[str, float]]:
    """Return by estimate and task how well it ranks the task's layers, fitted on the others alone.

    ``other tasks`` is the mean profile of the others: an estimate that never looks at the task.
    """
    found: dict[str, dict[str, float]] = {}
    for task, mine in profiles.items():
        others = [name for name in profiles if name != task]
        told = sensitivity_online.estimates(signs[task], [signs[name] for name in others], [
            profiles[name].alone_L for name in others
        ])  # fmt: skip
        told["other tasks"] = np.mean([profiles[name].alone_L for name in others], axis=0).tolist()
        for name, value_L in told.items():
            found.setdefault(name, {})[task] = spearman(value_L, mine.alone_L)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile a model and write the file; print each estimate's Spearman over the tasks."""
    parser = argparse.ArgumentParser(prog="python -m moesim.backends.sensitivity")
    parser.add_argument("model", type=Path, help="folder of a reference model's weights")
    parser.add_argument("corpora", type=Path, nargs="+", help="folders of texts, as for training")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--tasks", default="", help="comma-separated; all that the texts have")
    parser.add_argument("--rows", type=int, default=4, help=f"rows of {ROW_TOKENS} bytes of a task")
    options = parser.parse_args(arguments)
    torch.manual_seed(SEED)
    try:
        split = read_split_of(options.model, options.corpora)
    except ValueError as error:
        parser.error(str(error))
    held_out = split.held_out
    model = read_model(options.model, torch.device("cpu"))
    tasks = options.tasks.split(",") if options.tasks else sorted(held_out)
    if unknown := sorted(set(tasks) - set(held_out)):
        parser.error(f"--tasks {unknown[0]}: the texts have {', '.join(sorted(held_out))}")
    profiles, signs = {}, {}
    with progress("profiling", len(tasks), "tasks") as advance:
        for task in tasks:
            rows = pack_rows(held_out[task], ROW_TOKENS)
            if len(rows) < 2 * options.rows:
                parser.error(
                    f"--rows {options.rows}: task {task} has {len(rows)}, and as many as are "
                    f"profiled are watched; ask at most {len(rows) // 2}"
                )
            profiles[task] = profile(model, rows[: options.rows])
            signs[task] = sensitivity_online.watch(model, rows[options.rows : 2 * options.rows])
            advance(1)
    ranked = left_out(profiles, signs) if len(tasks) > 1 else {}
    document = {
        "texts": dict(split.source_sha256),
        "split_seed": split.seed,
        "versions": {name: version(name) for name in ("moesim", "torch", "transformers")},
        "rows": options.rows,
        "row_tokens": ROW_TOKENS,
        "seed": SEED,
        "tasks": {
            task: {**asdict(found), "matters_L": found.matters_L()}
            for task, found in profiles.items()
        },
        "signs": {task: {name: list(of) for name, of in signs[task].items()} for task in tasks},
        "spearman_left_out": ranked,
    }
    write_text(options.output, json.dumps(document, indent=1) + "\n")
    ranked["the profile's own halves"] = {task: of.repeats for task, of in profiles.items()}
    for name, of_task in ranked.items():
        values = sorted(of_task.values())
        sys.stdout.write(
            f"{name:>24}  mean {np.mean(values):5.2f}  least {values[0]:5.2f}"
            f"  most {values[-1]:5.2f}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
