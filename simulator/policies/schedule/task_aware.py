"""Let a request in only if those who run keep what was promised to them."""

from collections.abc import Mapping, Sequence

import numpy as np

from moesim.simulator.policies.base import Request, RunInfo, SchedulePolicy, View
from moesim.simulator.policies.batching import MAX_BATCH, Batching, Rank
from moesim.traces import RoutingTrace

__all__ = ["TaskAware"]

RENEWED_SHARE = 20
"""An answer that outlasts its task's mean is expected to last a twentieth of it more."""


class TaskAware(Batching):
    """eMoE's scheduler: earliest deadline first, if nobody who runs would lose its promise.

    A request i that runs is expected to have taken t = dE + (W + n G) c + r when it ends: W prompt
    tokens of the newcomer, G tokens i is still to get (the mean answer of its task, less what it
    has), n requests that end after it, c the time of a token, r the time since it arrived. Only
    those that are expected to keep their promise without the newcomer are protected. Who is not let
    in is passed over; somebody always runs.

    Args:
        max_batch: Requests that run together at most.
        chunk: Prompt tokens of one step at most, over all requests; none takes prompts whole, one
            a step.
        token_us: c, the mean time of a token with experts and exchange.
        loading_ms: dE, the time that loading experts for a newcomer takes.
        most_tokens: Prompt tokens of those that run together stay below this (T_max).
    """

    paper = "eMoE (arXiv 2503.06823) section 3.5, equation 3 and algorithm 1"
    needs = frozenset({"profile"})

    def __init__(
        self,
        run: RunInfo,
        inner: SchedulePolicy,
        *,
        max_batch: int = MAX_BATCH,
        chunk: int | None = None,
        token_us: float = 1000.0,
        loading_ms: float = 0.0,
        most_tokens: int = 8192,
    ) -> None:
        super().__init__(run, inner, max_batch=max_batch, chunk=chunk)
        self._token_ns = token_us * 1e3
        self._loading_ns = loading_ms * 1e6
        self._most_tokens = most_tokens
        assert run.profile_trace is not None
        self._mean_answer = mean_answers(run.profile_trace)

    def rank(self, request: Request, view: View) -> Rank:
        """Return when its first token is due; those to whom none was promised come last."""
        promised_ns = request.slo.ttft_ns
        if promised_ns is None:
            return 1, request.arrived_ns, request.number
        return 0, request.arrived_ns + promised_ns, request.number

    def admits(self, request: Request, running: Sequence[int], view: View) -> bool:
        """Return whether all who would keep their promise alone still would beside the request."""
        others = [view.requests[number] for number in running]
        scheduled = sum(other.prompt_tokens for other in others)
        if others and request.prompt_tokens + scheduled >= self._most_tokens:
            return False
        return all(
            self.expected_ns(other, others, request, view) <= promised_ns
            for other in others
            if (promised_ns := other.slo.e2e_ns) is not None
            and self.expected_ns(other, others, None, view) <= promised_ns
        )

    def expected_ns(
        self,
        request: Request,
        running: Sequence[Request],
        newcomer: Request | None,
        view: View,
    ) -> float:
        """Return how long a request that runs is expected to have taken when it ends.

        Args:
            request: One of those that run.
            running: All of them.
            newcomer: Who would join, if anybody.
            view: The present.
        """
        left = self.tokens_left(request)
        later = sum(self.tokens_left(other) > left for other in running)
        prompt, loading_ns = 0, 0.0
        if newcomer is not None:
            prompt, loading_ns = newcomer.prompt_tokens, self._loading_ns
            later += self.tokens_left(newcomer) > left
        run_ns = view.now_ns - request.arrived_ns
        return loading_ns + (prompt + later * left) * self._token_ns + run_ns

    def tokens_left(self, request: Request) -> float:
        """Return how many tokens a request is expected to get still."""
        mean = self._mean_answer.get(request.task, self._mean_answer[""])
        left = mean - request.tokens_out
        return left if left > 0 else mean / RENEWED_SHARE


def mean_answers(trace: RoutingTrace) -> Mapping[str, float]:
    """Return the mean length of the answers of each task; under the empty name that of all."""
    lengths: dict[str, list[int]] = {}
    for task, tokens in zip(trace.task_R, trace.output_tokens_R.tolist(), strict=True):
        lengths.setdefault(task, []).append(max(1, tokens))
    means = {task: float(np.mean(values)) for task, values in lengths.items()}
    return {**means, "": float(np.mean([v for values in lengths.values() for v in values]))}
