"""What prompts of a task use: counted in a profile trace, or told by the light mixture.

eMoE (arXiv 2503.06823) Eq. 2: an expert's expected tokens are the sum over tasks of
(input tokens of its requests + their number x the task's mean output) x f, the task's frequency of
the expert; the sensitivity flag is applied by who asks.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.policies.base import RunInfo, View
from moesim.simulator.policies.mixture import fit
from moesim.simulator.policies.prompt_uses import served_by
from moesim.simulator.workload.foresight import popularity, uses_by_request

# L MoE layers, E experts of a layer, R requests.
Floats = NDArray[np.float64]


class TaskUses:
    """Frequencies and output lengths by task, counted once in the profile trace.

    A task that the profile trace lacks is taken for the mean of all.
    """

    def __init__(self, run: RunInfo) -> None:
        trace = run.profile_trace
        assert trace is not None
        labels = np.asarray(trace.task_R)
        outputs_R = np.maximum(np.asarray(trace.output_tokens_R), 0)
        self._all = (_rows_to_one(popularity(trace)), float(outputs_R.mean()))
        self._of = {
            str(task): (
                _rows_to_one(
                    popularity(trace.select_requests(np.flatnonzero(labels == task).tolist()))
                ),
                float(outputs_R[labels == task].mean()),
            )
            for task in np.unique(labels)
        }

    def expected_LE(self, view: View) -> Floats:
        """Return how many tokens each expert is expected to get from the requests being served."""
        expected_LE = np.zeros(self._all[0].shape)
        for request in served_by(view):
            share_LE, output_tokens = self._of.get(request.task, self._all)
            expected_LE += (request.prompt_tokens + output_tokens) * share_LE
        return expected_LE


class OnlineMixture:
    """The light mixture, fitted on a profile trace and told of every prompt that is served."""

    def __init__(self, run: RunInfo) -> None:
        trace = run.profile_trace
        assert trace is not None
        count_RLE = uses_by_request(trace)
        self._mixture = fit(_rows_to_one(count_RLE), trace.task_R)
        self._tasks: tuple[str, ...] = ()

    def learn(self, last_LE: Floats | None, view: View) -> None:
        """Take note that a prompt begins, and of what the one before it used."""
        if last_LE is not None and self._tasks:
            use_LE = _rows_to_one(last_LE)
            self._mixture.counters.learn(use_LE, self._tasks[-1])
        self._tasks = tuple(request.task for request in served_by(view))

    def tell(self) -> Floats:
        """Return the mean use that is expected of the prompts being served."""
        told = [self._mixture.tell(task) for task in self._tasks]
        mean_LE: Floats = np.mean(told, axis=0).astype(np.float64)
        return mean_LE


def _rows_to_one(count_LE: NDArray[Any]) -> NDArray[np.float32]:
    """Return counts as shares along the last axis; zeros where nothing was counted."""
    total_L1 = np.maximum(count_LE.sum(axis=-1, keepdims=True), 1)
    return np.asarray(count_LE / total_L1, np.float32)
