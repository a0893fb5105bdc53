"""MoEpic's cache priority of every expert: how often it was used, fading while it is not.

P = mu * rho ** (nu / omega), where mu counts the tokens that chose the expert since the run began,
whether it was here or not, and nu the tokens since the last of them (arXiv 2509.08342, LCP). All
priorities of a layer fade alike, so their order is that of log(mu) - last * log(rho) / omega, which
changes with a touch alone. The tokens of one step count as used together, at its first.
"""

from collections.abc import Sequence
from math import inf, log

from moesim.simulator.choices import by_last_touch, tokens_of
from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import RunInfo
from moesim.simulator.policies.order import Key

RHO = 0.25
OMEGA = 128.0


class Priorities:
    """The priorities of a run's experts.

    Args:
        run: The run.
        rho: What a use is worth after ``omega`` tokens without one, above 0 and at most 1.
        omega: Those tokens.
        owner: Policy that the options belong to, for messages.
    """

    def __init__(
        self, run: RunInfo, rho: float = RHO, omega: float = OMEGA, owner: str = "cache policy lcp"
    ) -> None:
        if not 0 < rho <= 1:
            raise InputError(f"{owner}: option rho={rho:g}: expected above 0 and at most 1")
        if not omega > 0:
            raise InputError(f"{owner}: option omega={omega:g}: expected above 0")
        self._experts = run.experts
        self._youth = -log(rho) / omega / run.top_k  # of a choice; a token makes top_k
        self._choices_L = [0] * run.layers
        self._event = -1
        self._last = 0.0
        self._uses: dict[int, int] = {}
        self._score: dict[int, float] = {}
        self._serial = 0
        self._touched: dict[int, int] = {}

    def count(self, expert: int, event: int, tokens: int = 1) -> None:
        """Count tokens of an event that chose the expert."""
        layer = expert // self._experts
        if event != self._event:
            self._event = event
            self._last = self._choices_L[layer] * self._youth
        self._choices_L[layer] += tokens
        self._uses[expert] = uses = self._uses.get(expert, 0) + tokens
        self._score[expert] = log(uses) + self._last
        self._serial += 1
        self._touched[expert] = self._serial

    def count_all(self, experts: Sequence[int], event: int) -> None:
        """Count the choices of an event, in order of their last touches."""
        tokens = tokens_of(experts)
        in_turn = by_last_touch(experts)
        if len(in_turn) > len(tokens):
            in_turn = [*dict.fromkeys(reversed(in_turn))][::-1]
        for expert in in_turn:
            self.count(expert, event, tokens[expert])

    def meet(self, expert: int) -> None:
        """Take note of an expert that comes without use: of no priority, but young."""
        if expert not in self._touched:
            self._serial += 1
            self._touched[expert] = self._serial

    def key(self, expert: int) -> Key:
        """Return what experts are ordered by; ties go to the least recently touched."""
        return self._score.get(expert, -inf), self._touched[expert], expert

    def ranked(self, layer: int) -> list[int]:
        """Return the experts of a layer that were used, the highest priority first."""
        begin = layer * self._experts
        known = [e for e in range(begin, begin + self._experts) if e in self._uses]
        return sorted(known, key=self.key, reverse=True)
