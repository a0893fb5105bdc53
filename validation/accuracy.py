"""What a lossy system's memory costs in accuracy, measured by execution on a trained model.

``python -m moesim.validation.accuracy MODEL CORPORA... -o FILE.json`` serves held-out texts under
teacher forcing: perplexity, top-1 agreement and KL against the same model with every expert. Beside
each stands what time it takes on a modelled machine: a lossy system's own routes replayed under it
(closed loop), a lossless one's from the full model's. With ``--cost-of`` routes are those of the
small model and every cost is another's. Nothing here is simulated but time.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from moesim.backends.controllers import Deciding
from moesim.backends.execution import Execution, Keep, execute
from moesim.backends.generation import Request, Sampling
from moesim.backends.loading import load_checkpoint
from moesim.backends.predictors.uses import in_order
from moesim.backends.reference.texts import pack_rows, read_split
from moesim.backends.reference.vocabulary import BYTES
from moesim.backends.scoring import forced, foretold, in_answers, score, targets
from moesim.backends.store import ExpertStore
from moesim.simulator.errors import MoesimError
from moesim.simulator.memory import MemorySpec
from moesim.simulator.progress import progress
from moesim.simulator.registry import Axis
from moesim.simulator.results import write_text
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import prepare
from moesim.traces import RoutingTrace
from moesim.validation.accuracy_options import arms, parse
from moesim.validation.accuracy_report import plot_periods, table

# N tokens foretold, V vocabulary.
SEED = 20261124
FIT_SHARE = 0.5
"""Of the texts, the first: served by the full model alone, as the profile of static sets."""
REPLAYED = (
    "loop",
    "mean_ttft_ms",
    "mean_tpot_ms",
    "bytes_total",
    "bytes_rebalance",
    "rerouted",
    "skipped",
    "evidence",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A model, the texts that it is served, and the machine whose time is told.

    Attributes:
        requests: The texts that are scored, in the order served.
        profile: The full model's routes on other texts.
        counts_N: Which tokens count: bytes, not what parts texts.
        hardware: Profile of the machine.
        cost_of: Whose costs the routes are charged; None takes the model's own bytes.
    """

    model: Any
    store: ExpertStore
    requests: Sequence[Request]
    profile: RoutingTrace
    counts_N: Tensor
    hardware: str
    cost_of: str | None

    def serve(
        self, policies: Mapping[Axis, str], slots: int, requests: Sequence[Request] | None = None
    ) -> Execution:
        """Execute the texts under policies with room for so many experts."""
        deciding = Deciding(
            policies=policies,
            budget_bytes=slots * max(self.store.sizes_L),
            seed=SEED,
            profile_trace=self.profile,
        )
        return execute(
            self.model,
            self.store,
            self.requests if requests is None else requests,
            deciding,
            Sampling(new_tokens=1, ignore_eos=True),
            keep=Keep(logits=True, prompt_logits=True),
        )

    def replay(
        self, policies: Mapping[Axis, str], slots: int, trace: RoutingTrace
    ) -> dict[str, Any]:
        """Return the figures of a replay that stand beside an execution's."""
        spec = RunSpec(
            trace=trace,
            trace_name="served",
            hardware=self.hardware,
            policies=policies,
            memory=MemorySpec(slots=str(slots)),
            cost_of=self.cost_of,
            profile_trace=self.profile,
            seed=SEED,
        )
        row = prepare(spec).replay().row
        return {name: row[name] for name in REPLAYED}


@dataclass(frozen=True, slots=True)
class Full:
    """What the model says with every expert, and its routes."""

    logits_NV: Tensor
    trace: RoutingTrace


def measure(
    bench: Bench, full: Full, name: str, policies: Mapping[Axis, str], slots: int
) -> dict[str, Any]:
    """Execute one arm at one budget and return its row."""
    store = bench.store
    target_N = targets(bench.requests)
    is_lossy = Deciding(policies=policies, budget_bytes=0).is_lossy
    row: dict[str, Any] = {
        "arm": name,
        "slots": slots,
        "share": slots / (store.parts.experts * len(store.sizes_L)),
        "policies": dict(policies),
    }
    decode_N = bench.counts_N & in_answers(bench.requests)

    def scored(logits_NV: Tensor) -> dict[str, Any]:
        decode = score(logits_NV, full.logits_NV, target_N, decode_N) if decode_N.any() else None
        everywhere = score(logits_NV, full.logits_NV, target_N, bench.counts_N)
        return asdict(everywhere) | {"decode": None if decode is None else asdict(decode)}

    if not is_lossy:
        replayed = bench.replay(policies, slots, full.trace)
        return row | scored(full.logits_NV) | replayed | {"changed": 0.0}
    done = bench.serve(policies, slots)
    counts, choices = done.counts, done.trace.expert_TLK.size
    closed = bench.replay(policies, slots, done.trace)
    opened = bench.replay(policies, slots, full.trace)
    return (
        row
        | scored(foretold(done))
        | closed
        | {
            "changed": (counts.rerouted + counts.skipped) / choices,
            "executed_bytes": counts.bytes_total,
            "drift": drift(full.trace, done.trace),
            "open_loop": opened | {"changed": (opened["rerouted"] + opened["skipped"]) / choices},
        }
    )


