"""Hold the experts predicted for the next prompts; predict again every so many prompts."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from moesim.simulator.errors import BudgetError, InputError
from moesim.simulator.policies.base import CachePolicy, Evictable, Question, RunInfo, View
from moesim.simulator.policies.prompt_uses import Floats, PromptUses
from moesim.simulator.policies.quotas import Scope, split, staging_bytes
from moesim.simulator.policies.task_uses import OnlineMixture, TaskUses
from moesim.simulator.terms import Verdict

__all__ = ["Periodic"]

# L MoE layers, E experts of a layer.
PREDICTION = "predict_use"
"""What the ask for a prediction is called."""


class Periodic(CachePolicy):
    """eMoE's residency: a set that changes between prompts only; what it lacks passes through.

    Before every p-th prompt each expert gets a predicted use, the most used of each layer become
    the set, and what it newly holds is copied as the prompt begins, layer after layer. The policy
    moves every missed expert through staging, where eMoE sends its tokens to another expert.

    Args:
        period: Prompts from one prediction to the next, p (the paper: 40).
        predictor: ``recent`` predicts the mean of the latest prompts; ``best_window`` too, and
            looks as far back as has lately been best, with ``first=profile`` into the profile;
            ``light`` a mixture of counters by task and recency, fitted on the profile trace (not
            the paper's); ``task`` what the running requests' tasks used in the profile trace,
            weighed by their tokens (the paper's N_i); ``signal`` what a signal of the trace says;
            ``random`` draws.
        signal: That signal: use of each expert by each request, such as ``predicted_use_RLE``.
        window: Prompts that ``recent`` and ``adapt`` look back. A predictor by recent prompts is
            first asked when they are so many, or a period is over.
        sensitivity: Signal that says by request how much a layer's routing matters, in [0, 1];
            empty takes 1. A layer that matters to no request of the step keeps its experts.
        first: ``profile`` begins with the most used of the profile trace, within the budget;
            ``none`` with whatever has the lowest ids. ``all``, as the paper, loads all experts at
            the first prompt and exceeds the budget: it is refused unless the budget holds them.
        adapt: Predict before every prompt, and change the set only if the latest prompts would
            have saved more bytes in ``period`` prompts than the change moves.
        ask: Have the prediction computed beside the host, as eMoE's own process does: the set
            changes with the first step after the answer, which takes the time that is given with
            ``--ask predict_use=TIME`` (moesim train-predictor measures it). Without it an answer
            takes no time.
        scope: ``per_layer`` for an equal share of each layer (the paper's L); ``global`` takes the
            most used of all layers.
        staging: Slots for experts that pass through; none takes the top-k of one layer. With 0 a
            missed expert takes the room of the least used, which a schedule that reroutes or skips
            misses never lets come to pass.
    """

    needs = frozenset({"profile"})
    does = frozenset({"prefetch"})  # a new set is brought in before anything demands it
    paper = "eMoE (arXiv 2503.06823) sections 3.3, 3.4, Eq. 2"
    timing_free = False  # what moves is, but what is still on its way runs in a launch of its own

    def __init__(
        self,
        run: RunInfo,
        *,
        period: int = 40,
        predictor: Literal["recent", "best_window", "light", "task", "signal", "random"] = "recent",
        signal: str = "predicted_use_RLE",
        window: int = 20,
        sensitivity: str = "",
        first: Literal["profile", "none", "all"] = "none",
        adapt: bool = False,
        ask: bool = False,
        scope: Scope = "per_layer",
        staging: int | None = None,
    ) -> None:
        super().__init__(run)
        if sensitivity and scope == "global":
            raise InputError("cache policy periodic: option sensitivity needs scope=per_layer")
        for name, value in (("period", period), ("window", window)):
            if value < 1:
                raise InputError(
                    f"cache policy periodic: option {name}={value}: expected at least 1"
                )
        self._period, self._predictor, self._signal = period, predictor, signal
        self._sensitivity, self._first, self._adapts = sensitivity, first, adapt
        self._scope: Scope = scope
        self._window = window
        self._staging_bytes = 0 if staging == 0 else staging_bytes(run, staging)
        self._uses = PromptUses(run, "best" if predictor == "best_window" else window, self._chosen)
        self._tasks = TaskUses(run) if predictor == "task" else None
        self._light = OnlineMixture(run) if predictor == "light" else None
        everything_bytes = run.experts * sum(run.expert_bytes_L)
        if first == "all" and run.budget_bytes - self._staging_bytes < everything_bytes:
            raise BudgetError(
                f"cache policy periodic: first=all holds {everything_bytes} bytes of experts for "
                f"the first prompt, beyond the budget of {run.budget_bytes}, and a budget does not "
                "change during a run yet; take first=profile"
            )
        first_LE = np.zeros((run.layers, run.experts))
        if first == "profile":
            assert run.popularity_LE is not None
            assert run.profile_trace is not None
            first_LE = first_LE + run.popularity_LE
            self._uses.remember(run.popularity_LE, run.profile_trace.requests)
        self._score: list[float] = first_LE.ravel().tolist()
        self._set = frozenset(self._chosen(first_LE))
        self._pending: list[int] = []
        self._next = 0
        self._asks = ask
        self._question: list[list[float]] | None = None

    @classmethod
    def needs_for(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """Return the signals that the options read, and the profile trace if they count in it."""
        needs = set()
        if options["predictor"] == "signal":
            needs.add(options["signal"])
        if options["sensitivity"]:
            needs.add(options["sensitivity"])
        if options["predictor"] in ("task", "light") or options["first"] == "profile":
            needs.add("profile")
        return frozenset(needs)

    def quotas_L(self) -> list[int] | None:
        """Return equal shares if the scope is per layer."""
        return split(self.run, self._scope, self._staging_bytes)

    def staging_bytes(self) -> int:
        """Return the room for experts that do not stay."""
        return self._staging_bytes

    def initial(self) -> Sequence[int]:
        """Return the first set."""
        return sorted(self._set)

    def admit(self, expert: int, view: View) -> Verdict:
        """Return that a missed expert only passes through, if there is room for that."""
        return Verdict.TRANSIENT if self._staging_bytes else Verdict.KEEP

    def on_touches(self, experts: Sequence[int], view: View) -> None:
        """Count the choices of an event."""
        self._uses.add(experts)

    def on_touch(self, expert: int, view: View) -> None:
        """Count one choice."""
        self._uses.add((expert,))

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return the least used outside the set; the lowest id among equals."""
        return min(evictable, key=lambda e: (e in self._set, self._score[e], e))

    def rebalance(self, view: View) -> Sequence[int]:
        """Return what the set lacks, if a prompt begins whose turn it is, or some stayed out."""
        if self._uses.begins(view):
            if self._light is not None:
                self._light.learn(self._uses.last_LE, view)
            self._consider(view)
        if self._pending:
            residency = view.residency
            self._pending = [
                expert
                for expert in self._pending
                if not (residency.is_resident(expert) or residency.is_loading(expert))
            ]
        return self._pending

    def _consider(self, view: View) -> None:
        """Predict if it is time to, and change the set if that is due or pays."""
        is_due = not self._adapts and self._uses.begun > self._next
        if not (is_due or self._adapts):
            return
        use_LE = self._predict(view)
        wait = self._period if use_LE is not None else min(self._period, self._window)
        self._next = self._uses.begun - 1 + wait
        if use_LE is None:
            return
        score_LE = self._weighed(use_LE, view)
        if self._asks:
            self._question = score_LE.tolist()
        else:
            self._take(score_LE)

    def asks(self, view: View) -> Iterable[Question]:
        """Return the question that a new prediction answers, if it is due."""
        question, self._question = self._question, None
        return [] if question is None else [Question(PREDICTION, question)]

    def compute(self, name: str, question: Any) -> Any:  # noqa: ANN401  the uses that are told
        """Return what is told; the time that it takes is the run's."""
        return question

    def on_answer(self, name: str, answer: Any, view: View) -> None:  # noqa: ANN401
        """Make the set of the prediction; the next step begins with its copies."""
        self._take(np.asarray(answer, np.float64))

    def _take(self, score_LE: Floats) -> None:
        """Make the set of a prediction, unless a change would not pay."""
        chosen = self._chosen(score_LE)
        new = [expert for expert in chosen if expert not in self._set]
        if self._adapts and not self._pays(new, self._set.difference(chosen), score_LE):
            return
        self._score = score_LE.ravel().tolist()
        self._set, self._pending = frozenset(chosen), new

    def _predict(self, view: View) -> Floats | None:
        """Return the use that the next prompts are expected to make; None if nothing is known."""
        if self._predictor in ("recent", "best_window"):
            return self._uses.mean_LE()
        if self._tasks is not None:
            return self._tasks.expected_LE(view)
        if self._light is not None:
            return self._light.tell()
        if self._predictor == "random":
            return self.run.rng.random((self.run.layers, self.run.experts))
        use_LE: Floats = np.asarray(view.signals[self._signal], np.float64).mean(axis=0)
        return use_LE

    def _weighed(self, use_LE: Floats, view: View) -> Floats:
        """Return every expert's score: its use; a layer that does not matter keeps its own."""
        if not self._sensitivity:
            return use_LE
        matters_L = np.asarray(view.signals[self._sensitivity], np.float64).mean(axis=0) > 0
        held_LE = np.zeros_like(use_LE)
        held_LE.ravel()[sorted(self._set)] = 1
        return np.where(matters_L[:, None], use_LE, held_LE)

    def _chosen(self, score_LE: Floats) -> list[int]:
        """Return the set that these scores give, layer after layer, the highest first."""
        run = self.run
        order_LE = np.argsort(-score_LE, axis=1, kind="stable")
        quotas_L = self.quotas_L()
        if quotas_L is not None:
            return [
                layer * run.experts + expert
                for layer, quota_bytes in enumerate(quotas_L)
                for expert in order_LE[layer, : quota_bytes // run.expert_bytes_L[layer]].tolist()
            ]
        score = score_LE.ravel()
        ranked = np.argsort(-score, kind="stable").tolist()
        kept = run.fill(ranked, run.budget_bytes - self._staging_bytes)
        return sorted(kept, key=lambda expert: (run.layer(expert), -score[expert], expert))

    def _pays(self, new: list[int], gone: Collection[int], use_LE: Floats) -> bool:
        """Return whether the latest prompts would have saved more in a period than this moves."""
        recent_LE = self._uses.mean_LE()
        demands = (use_LE if recent_LE is None else recent_LE).ravel()
        size = self.run.size
        saved_bytes = sum(demands[e] * size(e) for e in new) - sum(
            demands[e] * size(e) for e in gone
        )
        return bool(self._period * saved_bytes > sum(map(size, new)))
