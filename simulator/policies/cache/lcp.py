"""Evict the expert of the least cache priority: how often it was used, fading while it is not."""

from collections.abc import Sequence
from math import inf, log

from moesim.simulator.choices import by_last_touch, tokens_of
from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import CachePolicy, Evictable, RunInfo, View
from moesim.simulator.policies.order import Key, LowestFirst
from moesim.simulator.policies.quotas import PerPool, split

__all__ = ["LeastCachePriority"]


class LeastCachePriority(CachePolicy):
    """MoEpic's LCP, P = mu * rho ** (nu / omega), in an equal share for each layer.

    mu counts the tokens that chose the expert since the run began, whether it is here or not, and
    nu the tokens since the last of them. All priorities of a layer fade alike, so their order is
    that of log(mu) - last * log(rho) / omega, which changes with a touch alone: at rho = 1 it is
    lifetime LFU's, towards 0 LRU's. Ties go to the least recently touched. The tokens of one step
    count as used together, at its first.

    Args:
        rho: What a use is worth after ``omega`` tokens without one, above 0 and at most 1.
        omega: Those tokens.
    """

    paper = "MoEpic (arXiv 2509.08342) section 3, LCP; by secondary notes"

    def __init__(self, run: RunInfo, *, rho: float = 0.25, omega: float = 128.0) -> None:
        super().__init__(run)
        if not 0 < rho <= 1:
            raise InputError(
                f"cache policy lcp: option rho={rho:g}: expected above 0 and at most 1"
            )
        if not omega > 0:
            raise InputError(f"cache policy lcp: option omega={omega:g}: expected above 0")
        self._youth = -log(rho) / omega / run.top_k  # of a choice; a token makes top_k
        self._choices_L = [0] * run.layers
        self._event = -1
        self._last = 0.0
        self._uses: dict[int, int] = {}
        self._score: dict[int, float] = {}
        self._serial = 0
        self._touched: dict[int, int] = {}
        self._order = PerPool(run, "per_layer", lambda: LowestFirst(self._key))

    def quotas_L(self) -> list[int] | None:
        """Return equal shares."""
        return split(self.run, "per_layer")

    def on_touch(self, expert: int, view: View) -> None:
        """Count a token that chose the expert."""
        self._count(expert, 1, view)

    def on_touches(self, experts: Sequence[int], view: View) -> None:
        """Count the tokens of an event, in order of their last touches."""
        tokens = tokens_of(experts)
        in_turn = by_last_touch(experts)
        if len(in_turn) > len(tokens):
            in_turn = [*dict.fromkeys(reversed(in_turn))][::-1]
        for expert in in_turn:
            self._count(expert, tokens[expert], view)

    def _count(self, expert: int, tokens: int, view: View) -> None:
        layer = self.run.layer(expert)
        if view.event != self._event:
            self._event = view.event
            self._last = self._choices_L[layer] * self._youth
        self._choices_L[layer] += tokens
        self._uses[expert] = uses = self._uses.get(expert, 0) + tokens
        self._score[expert] = log(uses) + self._last
        self._serial += 1
        self._touched[expert] = self._serial

    def on_admit(self, expert: int, view: View) -> None:
        """Rank the expert; a prefetched one that no token chose so far has no priority."""
        if expert not in self._touched:
            self._serial += 1
            self._touched[expert] = self._serial
        self._order.of(expert).put(expert)

    def on_evict(self, expert: int, view: View) -> None:
        """Take the expert out of the ranking; its uses stay counted."""
        self._order.of(expert).drop(expert)

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return the lowest priority that may leave."""
        return self._order.offered(evictable).lowest(evictable)

    def ranked(self, layer: int) -> list[int]:
        """Return the experts of a layer that were used, the highest priority first."""
        begin = layer * self.run.experts
        known = [e for e in range(begin, begin + self.run.experts) if e in self._uses]
        return sorted(known, key=self._key, reverse=True)

    def _key(self, expert: int) -> Key:
        return self._score.get(expert, -inf), self._touched[expert], expert
