"""What a user of ``moesim execute`` asks for, and what of it can be refused without torch."""

import math
from dataclasses import dataclass
from pathlib import Path

from moesim.backends.sources import Source
from moesim.simulator.errors import InputError, UnknownNameError
from moesim.simulator.gpus.placement import check_name
from moesim.simulator.tiers.plan import TierSpec, lent_by
from moesim.traces.store import SUFFIXES

BACKENDS = ("cpu", "cuda", "cuda-eager")
"""Threads; a GPU with decode in graphs and our kernels; a GPU with transformers' own modules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The options of the command, as they were given.

    Attributes:
        axes: Policies that override the system's: cache, prefetch, schedule.
        max_batch: Requests that run together; ``chunk`` caps the prompt tokens of a step.
        arrivals: Who comes when; the options from here to ``kv_reserve`` are those of a replay.
        memory: ``--vram``, ``--expert-budget``, ``--slots``.
        lent: What another GPU lends.
        gpus: How many compute, with experts placed as ``placement`` says.
    """

    source: Source
    prompts: Path | None
    routes: Path | None
    system: str | None
    axes: tuple[str | None, str | None, str | None]
    policy_modules: tuple[str, ...]
    memory: tuple[str | None, str | None, str | None]
    lent: TierSpec
    gpus: int
    placement: str
    backend: str
    threads: int | None
    max_batch: int | None
    chunk: int | None
    arrivals: str | None
    requests: int | None
    batching: str | None
    slo: tuple[str, ...]
    max_waiting: int | None
    kv: str | None
    kv_reserve: str | None
    new_tokens: int
    max_prompts: int | None
    temperature: float
    seed: int
    ignore_eos: bool
    horizons: int
    hardware: str | None
    profile_trace: Path | None
    output: Path | None
    json_out: str | None


def check_wishes(wishes: Wishes) -> None:
    """Refuse what cannot be done before anything slow begins.

    Raises:
        InputError: One line that names the option, its value and the way out.
    """
    if wishes.backend not in BACKENDS:
        raise UnknownNameError("backend", wishes.backend, BACKENDS)
    wishes.source.check()
    lent_by(wishes.lent)
    check_name(wishes.placement)
    if wishes.gpus > 1 and wishes.backend == "cuda":
        raise InputError(
            f"--gpus {wishes.gpus}: decode in graphs is on one GPU; take --backend cuda-eager, or "
            "cpu, which plays them in memory"
        )
    if (wishes.prompts is None) == (wishes.routes is None):
        raise InputError("give either --prompts FILE or --routes TRACE")
    if wishes.source.is_random and wishes.routes is None:
        raise InputError(
            "--weights random: such a model has nothing to say; serve a trace with --routes TRACE"
        )
    if wishes.arrivals is None and wishes.requests is not None:
        raise InputError(
            f"--requests {wishes.requests}: so many would arrive; add --arrivals, or take "
            f"--max-prompts {wishes.requests} of those there are"
        )
    if not math.isfinite(wishes.temperature):
        raise InputError(f"--temperature {wishes.temperature}: give a finite number, 0 or above")
    if wishes.output is not None and wishes.output.suffix not in SUFFIXES:
        raise InputError(f"{wishes.output}: give a file that ends in one of {SUFFIXES}")
    in_json = Path(wishes.json_out) if wishes.json_out not in (None, "-") else None
    for path in (wishes.output, in_json):
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; make it first")
