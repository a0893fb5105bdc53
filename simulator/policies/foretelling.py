"""Who foretells what the next prompts will use: one class for each predictor of ``periodic``.

A foreteller hears of every choice and of every prompt that begins. What it is asked is split in
two: `question` is what it knows when the prediction is due, and `answer`, a pure function of that,
may be computed elsewhere. All but a trained network know the answer at once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import RunInfo, View
from moesim.simulator.policies.expert_network import OnlineNetwork, Variant
from moesim.simulator.policies.prompt_uses import Floats, PromptUses
from moesim.simulator.policies.task_uses import OnlineMixture, TaskUses

# L MoE layers, E experts of a layer.
Predictor = Literal["recent", "best_window", "light", "task", "signal", "network", "random"]


class Foreteller:
    """What all of them share."""

    def add(self, experts: Sequence[int]) -> None:
        """Learn the choices of an event."""

    def begins(self, last_LE: Floats | None, view: View) -> None:
        """Learn that a prompt begins, and what the one before it used."""

    def question(self, view: View) -> Any | None:  # noqa: ANN401  each has its own
        """Return what the answer follows from; None if nothing is known yet."""
        raise NotImplementedError

    def answer(self, question: Any) -> Floats:  # noqa: ANN401  each has its own
        """Return the use that the next prompts are expected to make."""
        return np.asarray(question, np.float64)


class ByRecent(Foreteller):
    """The mean of the latest prompts."""

    def __init__(self, uses: PromptUses) -> None:
        self._uses = uses

    def question(self, view: View) -> Any | None:  # noqa: ANN401  as above
        """Return the mean; None before a prompt has ended."""
        mean_LE = self._uses.mean_LE()
        return None if mean_LE is None else mean_LE.tolist()


class ByTask(Foreteller):
    """What the tasks of the running requests used in the profile trace."""

    def __init__(self, run: RunInfo) -> None:
        self._tasks = TaskUses(run)

    def question(self, view: View) -> Any:  # noqa: ANN401  as above
        """Return the expected tokens of each expert."""
        return self._tasks.expected_LE(view).tolist()


class ByMixture(Foreteller):
    """The light mixture."""

    def __init__(self, run: RunInfo) -> None:
        self._mixture = OnlineMixture(run)

    def begins(self, last_LE: Floats | None, view: View) -> None:
        """Learn what was used by which task, and which task begins."""
        self._mixture.learn(last_LE, view)

    def question(self, view: View) -> Any:  # noqa: ANN401  as above
        """Return what the mixture tells."""
        return self._mixture.tell().tolist()


class Drawn(Foreteller):
    """Random draws."""

    def __init__(self, run: RunInfo) -> None:
        self._run = run

    def question(self, view: View) -> Any:  # noqa: ANN401  as above
        """Return a number between 0 and 1 for each expert."""
        return self._run.rng.random((self._run.layers, self._run.experts)).tolist()


class Told(Foreteller):
    """What a signal of the trace says of the requests being served."""

    def __init__(self, signal: str) -> None:
        self._signal = signal

    def question(self, view: View) -> Any:  # noqa: ANN401  as above
        """Return the mean of what is told of each."""
        return np.asarray(view.signals[self._signal], np.float64).mean(axis=0).tolist()


class ByNetwork(Foreteller):
    """A trained network, asked with the sets of the latest prompts."""

    def __init__(self, run: RunInfo, file: Path, variant: Variant) -> None:
        self._network = OnlineNetwork(file, variant, (run.layers, run.experts), run.top_k)

    def add(self, experts: Sequence[int]) -> None:
        """Count the choices of every token."""
        self._network.count(experts)

    def begins(self, last_LE: Floats | None, view: View) -> None:
        """Keep the sets of the prompt that ended."""
        self._network.learn()

    def question(self, view: View) -> Any:  # noqa: ANN401  as above
        """Return the sets that it reads."""
        return self._network.history().tolist()

    def answer(self, question: Any) -> Floats:  # noqa: ANN401  as above
        """Return the network's answer."""
        told_LE = self._network.tell(np.asarray(question, np.float32))
        return told_LE.astype(np.float64)


def foreteller(
    run: RunInfo,
    predictor: Predictor,
    uses: PromptUses,
    signal: str,
    file: Path | None,
    variant: Variant,
) -> Foreteller:
    """Return who foretells, by the options of ``periodic``.

    Raises:
        InputError: A network is wanted and no file, or no fitting one, is given.
    """
    if predictor == "network":
        if file is None:
            raise InputError(
                "cache policy periodic: predictor=network needs file=PATH; moesim train-predictor "
                "TRACE -o PATH writes it"
            )
        return ByNetwork(run, file, variant)
    if predictor == "signal":
        return Told(signal)
    if predictor in ("recent", "best_window"):
        return ByRecent(uses)
    return {"task": ByTask, "light": ByMixture, "random": Drawn}[predictor](run)
