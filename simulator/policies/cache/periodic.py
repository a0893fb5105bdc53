"""Hold the experts predicted for the next prompts; predict again every so many prompts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import (
    CachePolicy,
    Evictable,
    Partition,
    Question,
    RunInfo,
    View,
)
from moesim.simulator.policies.exchanges import paying
from moesim.simulator.policies.expert_network import Variant
from moesim.simulator.policies.first_prompts import all_at_first
from moesim.simulator.policies.foretelling import Predictor, foreteller
from moesim.simulator.policies.prompt_uses import Floats, PromptUses
from moesim.simulator.policies.quotas import Scope, split, staging_bytes
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
            ``network`` asks a trained XLNet with what the latest prompts chose; ``random`` draws.
        signal: That signal: use of each expert by each request, such as ``predicted_use_RLE``.
        file: That network's file, which moesim train-predictor writes.
        variant: Which of its networks: ``all_layers`` (eMoE-A, and -E at p = 1) or ``by_layer``
            (eMoE-L).
        window: Prompts that ``recent`` looks back. A predictor by recent prompts is
            first asked when they are so many, or a period is over.
        sensitivity: Signal that says by request how much a layer's routing matters, in [0, 1];
            empty takes 1. A layer that matters to no request of the step keeps its experts.
        first: ``profile`` begins with the most used of the profile trace, within the budget;
            ``none`` with whatever has the lowest ids. ``all``, as the paper, begins with all
            experts, for which the run's budget must have room (the peak), and holds ``held`` of
            each layer from the first prediction on (steady); a schedule that reroutes or skips
            misses must stand beside it. That first set is copied again, those there included.
        held: Experts of each layer that are held after ``first=all``.
        adapt: Predict before every prompt, and exchange an expert of the set for one of the
            prediction only if that is expected to save more bytes in ``period`` prompts than it
            moves.
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
        predictor: Predictor = "recent",
        signal: str = "predicted_use_RLE",
        file: Path | None = None,
        variant: Variant = "all_layers",
        window: int = 20,
        sensitivity: str = "",
        first: Literal["profile", "none", "all"] = "none",
        held: int | None = None,
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
        self._period, self._adapts, self._asks = period, adapt, ask
        self._sensitivity = sensitivity
        self._scope: Scope = scope
        self._window = window
        self._staging_bytes = 0 if staging == 0 else staging_bytes(run, staging)
        self._beginning = all_at_first(
            run, first=first, held=held, scope=scope, staging_bytes=self._staging_bytes
        )
        self._uses = PromptUses(run, "best" if predictor == "best_window" else window, self._chosen)
        self._foreteller = foreteller(run, predictor, self._uses, signal, file, variant)
        first_LE = np.zeros((run.layers, run.experts))
        if first == "profile":
            assert run.popularity_LE is not None
            assert run.profile_trace is not None
            first_LE = first_LE + run.popularity_LE
            self._uses.remember(run.popularity_LE, run.profile_trace.requests)
        self._score: list[float] = first_LE.ravel().tolist()
        self._set = frozenset(self._chosen(first_LE))
        self._pending: list[int] = []
        self._next = period if self._has_all else 0
        self._has_predicted = False
        self._step = -1
        self._question: Any | None = None

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

    def partition(self) -> Partition | None:
        """Return pools that can be made smaller, if the first prompts have all experts."""
        return None if self._beginning is None else self._beginning.pools()

    def repartition(self, view: View) -> Partition | None:
        """Return the smaller pools once the first set after all experts has been predicted."""
        self._begin(view)
        if self._beginning is None or not (self._has_all and self._has_predicted):
            return None
        self._beginning.is_full = False
        self._pending = sorted(self._set)
        return self._beginning.pools()

    @property
    def _has_all(self) -> bool:
        """Whether all experts are held still, as only ``first=all`` does."""
        return self._beginning is not None and self._beginning.is_full

    def quotas_L(self) -> list[int] | None:
        """Return equal shares if the scope is per layer."""
        if self._beginning is not None:
            return self._beginning.set_quotas_L()
        return split(self.run, self._scope, self._staging_bytes)

    def staging_bytes(self) -> int:
        """Return the room for experts that do not stay."""
        return self._staging_bytes

    def initial(self) -> Sequence[int]:
        """Return the first set."""
        if self._has_all:
            return range(self.run.layers * self.run.experts)
        return sorted(self._set)

    def admit(self, expert: int, view: View) -> Verdict:
        """Return that a missed expert only passes through, if there is room for that."""
        return Verdict.TRANSIENT if self._staging_bytes else Verdict.KEEP

    def on_touches(self, experts: Sequence[int], view: View) -> None:
        """Count the choices of an event."""
        self._uses.add(experts)
        self._foreteller.add(experts)

    def on_touch(self, expert: int, view: View) -> None:
        """Count one choice."""
        self._uses.add((expert,))
        self._foreteller.add((expert,))

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return the least used outside the set; the lowest id among equals."""
        return min(evictable, key=lambda e: (e in self._set, self._score[e], e))

    def rebalance(self, view: View) -> Sequence[int]:
        """Return what the set lacks, if a prompt begins whose turn it is, or some stayed out."""
        self._begin(view)
        if self._pending:
            residency = view.residency
            self._pending = [
                expert
                for expert in self._pending
                if not (residency.is_resident(expert) or residency.is_loading(expert))
            ]
        return self._pending

    def _begin(self, view: View) -> None:
        """Look, once a step, whether a prompt begins."""
        if view.step == self._step:
            return
        self._step = view.step
        if self._uses.begins(view):
            self._foreteller.begins(self._uses.last_LE, view)
            self._consider(view)

    def _consider(self, view: View) -> None:
        """Predict if it is time to, and change the set if that is due or pays."""
        is_due = not self._adapts and self._uses.begun > self._next
        if not (is_due or self._adapts):
            return
        question = self._foreteller.question(view)
        wait = self._period if question is not None else min(self._period, self._window)
        self._next = self._uses.begun - 1 + wait
        if question is None:
            return
        matters_L = self._matters(view)
        if self._asks:
            self._question = (question, matters_L)
        else:
            self._take(self._foreteller.answer(question), matters_L)

    def asks(self, view: View) -> Iterable[Question]:
        """Return the question that a new prediction answers, if it is due."""
        question, self._question = self._question, None
        return [] if question is None else [Question(PREDICTION, question)]

    def compute(self, name: str, question: Any) -> Any:  # noqa: ANN401  the predictor's own
        """Return the use that is foretold, and which layers matter."""
        asked, matters_L = question
        return self._foreteller.answer(asked).tolist(), matters_L

    def on_answer(self, name: str, answer: Any, view: View) -> None:  # noqa: ANN401
        """Make the set of the prediction; the next step begins with its copies."""
        use_LE, matters_L = answer
        self._take(np.asarray(use_LE, np.float64), matters_L)

    def _take(self, use_LE: Floats, matters_L: Sequence[bool] | None) -> None:
        """Make the set of a prediction, or as much of it as pays."""
        if matters_L is not None:
            use_LE = self._keeping(use_LE, matters_L)
        chosen = self._chosen(use_LE)
        new = [expert for expert in chosen if expert not in self._set]
        if self._adapts and not self._has_all:
            exchanged = paying(
                self.run,
                new,
                self._set.difference(chosen),
                self._expected_LE(use_LE).ravel().tolist(),
                prompts=self._period,
                scope=self._scope,
            )
            if not exchanged:
                return
            chosen = [*self._set.difference(exchanged.values()), *exchanged]
            new = list(exchanged)
        self._has_predicted = True
        self._score = use_LE.ravel().tolist()
        self._set, self._pending = frozenset(chosen), new

    def _matters(self, view: View) -> list[bool] | None:
        """Return which layers matter to a request of the step; None if nobody says so."""
        if not self._sensitivity:
            return None
        sensitivity_L = np.asarray(view.signals[self._sensitivity], np.float64).mean(axis=0)
        return [bool(mean > 0) for mean in sensitivity_L]

    def _keeping(self, use_LE: Floats, matters_L: Sequence[bool]) -> Floats:
        """Return uses by which layers that do not matter keep what they hold."""
        held_LE = np.zeros_like(use_LE)
        held_LE.ravel()[sorted(self._set)] = 1
        return np.where(np.asarray(matters_L)[:, None], use_LE, held_LE)

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

    def _expected_LE(self, use_LE: Floats) -> Floats:
        """Return a prediction in demands of a prompt; as it is before a prompt has ended."""
        recent_LE = self._uses.mean_LE()
        if recent_LE is None:
            return use_LE
        total_L1 = use_LE.sum(axis=1, keepdims=True)
        demands_L1 = recent_LE.sum(axis=1, keepdims=True)
        expected_LE: Floats = use_LE * demands_L1 / np.where(total_L1 > 0, total_L1, 1)
        return expected_LE
