"""What each prompt used, counted as it is served; for policies that decide prompt by prompt.

With one request at a time a prompt's uses are exact. Where several are served together, what is
used between two beginnings counts as the later prompt's.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.policies.base import Request, RunInfo, View

# L MoE layers, E experts of a layer.
Floats = NDArray[np.float64]
Window = int | Literal["best"]

WINDOWS = (5, 20, 80)
MEMORY = 0.9
"""What a window's success is still worth one prompt later, when the best one is chosen."""


class PromptUses:
    """Uses of the latest prompts, and the mean that is expected of the next.

    Args:
        run: The run.
        window: Prompts that the mean looks back; ``best`` takes of 5, 20, 80 and all prompts the
            window whose mean would have held the most of the latest prompts' demands, had it been
            asked before each; the longest among equals.
        hold: Which experts a budget holds for given uses; ``best`` judges by it.

    Attributes:
        begun: Prompts that have begun.
        last_LE: Uses of the prompt that ended last; None before one has.
    """

    def __init__(
        self, run: RunInfo, window: Window, hold: Callable[[Floats], Sequence[int]]
    ) -> None:
        self.begun = 0
        self.last_LE: Floats | None = None
        self._shape = (run.layers, run.experts)
        self._hold = hold
        self._present = [0] * (run.layers * run.experts)
        self._windows = WINDOWS if window == "best" else (window,)
        self._before: deque[Floats] = deque(maxlen=max(self._windows))
        self._all = np.zeros(self._shape) if window == "best" else None
        self._ended = 0
        self._served = [0.0] * (len(self._windows) + 1)
        self._known: set[int] = set()

    def remember(self, uses: NDArray[np.int64], prompts: int) -> None:
        """Take note of uses by prompts served long ago, such as a profile trace's."""
        if self._all is not None:
            self._all = self._all + uses
            self._ended += prompts

    def begins(self, view: View) -> bool:
        """Return whether a prompt is served for the first time; ask once, when a step begins."""
        served = {request.number for request in served_by(view)}
        is_new = not served <= self._known
        if is_new:
            if self.begun:
                self._end_prompt(np.array(self._present, np.float64))
            self._present = [0] * len(self._present)
            self.begun += len(served - self._known)
        self._known = served
        return is_new

    def add(self, experts: Sequence[int]) -> None:
        """Count the demands of one event: each expert once, however many tokens chose it."""
        present = self._present
        for expert in dict.fromkeys(experts):
            present[expert] += 1

    def mean_LE(self) -> Floats | None:
        """Return the mean uses of the latest prompts; None before the second begins."""
        means = self._means()
        if not means:
            return None
        longest_first = self._served[len(means) - 1 :: -1]
        return means[len(means) - 1 - int(np.argmax(longest_first))]

    def _means(self) -> list[Floats]:
        """Return what each window expects, the window of all prompts last."""
        means: list[Floats] = []
        if self._before:
            latest = np.stack(self._before)
            means = [latest[-window:].mean(axis=0) for window in self._windows]
        elif self._all is None or not self._ended:
            return []
        else:
            means = [self._all / self._ended] * len(self._windows)
        return means if self._all is None else [*means, self._all / self._ended]

    def _end_prompt(self, uses: Floats) -> None:
        if self._all is not None:
            for at, mean_LE in enumerate(self._means()):
                held = float(uses[self._hold(mean_LE)].sum() / max(uses.sum(), 1))
                self._served[at] = MEMORY * self._served[at] + held
            self._all = self._all + uses.reshape(self._shape)
        self.last_LE = uses.reshape(self._shape)
        self._before.append(self.last_LE)
        self._ended += 1


def served_by(view: View) -> list[Request]:
    """Return the requests that have begun and not ended."""
    return [request for request in view.requests.values() if request.began_ns >= 0]
