"""Search the best split and share of every layer, again and again, as a run goes on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import CachePolicy, Partition, Question, RunInfo, View
from moesim.simulator.policies.guards import CacheGuard
from moesim.simulator.policies.priorities import Priorities
from moesim.simulator.policies.split_search import LayerFigures, LayerSplit, share_budget
from moesim.simulator.policies.split_statistics import SplitStatistics
from moesim.simulator.policies.splits import buffer_bytes, even_partition, partition_of
from moesim.simulator.terms import PIECES

__all__ = ["AdaptiveSplit"]

# T tokens, L MoE layers, H horizons, M top-m.
SIGNAL = "look_in_TLHM"
SEARCH = "split_search"
"""What the ask for a search is called."""
SAMPLED_STEPS = 4
"""After the first search every so many steps are looked at: ranking experts takes its time."""


class SplitQuestion(NamedTuple):
    """What a search must know: each layer's figures, the bytes to share, the share of a step."""

    figures: Sequence[LayerFigures]
    budget_bytes: int
    step: float


def search(question: SplitQuestion) -> list[LayerSplit]:
    """Return the best split of every layer."""
    return share_budget(question.figures, question.budget_bytes, pieces=PIECES, step=question.step)


class AdaptiveSplit(CacheGuard):
    """MoEpic's cache configurator: split and budget of each layer, by divide and conquer.

    It begins with even shares at ``theta``. Once a request has been served, and then whenever
    ``refresh`` tokens have passed, it searches as a step begins and no request is in service. If it
    finds another split, pools are cut anew and the highest priorities are copied into them: those
    bytes are rebalancing, and the step's own copies wait for them. A search that is asked for takes
    its time beside the host, and what it found waits until again no request is in service. How
    often n tops hit, for every n, is counted by LCP's order of priority, whatever policy is inside.

    Args:
        theta: The top's share of an expert before the first search.
        refresh: Tokens from one search to the next.
        step: Share of the budget that moves between layers at a time.
        buffer: Experts that the room for what passes through would hold, taken from the budget;
            none takes the top-k.
        foresees: Whether the search counts on prefetching by the next layer's gate.
        ask: Have the search computed beside the host; without it a search takes no time.
    """

    needs = frozenset({SIGNAL})
    does = frozenset({"split"})
    paper = "MoEpic (arXiv 2509.08342) section 3.4, its equations reconstructed"
    timing_free = False  # what moves is, but what is still on its way runs in a launch of its own
    measured_ask_ns: ClassVar[Mapping[str, int]] = {SEARCH: 180_000_000}
    """Of 48 layers of 128 on one core, 3 runs within 20 %; 16 layers of 64 take a third."""

    def __init__(
        self,
        run: RunInfo,
        inner: CachePolicy,
        *,
        theta: float = 0.5,
        refresh: int = 5000,
        step: float = 0.01,
        buffer: int | None = None,
        foresees: bool = True,
        ask: bool = False,
    ) -> None:
        super().__init__(run, inner)
        if not 0 <= theta <= 1:
            raise InputError(
                f"cache policy adaptive_split: option theta={theta:g}: expected from 0 to 1"
            )
        if not 0 < step <= 1:
            raise InputError(
                f"cache policy adaptive_split: option step={step:g}: expected above 0 and at most 1"
            )
        if refresh < 1:
            raise InputError(
                f"cache policy adaptive_split: option refresh={refresh}: expected at least 1"
            )
        self._priorities = Priorities(run)
        self._refresh, self._step, self._foresees = refresh, step, foresees
        self._buffer_bytes = buffer_bytes(run, buffer, "adaptive_split")
        self._partition = even_partition(run, theta, self._buffer_bytes)
        self._statistics = SplitStatistics(run.layers, run.experts, run.top_k)
        self._foreseen: dict[int, list[int]] = {}  # layer -> predicted for its next event
        self._choices = 0  # of the first layer, since the last search
        self._event = -1
        self._chosen: list[int] = []  # in the event
        self._ranked: list[int] | None = None  # before it, if it is looked at
        self._in_service: frozenset[int] = frozenset()
        self._has_searched = False
        self._bring: list[int] = []
        self._asks = ask
        self._question: SplitQuestion | None = None
        self._found: list[LayerSplit] | None = None  # the answer that waits for an idle moment
        self._is_searching = False

    @classmethod
    def needs_for(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """Return the gate's look ahead, if it is counted on."""
        return cls.needs if options["foresees"] else frozenset()

    def partition(self) -> Partition:
        """Return the present split."""
        return self._partition

    def staging_bytes(self) -> int:
        """Return the buffer."""
        return self._buffer_bytes

    def on_touch(self, expert: int, view: View) -> None:
        """Count one choice."""
        self._begin_event(view)
        self._chosen.append(expert)
        self._priorities.count(expert, view.event)
        self.inner.on_touch(expert, view)

    def on_touches(self, experts: Sequence[int], view: View) -> None:
        """Count the choices of an event."""
        self._begin_event(view)
        self._chosen += experts
        self._priorities.count_all(experts, view.event)
        self.inner.on_touches(experts, view)

    def on_event_end(self, view: View) -> None:
        """Learn from the choices of one token, and keep what was foreseen of the next layer."""
        layer, chosen = view.layer, self._chosen
        if layer == 0:
            self._choices += len(chosen)
        if self._ranked is not None and len(chosen) <= self.run.top_k:
            self._statistics.learn(layer, self._ranked, chosen, self._foreseen.pop(layer, []))
        if self._foresees:
            following = (layer + 1) % self.run.layers
            begin = following * self.run.experts
            best = view.signals[SIGNAL][-1][0][: self.run.top_k]
            self._foreseen[following] = [begin + expert for expert in best if expert >= 0]
        self.inner.on_event_end(view)

    def _begin_event(self, view: View) -> None:
        """Note the order of priority before the first choice of a layer counts."""
        if view.event != self._event:
            self._event, self._chosen = view.event, []
            is_sampled = not self._has_searched or view.step % SAMPLED_STEPS == 0
            is_looked_at = view.is_decode and is_sampled
            self._ranked = self._priorities.ranked(view.layer) if is_looked_at else None

    def repartition(self, view: View) -> Partition | None:
        """Return another split if no request is in service and a search has found one."""
        begun = frozenset(n for n, request in view.requests.items() if request.began_ns >= 0)
        is_idle = begun.isdisjoint(self._in_service)
        self._in_service = begun
        if not is_idle:
            return None
        if self._is_due:
            self._has_searched, self._choices = True, 0
            question = self.question()
            if self._asks:
                self._question, self._is_searching = question, True
            else:
                self._found = search(question)
        splits, self._found = self._found, None
        return None if splits is None else self._cut(splits)

    @property
    def _is_due(self) -> bool:
        """Whether it is time for a search, and none is under way."""
        tokens = self._choices // self.run.top_k
        is_early = self._has_searched and tokens < self._refresh
        return not (is_early or self._is_searching or self._statistics.is_empty)

    def _cut(self, splits: Sequence[LayerSplit]) -> Partition | None:
        """Return the partition of what was found, and note what fills it; None if all is so."""
        pieces_L = [split.pieces for split in splits]
        found = partition_of(self.run, pieces_L, [split.tops for split in splits])
        if found == self._partition:
            return None
        self._partition = found
        self._bring = [
            expert
            for layer, split in enumerate(splits)
            for expert in self._priorities.ranked(layer)[: split.tops]
        ]
        return found

    def rebalance(self, view: View) -> Sequence[int]:
        """Return what fills the pools that were cut anew."""
        bring, self._bring = self._bring, []
        return bring

    def asks(self, view: View) -> Iterable[Question]:
        """Return the search that is due."""
        question, self._question = self._question, None
        return [] if question is None else [Question(SEARCH, question)]

    def compute(self, name: str, question: Any) -> Any:  # noqa: ANN401  the question of `asks`
        """Search, given nothing but the question."""
        return search(question)

    def on_answer(self, name: str, answer: Any, view: View) -> None:  # noqa: ANN401
        """Keep what was found until no request is in service."""
        self._found, self._is_searching = answer, False

    def question(self) -> SplitQuestion:
        """Return what a search must know: the statistics so far, and what there is to share."""
        budget_bytes = max(0, self.run.budget_bytes - self._buffer_bytes)
        return SplitQuestion(list(self._figures()), budget_bytes, self._step)

    def _figures(self) -> Iterator[LayerFigures]:
        run, costs, known = self.run, self.run.costs, self._statistics
        for layer, size in enumerate(run.expert_bytes_L):
            experts_ns = costs.experts_gpu_ns(layer, [1] * run.top_k)
            layer_ns = max(costs.layer_ns(layer), costs.host_layer_ns(run.top_k) - experts_ns)
            yield LayerFigures(
                hit_N=known.hit_N(layer),
                right_K=known.right_K(layer),
                cached_KN=known.cached_KN(layer),
                expert_bytes=size,
                copy_ns=costs.copy_ns(size),
                attention_ns=layer_ns,
                experts_ns=experts_ns,
            )
