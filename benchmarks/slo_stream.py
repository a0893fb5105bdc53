"""Requests of five tasks for `emoe_slo.py`: recorded lengths and arrival times, a twin's routes.

The routes are those of the shipped Mixtral twin, one recorded sequence a task. Lengths are those of
Azure's logs of 2023, which know no tasks: the two tasks of code take rows of the code log, the
others rows of the conversation log by length of the answer, each a third of them, so that tasks
differ in how long they answer as eMoE's do. Arrival times are the conversation log's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from comparison_traces import SAMPLES, _probabilities
from numpy.typing import NDArray

from moesim.traces import RoutingTrace, SignalSpec, load
from moesim.traces.request_log import load_requests

# R requests, S recorded sequences.
CODE = ("python", "go")
BY_ANSWER = ("intent", "metamath", "dialogue")
"""Tasks of the conversation log's shortest, middle and longest answers."""
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Stream:
    """Who arrives.

    Attributes:
        trace: One sequence a request, in order of arrival, labelled with its task.
        profile: The same model's sequences whose answers are as long as other rows of the logs.
        arrived_s_R: When each arrives, at one request a second on average.
        prompt_R: Tokens of each prompt.
        output_R: Tokens of each answer.
    """

    trace: RoutingTrace
    profile: RoutingTrace
    arrived_s_R: NDArray[np.float64]
    prompt_R: Ints
    output_R: Ints

    @property
    def requests(self) -> int:
        """How many there are."""
        return len(self.prompt_R)

    @property
    def task_R(self) -> tuple[str, ...]:
        """Task of each."""
        return self.trace.task_R

    def labelled(self, task_R: Sequence[str]) -> "Stream":
        """Return the same requests under other labels."""
        return replace(self, trace=replace(self.trace, task_R=tuple(task_R)))

    def write(self, path: Path) -> None:
        """Write the arrivals as the plain CSV that ``--arrivals file:`` reads."""
        lines = [
            f"{arrived_s:.9f},{prompt},{output}"
            for arrived_s, prompt, output in zip(
                self.arrived_s_R, self.prompt_R, self.output_R, strict=True
            )
        ]
        path.write_text("\n".join(["arrived_s,prompt_tokens,output_tokens", *lines, ""]), "utf-8")


def make(folder: Path, requests: int, shorten: int, *, poisson: bool, seed: int) -> Stream:
    """Return requests whose tasks are drawn alike often, one after another.

    Args:
        folder: Where the logs are.
        requests: How many.
        shorten: What every length is divided by.
        poisson: Draw the times between arrivals instead of taking the log's.
        seed: Of all draws.
    """
    rng = np.random.default_rng(seed)
    model = twin()
    rows = {task: rng.permutation(of) // shorten for task, of in _lengths(folder).items()}
    tasks = sorted(rows)
    sequence = {task: model.task_R.index(task) for task in tasks}
    task_R = [tasks[at] for at in rng.integers(len(tasks), size=requests)]
    taken_RN = [rows[task][task_R[:at].count(task)] for at, task in enumerate(task_R)]
    prompt_R, output_R = np.maximum(np.stack(taken_RN), 1).T
    later = {task: rows[task][requests:] for task in tasks}
    profile = replace(
        model.select_requests([sequence[task] for task in tasks]),
        output_tokens_R=np.array([later[task][:, 1].mean().round() for task in tasks], np.int32),
    )
    return Stream(
        model.select_requests([sequence[task] for task in task_R]),
        profile,
        _times(folder, requests, rng if poisson else None),
        prompt_R,
        output_R,
    )


def twin(name: str = "twin-mixtral-8x7b-32x8") -> RoutingTrace:
    """Return a twin with one signal: probabilities of its 2k best experts, 0 for the others."""
    found = load(SAMPLES / f"{name}.npz")
    told = SignalSpec(
        tap="probabilities of the 2k best, 0 for others",
        known_at="layer_routed",
        producer="derived",
        evidence="derived",
    )
    header = found.header.model_copy(update={"signals": {"router_probs_TLE": told}})
    return replace(found, header=header, signals={"router_probs_TLE": _probabilities(found)})


def _lengths(folder: Path) -> dict[str, Ints]:
    """Return prompt and output tokens of the rows that each task draws from, two columns each."""
    code, conversation = (
        np.stack([log.prompt_tokens_R, log.output_tokens_R], axis=1)
        for log in (
            load_requests(folder / f"AzureLLMInferenceTrace_{name}.csv")
            for name in ("code", "conv")
        )
    )
    by_answer = conversation[np.argsort(conversation[:, 1], kind="stable")]
    found = dict(zip(BY_ANSWER, np.array_split(by_answer, len(BY_ANSWER)), strict=True))
    return found | dict(zip(CODE, np.array_split(code, len(CODE)), strict=True))


def _times(folder: Path, requests: int, rng: np.random.Generator | None) -> NDArray[np.float64]:
    """Return when requests arrive, scaled to one a second on average."""
    if rng is None:
        log = load_requests(folder / "AzureLLMInferenceTrace_conv.csv", requests=requests + 1)
        at = np.diff(log.arrival_ns_R).cumsum().astype(np.float64)
    else:
        at = rng.exponential(size=requests).cumsum()
    return at / at[-1] * requests
