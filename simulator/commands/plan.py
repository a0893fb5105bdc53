"""``moesim plan``: what it takes to meet an objective, and what fits."""

from collections.abc import Mapping as Table
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.simulator.commands.options import (
    Cache,
    CostOf,
    ExpertBudget,
    FirstRequests,
    Mapping,
    Model,
    Prefetch,
    Runtime,
    Schedule,
    Slots,
    SystemName,
    Trace,
    Vram,
    WeightsFormat,
)

if TYPE_CHECKING:
    from moesim.simulator.planning import Candidate
    from moesim.simulator.sweeps.file import RunOptions

OBJECTIVE = "What is asked for (at least one)"
CAPACITY = "Or what fits, on every machine"

_OBJECTIVE = "an objective, without --fit"
_PROMPT, _BATCH = "--fit prompt", "--fit batch"
_QUESTIONS = ("prompt", "batch")


def plan(
    trace: Trace,
    hardware: Annotated[
        list[str],
        typer.Option(
            "--hardware",
            help="Machine that may be bought, NAME or NAME=PRICE; repeated. Without prices, name "
            "the cheapest first.",
        ),
    ],
    tpot: Annotated[
        float | None,
        typer.Option("--tpot", help="Most ms per token, mean.", rich_help_panel=OBJECTIVE),
    ] = None,
    p99_tpot: Annotated[
        float | None,
        typer.Option("--p99-tpot", help="The same, 99th percentile.", rich_help_panel=OBJECTIVE),
    ] = None,
    ttft: Annotated[
        float | None,
        typer.Option("--ttft", help="Most ms to the first token.", rich_help_panel=OBJECTIVE),
    ] = None,
    fit: Annotated[
        list[str] | None,
        typer.Option(
            "--fit",
            help="prompt: how long a prompt fits; batch: how many requests fit together; repeated.",
            rich_help_panel=CAPACITY,
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            "--max-batch",
            min=1,
            help="Of prompt: requests that run together, all so long. Default 1.",
            rich_help_panel=CAPACITY,
        ),
    ] = None,
    answer_tokens: Annotated[
        int | None,
        typer.Option(
            "--answer-tokens",
            min=1,
            help="Of prompt: length of each answer. Default 1.",
            rich_help_panel=CAPACITY,
        ),
    ] = None,
    context_tokens: Annotated[
        int | None,
        typer.Option(
            "--context-tokens",
            min=1,
            help="Of batch: prompt and answer of each. Default 4096.",
            rich_help_panel=CAPACITY,
        ),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            "--chunk",
            min=1,
            help="Of both: prompt tokens of a step at most; prompts are taken whole if left out.",
            rich_help_panel=CAPACITY,
        ),
    ] = None,
    vram: Vram = None,
    expert_budget: ExpertBudget = None,
    slots: Slots = None,
    mapping: Mapping = None,
    requests: FirstRequests = None,
    runtime: Runtime = None,
    system: SystemName = None,
    cache: Cache = None,
    prefetch: Prefetch = None,
    schedule: Schedule = None,
    model: Model = None,
    weights_format: WeightsFormat = None,
    cost_of: CostOf = None,
) -> None:
    """Find the cheapest machine, and the fewest expert slots on it, that meet an objective.

    By halving, a dozen runs for each machine; says why for each. Exit code 1 if none will do.

    moesim plan TRACE --tpot 60 --hardware rtx4060-laptop=900 --hardware rtx4090=2600

    moesim plan TRACE --fit prompt --slots 50% --hardware rtx4090
    """
    from moesim.simulator.planning import search
    from moesim.simulator.progress import progress
    from moesim.simulator.sweeps.file import RunOptions
    from moesim.simulator.tables import console

    _check_uses(
        fit or (),
        {
            "--tpot": (tpot, (_OBJECTIVE,)),
            "--p99-tpot": (p99_tpot, (_OBJECTIVE,)),
            "--ttft": (ttft, (_OBJECTIVE,)),
            "--requests": (requests, (_OBJECTIVE,)),
            "--cache": (cache, (_OBJECTIVE,)),
            "--prefetch": (prefetch, (_OBJECTIVE,)),
            "--schedule": (schedule, (_OBJECTIVE,)),
            "--max-batch": (max_batch, (_PROMPT,)),
            "--answer-tokens": (answer_tokens, (_PROMPT,)),
            "--context-tokens": (context_tokens, (_BATCH,)),
            "--chunk": (chunk, (_PROMPT, _BATCH)),
            "--vram": (vram, (_PROMPT, _BATCH)),
            "--expert-budget": (expert_budget, (_PROMPT, _BATCH)),
            "--slots": (slots, (_PROMPT, _BATCH)),
        },
    )
    candidates = [_candidate(text) for text in hardware]
    options = RunOptions(
        trace=str(trace),
        hardware=candidates[0].hardware,
        map=mapping,
        requests=requests,
        runtime=runtime,
        system=system,
        cache=cache,
        prefetch=prefetch,
        schedule=schedule,
        model=model,
        format=weights_format,
        cost_of=cost_of,
    )
    if fit:
        memory = {"vram": vram, "expert_budget": expert_budget, "slots": slots}
        options = options.model_copy(update=memory)
        lines = [
            line
            for candidate in candidates
            for line in _capacity(
                options.model_copy(update={"hardware": candidate.hardware}),
                prompt=(max_batch or 1, answer_tokens or 1) if "prompt" in fit else None,
                context=(context_tokens or 4096) if "batch" in fit else None,
                chunk=chunk,
            )
        ]
        for line in lines:
            console().print(line)
        return
    given = {"mean_tpot_ms": tpot, "p99_tpot_ms": p99_tpot, "mean_ttft_ms": ttft}
    limits = {name: limit for name, limit in given.items() if limit is not None}
    with progress("searching", None, "runs") as on_run:
        verdicts = list(search(options, candidates, limits, on_run=on_run))
    out = console()
    for verdict in verdicts:
        price = "" if verdict.candidate.price is None else f" at {verdict.candidate.price:g}"
        word = "no: " if verdict.slots is None else "yes: "
        out.print(f"{verdict.candidate.hardware}{price}: {word}{verdict.reason}")
    if verdicts[-1].slots is None:
        typer.echo("moesim: none of the machines meets the objective", err=True)
        raise typer.Exit(1)
    runs = sum(verdict.runs for verdict in verdicts)
    found = verdicts[-1]
    out.print(f"cheapest: {found.candidate.hardware} with --slots {found.slots} ({runs} runs)")