def drift(recorded: RoutingTrace, served: RoutingTrace) -> float:
    """Return the share of the routers' own choices that are not those of the full model."""
    ours_TLK, theirs_TLK = served.expert_TLK, recorded.expert_TLK
    is_same = (ours_TLK[..., :, None] == theirs_TLK[..., None, :]).any(axis=-1)
    return 1 - float(is_same.mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write JSON and plot."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        bench, provenance = _set_up(options)
    except (MoesimError, ValueError) as error:
        sys.stderr.write(f"moesim: {error}\n")
        return 2
    total = bench.store.parts.experts * len(bench.store.sizes_L)
    watched = arms(1)["emoe"]  # all experts fit: nothing is rerouted, and probabilities are kept
    done = bench.serve(watched, total)
    full = Full(foretold(done), _unbound(done.trace))
    chosen = [name for name in arms(1) if not options.arms or name in options.arms.split(",")]
    cells = [
        (name, arms(options.period)[name], round(share * total))
        for share in options.shares
        for name in chosen
    ]
    sweep = [(period, arms(period)["emoe"]) for period in options.periods]
    rows, by_period = [], []
    with progress("serving", len(cells) + len(sweep), "runs") as advance:
        for name, policies, slots in cells:
            rows.append(measure(bench, full, name, policies, slots))
            advance(1)
        for period, policies in sweep:
            row = measure(bench, full, "emoe", policies, round(options.share * total))
            by_period.append({"period": period, **row})
            advance(1)
    document = {**provenance, "rows": rows, "by_period": by_period}
    write_text(options.output, json.dumps(document, indent=1) + "\n")
    sys.stdout.write(table(rows, by_period))
    if options.plot is not None:
        plot_periods(by_period, options.plot)
    return 0


def _set_up(options: argparse.Namespace) -> tuple[Bench, dict[str, Any]]:
    split = read_split(options.corpora, SEED)
    tasks = options.tasks.split(",")
    if unknown := sorted(set(tasks) - set(split.held_out)):
        raise ValueError(
            f"--tasks {unknown[0]}: the texts have {', '.join(sorted(split.held_out))}"
        )
    row_tokens = options.prompt_tokens + options.decode_tokens + 1
    texts = []
    for task in tasks:
        of_task = pack_rows(split.held_out[task], row_tokens)[: options.texts]
        if len(of_task) < options.texts:
            raise ValueError(
                f"task {task} has {len(of_task)} texts of {row_tokens} bytes; ask fewer"
            )
        texts += [forced(row.tolist(), options.prompt_tokens, task) for row in of_task]
    first = round(options.texts * FIT_SHARE)
    each = [texts[begin : begin + options.texts] for begin in range(0, len(texts), options.texts)]
    fit = [text for of_task in each for text in of_task[:first]]
    scored = [text for of_task in each for text in of_task[first:]]
    order = in_order(tuple(text.task for text in scored), options.order, SEED)
    requests = [scored[at] for at in order]
    checkpoint = load_checkpoint(str(options.model), torch.device("cpu"))
    store = ExpertStore.take_from(checkpoint.model)
    everything = Deciding(policies=arms(1)["lru"], budget_bytes=store.total_bytes)
    profile = execute(
        checkpoint.model, store, fit, everything, Sampling(new_tokens=1, ignore_eos=True)
    ).trace
    bench = Bench(
        model=checkpoint.model,
        store=store,
        requests=requests,
        profile=profile,
        counts_N=targets(requests) < BYTES,
        hardware=options.hardware,
        cost_of=options.cost_of,
    )
    return bench, {
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "texts": dict(split.source_sha256),
        "tasks": tasks,
        "scored_texts": len(requests),
        "fit_texts": len(fit),
        "prompt_tokens": options.prompt_tokens,
        "decode_tokens": options.decode_tokens,
        "order": options.order,
        "seed": SEED,
        "hardware": options.hardware,
        "cost_of": options.cost_of,
        "profile_trace": profile.content_hash(),
        "versions": {name: version(name) for name in ("moesim", "torch", "transformers")},
    }


def _unbound(trace: RoutingTrace) -> RoutingTrace:
    """Return routes under which nothing was rerouted as those of the full model."""
    return replace(trace, header=trace.header.model_copy(update={"closed_loop": None}))


if __name__ == "__main__":
    sys.exit(main())
