"""How much each layer's routing matters to each request, as a signal: a task's profile, by label.

The profile is what ``python -m moesim.backends.sensitivity`` writes: for each task ``matters_L``,
eMoE's flag s of each MoE layer (arXiv 2503.06823 sections 2.2.3 and 3.4).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from moesim.traces.errors import blame
from moesim.traces.header import SignalSpec
from moesim.traces.schema import RoutingTrace

# R requests, L MoE layers.
SENSITIVITY = "sensitivity_RL"
Flags = Mapping[str, Sequence[float]]
"""How much the routing of each of L layers matters, in [0, 1], by task."""


def read_flags(path: Path, threshold: float | None = None) -> Flags:
    """Read the flags of every task off a profile.

    Args:
        path: The profile.
        threshold: A layer matters where agreement with the full model, its routing and that of all
            layers before it being random, is below this; None takes the flags as profiled (0.85).

    Raises:
        TraceError: The file is missing, or is no such profile.
    """
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
        if threshold is not None:
            return {
                task: [float(agreement < threshold) for agreement in of["agreement_L"]]
                for task, of in tasks.items()
            }
        return {task: [float(flag) for flag in of["matters_L"]] for task, of in tasks.items()}
    except OSError as error:
        blame(path.name, "file", str(error.strerror), "give a profile that exists")
    except (ValueError, KeyError, TypeError, AttributeError):
        blame(
            path.name,
            "tasks",
            "no task has matters_L",
            "write the profile with python -m moesim.backends.sensitivity",
        )


def with_sensitivity(trace: RoutingTrace, flags: Flags, name: str) -> RoutingTrace:
    """Return the trace with ``sensitivity_RL``, known when a request arrives.

    Args:
        trace: Its requests have task labels.
        flags: Of every one of those tasks.
        name: What messages call the trace.

    Raises:
        TraceError: A task has no flags, or has them for another number of layers.
    """
    for request, task in enumerate(trace.task_R):
        if task not in flags:
            there = ", ".join(sorted(flags))
            blame(name, f"request {request}", f"no profile of task {task!r}", f"there are: {there}")
        if len(flags[task]) != trace.layers:
            blame(
                name,
                f"request {request}",
                f"the profile of task {task!r} has {len(flags[task])} layers, not {trace.layers}",
                "profile the model that the trace was recorded from",
            )
    flag_RL = np.array([flags[task] for task in trace.task_R], np.float16)
    spec = SignalSpec(
        tap="routing of successive layers made random, by task",
        known_at="request_arrived",
        producer="sensitivity profile",
        evidence="derived",
    )
    signals = {**trace.header.signals, SENSITIVITY: spec}
    header = trace.header.model_copy(update={"signals": signals})
    return replace(trace, header=header, signals={**trace.signals, SENSITIVITY: flag_RL})