def _check_uses(fit: Sequence[str], options: Table[str, tuple[object, Sequence[str]]]) -> None:
    """Refuse options that have no part in what is asked.

    Args:
        fit: The questions of what fits; without any an objective is looked for.
        options: Their values by name, and what each has a part in.

    Raises:
        UnknownNameError: No such question.
        InputError: An option is given in vain.
    """
    from moesim.simulator.errors import InputError, UnknownNameError

    for question in fit:
        if question not in _QUESTIONS:
            raise UnknownNameError("question of --fit", question, _QUESTIONS)
    asked = {f"--fit {question}" for question in fit} or {_OBJECTIVE}
    for option, (value, uses) in options.items():
        if value is not None and asked.isdisjoint(uses):
            raise InputError(f"{option} goes with {' or '.join(uses)}")


def _capacity(
    options: "RunOptions",
    *,
    prompt: tuple[int, int] | None,
    context: int | None,
    chunk: int | None,
) -> list[str]:
    """Return what fits on a machine, in a line for each question.

    Args:
        options: The run; its hardware is the machine.
        prompt: Requests that run together and output tokens of each, if prompts are asked for.
        context: Tokens of each request, if the batch is asked for.
        chunk: Prompt tokens of one step at most.
    """
    from moesim.hardware_profiles.units import format_bytes
    from moesim.simulator.capacity import largest_batch, longest_prompt
    from moesim.simulator.run_spec import costs_of

    spec = options.run_spec()
    costs = costs_of(spec)
    answers = []
    if prompt is not None:
        batch, output = prompt
        tokens, divided = longest_prompt(
            spec.memory, costs, batch=batch, output_tokens=output, chunk=chunk
        )
        answers.append((f"prompts of up to {tokens} tokens, {batch} at a time", divided))
    if context is not None:
        count, divided = largest_batch(spec.memory, costs, context_tokens=context, chunk=chunk)
        answers.append((f"up to {count} requests of {context} tokens together", divided))
    lines = []
    for answer, divided in answers:
        if divided is None:
            lines.append(f"{options.hardware}: nothing fits; give the experts less room")
            continue
        parts = [
            f"{name} {format_bytes(size)}"
            for name, size in (
                ("experts", divided.expert_bytes),
                ("dense", divided.dense_bytes),
                ("KV", divided.kv_bytes),
                ("workspace", divided.workspace_bytes),
            )
        ]
        total = format_bytes(divided.total_bytes)
        lines.append(f"{options.hardware}: {answer} ({', '.join(parts)} of {total})")
    return lines


def _candidate(text: str) -> "Candidate":
    from moesim.simulator.errors import InputError
    from moesim.simulator.planning import Candidate

    name, equals, price = text.rpartition("=")
    if not equals:
        return Candidate(text)
    try:
        return Candidate(name, float(price))
    except ValueError:
        raise InputError(f"--hardware {text}: expected NAME=PRICE, such as {name}=1600") from None
