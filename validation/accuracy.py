"""What a lossy system's memory costs in accuracy, measured by execution on a trained model.

``python -m moesim.validation.accuracy MODEL CORPORA... -o FILE.json`` serves held-out texts under
teacher forcing: perplexity, top-1 agreement and KL against the same model with every expert, with
intervals (``accuracy_intervals.py``). Beside each stands what time it takes on a modelled machine:
a lossy system's own routes replayed under it (closed loop), a lossless one's from the full model's.
With ``--cost-of`` routes are those of the small model and every cost is another's. Nothing here is
simulated but time. ``python -m moesim.validation.accuracy_report FILES`` sets several beside each
other.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import zip_longest
from typing import Any, TypeVar

import torch

from moesim.backends.controllers import Deciding
from moesim.backends.execution import execute
from moesim.backends.generation import Request, Sampling
from moesim.backends.loading import load_checkpoint
from moesim.backends.predictors.uses import in_order
from moesim.backends.reference.texts import Split, pack_rows, read_split_of
from moesim.backends.reference.vocabulary import BYTES
from moesim.backends.scoring import forced
from moesim.backends.store import ExpertStore
from moesim.simulator.errors import MoesimError
from moesim.simulator.progress import progress
from moesim.simulator.results.rows import write_text
from moesim.validation.accuracy_bench import Bench, Full
from moesim.validation.accuracy_charts import plot
from moesim.validation.accuracy_intervals import Losses, against
from moesim.validation.accuracy_measure import measure
from moesim.validation.accuracy_options import AGAINST, PERIOD, arms, parse
from moesim.validation.accuracy_report import table
from moesim.validation.provenance import commit_of, without_folder

Row = dict[str, Any]
T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write JSON and plot."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        bench, provenance = _set_up(options)
    except (MoesimError, ValueError) as error:
        sys.stderr.write(f"moesim: {error}\n")
        return 2
    labels = tuple(text.task for text in bench.texts)
    orders = [in_order(labels, options.order, seed) for seed in options.order_seeds]
    full = Full.of(bench, arms(1)["emoe"].policies)
    known = arms(options.period)
    chosen = options.arms.split(",") if options.arms else list(known)
    budgets = [round(share * bench.total) for share in options.shares]
    period_slots = round(options.share * bench.total)
    rows: list[Row] = []
    by_period: list[Row] = []
    with progress("serving", len(budgets) * len(chosen) + len(options.periods), "runs") as advance:
        for slots in budgets:
            found: dict[str, tuple[Row, Losses]] = {}
            for name in chosen:
                found[name] = measure(bench, full, known[name], slots, orders)
                advance(1)
            rows += _compared(found, AGAINST)
        sweep: dict[str, tuple[Row, Losses]] = {}
        for period in options.periods:
            row, losses = measure(bench, full, arms(period)["emoe"], period_slots, orders)
            sweep[str(period)] = ({"period": period, **row}, losses)
            advance(1)
        by_period = _compared(sweep, str(PERIOD))
    document = {**provenance, "rows": rows, "by_period": by_period}
    write_text(options.output, json.dumps(document, indent=1) + "\n")
    sys.stdout.write(table(rows, by_period))
    if options.plot is not None:
        plot([document], options.plot)
    return 0


def _compared(found: Mapping[str, tuple[Row, Losses]], name: str) -> list[Row]:
    """Return the rows, each beside the one of that name if there is one."""
    if name not in found:
        return [row for row, _ in found.values()]
    beside = found[name][1]
    return [
        row if key == name else row | {"against": against(losses, beside, name)}
        for key, (row, losses) in found.items()
    ]


def choose_texts(options: argparse.Namespace, split: Split) -> tuple[list[Request], list[Request]]:
    """Return the texts that are profiled and those that are scored, task after task.

    No document has texts of both, and those of either come from as many documents as there are.

    Raises:
        ValueError: A task is not there, or has too little text.
    """
    tasks = options.tasks.split(",")
    if unknown := sorted(set(tasks) - set(split.held_out)):
        raise ValueError(
            f"--tasks {unknown[0]}: the texts have {', '.join(sorted(split.held_out))}"
        )
    row_tokens = options.prompt_tokens + options.decode_tokens + 1
    fit: list[Request] = []
    scored: list[Request] = []
    for task in tasks:
        rows = [pack_rows([document], row_tokens) for document in split.held_out[task]]
        long_enough = [of_document for of_document in rows if len(of_document)]
        for texts, of_documents, wanted, option in (
            (fit, long_enough[::2], options.fit_texts, "--fit-texts"),
            (scored, long_enough[1::2], options.texts, "--texts"),
        ):
            found = in_turn(of_documents)[:wanted]
            if len(found) < wanted:
                raise ValueError(
                    f"task {task} has {len(found)} texts of {row_tokens} bytes in every other "
                    f"document, not {wanted}; ask fewer with {option}"
                )
            texts += [forced(row.tolist(), options.prompt_tokens, task) for row in found]
    return fit, scored


def in_turn(of_documents: Sequence[Iterable[T]]) -> list[T]:
    """Return the first of each document, then the second of each that has one, and so on.

    >>> in_turn(["ad", "b", "ce"])
    ['a', 'b', 'c', 'd', 'e']
    """
    places = zip_longest(*of_documents)
    return [one for place in places for one in place if one is not None]


def _set_up(options: argparse.Namespace) -> tuple[Bench, dict[str, Any]]:
    if unknown := sorted(set(filter(None, options.arms.split(","))) - set(arms(1))):
        raise ValueError(f"--arms {unknown[0]}: expected some of {', '.join(arms(1))}")
    split = read_split_of(options.model, options.corpora)
    fit, scored = choose_texts(options, split)
    checkpoint = load_checkpoint(str(options.model), torch.device("cpu"))
    store = ExpertStore.take_from(checkpoint.model)
    everything = Deciding(policies=arms(1)["lru"].policies, budget_bytes=store.total_bytes)
    profile = execute(
        checkpoint.model, store, fit, everything, Sampling(new_tokens=1, ignore_eos=True)
    ).trace
    bench = Bench(
        model=checkpoint.model,
        store=store,
        texts=scored,
        profile=profile,
        last_token=BYTES,
        hardware=options.hardware,
        cost_of=options.cost_of,
        policy_seed=options.policy_seed,
    )
    return bench, {
        "command": _command(options.words),
        "commit": commit_of(options.commit),
        "device": f"cpu, float32, threads: {options.threads}",
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "texts": dict(split.source_sha256),
        "tasks": options.tasks.split(","),
        "scored_texts": len(scored),
        "fit_texts": len(fit),
        "prompt_tokens": options.prompt_tokens,
        "decode_tokens": options.decode_tokens,
        "order": options.order,
        "order_seeds": list(options.order_seeds),
        "policy_seed": options.policy_seed,
        "split_seed": split.seed,
        "hardware": options.hardware,
        "cost_of": options.cost_of,
        "profile_trace": profile.content_hash(),
        "versions": {name: version(name) for name in ("moesim", "torch", "transformers")},
    }


def _command(words: Sequence[str]) -> str:
    return f"python -m moesim.validation.accuracy {shlex.join(map(without_folder, words))}"


if __name__ == "__main__":
    sys.exit(main())
