"""Let a request in only if those who run keep what was promised to them."""

from collections.abc import Mapping, Sequence

import numpy as np

from moesim.simulator.policies.base import Request, RunInfo, SchedulePolicy, View
from moesim.simulator.policies.batching import MAX_BATCH, Batching, Company, Rank
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
        self.most_tokens = most_tokens
        assert run.profile_trace is not None
        self._mean_answer = mean_answers(run.profile_trace)

    def rank(self, request: Request, view: View) -> Rank:
        """Return when its first token is due; those to whom none was promised come last."""
        promised_ns = request.slo.ttft_ns
        if promised_ns is None:
            return 1, request.arrived_ns, request.number
        return 0, request.arrived_ns + promised_ns, request.number

    def company(self, running: Sequence[Request], view: View) -> "Promised":
        """Return those that run, whose promises are to be kept."""
        return Promised(self, running, view)

    def expected_ns(
        self, left: float, later: int, run_ns: int, newcomer: Request | None = None
    ) -> float:
        """Return how long a request that runs is expected to have taken when it ends (equation 3).

        Args:
            left: G, the tokens that it is still to get.
            later: n, how many end after it, the newcomer included.
            run_ns: r, the time since it arrived.
            newcomer: Who would join, if anybody.
        """
        prompt, loading_ns = 0, 0.0
        if newcomer is not None:
            prompt, loading_ns = newcomer.prompt_tokens, self._loading_ns
        return loading_ns + (prompt + later * left) * self._token_ns + run_ns

    def tokens_left(self, request: Request) -> float:
        """Return how many tokens a request is expected to get still."""
        mean = self._mean_answer.get(request.task, self._mean_answer[""])
        left = mean - request.tokens_out
        return left if left > 0 else mean / RENEWED_SHARE


class Promised(Company):
    """Requests that run together and keep what was promised to them (algorithm 1).

    Args:
        scheduler: What it expects of them.
        running: All of them.
        view: The present.
    """

    def __init__(self, scheduler: TaskAware, running: Sequence[Request], view: View) -> None:
        super().__init__(running)
        self._scheduler = scheduler
        self._now_ns = view.now_ns
        self._count()

    def takes(self, newcomer: Request) -> bool:
        """Return whether all who would keep their promise alone still would beside the request."""
        scheduler = self._scheduler
        is_first = not self.requests
        if newcomer.prompt_tokens + self._prompt_tokens >= scheduler.most_tokens and not is_first:
            return False
        if not self._kept:
            return True
        its_left = scheduler.tokens_left(newcomer)
        return all(
            scheduler.expected_ns(left, later + (its_left > left), run_ns, newcomer) <= promised_ns
            for promised_ns, left, later, run_ns in self._kept
        )

    def join(self, newcomer: Request) -> None:
        """Take note that a request begins beside these."""
        super().join(newcomer)
        self._count()

    def _count(self) -> None:
        """See who keeps its promise if nobody joins."""
        scheduler = self._scheduler
        self._prompt_tokens = sum(request.prompt_tokens for request in self.requests)
        self._kept: list[tuple[int, float, int, int]] = []
        if all(request.slo.e2e_ns is None for request in self.requests):
            return
        left_R = [scheduler.tokens_left(request) for request in self.requests]
        for request, left in zip(self.requests, left_R, strict=True):
            promised_ns = request.slo.e2e_ns
            later = sum(other > left for other in left_R)
            run_ns = self._now_ns - request.arrived_ns
            if (
                promised_ns is not None
                and scheduler.expected_ns(left, later, run_ns) <= promised_ns
            ):
                self._kept.append((promised_ns, left, later, run_ns))


def mean_answers(trace: RoutingTrace) -> Mapping[str, float]:
    """Return the mean length of the answers of each task; under the empty name that of all."""
    lengths: dict[str, list[int]] = {}
    for task, tokens in zip(trace.task_R, trace.output_tokens_R.tolist(), strict=True):
        lengths.setdefault(task, []).append(max(1, tokens))
    means = {task: float(np.mean(values)) for task, values in lengths.items()}
    return {**means, "": float(np.mean([v for values in lengths.values() for v in values]))}
