"""Record the routes of a model under a lossy system: what its substitutes make of later routing.

A replay of a whole model's routes under such a system is an open loop: no later route feels what
was changed. Here the system serves while its routes are recorded, one request at a time; the trace
keeps what the routers chose and thought, and is bound to system, budget and order of prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from moesim.backends.controllers import Deciding
from moesim.backends.drivers.cuda.graph_driver import GraphDriver
from moesim.backends.drivers.threads import ThreadsDriver
from moesim.backends.execution import execute
from moesim.backends.generation import Request, Sampling
from moesim.backends.opening import open_model
from moesim.backends.prompts import Prompt
from moesim.backends.sources import Source
from moesim.simulator.commands.policies import choose_policies
from moesim.simulator.errors import InputError
from moesim.simulator.memory import MemorySpec
from moesim.simulator.progress import progress
from moesim.traces import RoutingTrace, load, write


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedRecording:
    """What is to be recorded.

    Attributes:
        model: A folder, or an id of the hub.
        device: Where it runs.
        texts: The prompts, in the order in which they are served.
        sampling: How tokens are chosen.
        system: Name or file of a lossy bundle.
        memory: ``--vram``, ``--expert-budget``, ``--slots``.
        profile_trace: For policies profiled offline.
        said: Fields of the header that only the user knows.
    """

    model: str
    device: torch.device
    texts: Sequence[Prompt]
    sampling: Sampling
    system: str
    memory: tuple[str | None, str | None, str | None]
    profile_trace: Path | None
    said: Mapping[str, str | None]


def record_closed(wanted: ClosedRecording, target: Path) -> RoutingTrace:
    """Serve the prompts under the system and write its routes.

    Raises:
        InputError: The system loses nothing: its routes are those of any recording.
        MoesimError: As `execute`.
    """
    chosen = choose_policies(wanted.system, None, None, None, None, ())
    profile = None if wanted.profile_trace is None else load(wanted.profile_trace)
    if not Deciding(policies=chosen.policies, budget_bytes=0).is_lossy:
        raise InputError(
            f"--system {wanted.system}: it changes no route, so there is no loop to close; record "
            "without --system, and replay the trace under it"
        )
    opened = open_model(Source(wanted.model, "checkpoint", None, None), wanted.device)
    checkpoint = opened.checkpoint
    requests = [
        Request(prompt=checkpoint.tokenizer(text.text).input_ids, task=text.task)
        for text in wanted.texts
    ]
    sampling = wanted.sampling
    lengths = [len(request.prompt) + sampling.new_tokens for request in requests]
    deciding = Deciding(
        policies=chosen.policies,
        budget_bytes=opened.budget_bytes(MemorySpec(*wanted.memory), max(lengths)),
        system=chosen.system,
        seed=sampling.seed,
        profile_trace=profile,
    )
    with progress("recording", sum(lengths) - len(lengths), "tokens") as on_step:
        done = execute(
            checkpoint.model,
            opened.store,
            requests,
            deciding,
            sampling,
            name=checkpoint.name,
            make_driver=ThreadsDriver if wanted.device.type == "cpu" else GraphDriver,
            on_step=on_step,
        )
    parameter = next(checkpoint.model.parameters())
    header = done.trace.header.model_copy(
        update={
            "revision": checkpoint.revision,
            "tokenizer_hash": checkpoint.tokenizer_hash,
            "sampling": sampling.describe(),
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "recorder": (
                f"moesim {version('moesim')}, torch {torch.__version__},"
                f" transformers {transformers.__version__}, {parameter.device.type}"
            ),
            **wanted.said,
        }
    )
    trace = replace(done.trace, header=header)
    trace.validate(target.name)
    write(trace, target)
    return trace
