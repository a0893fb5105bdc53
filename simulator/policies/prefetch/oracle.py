"""Know what will be demanded, as well as a predictor of given quality would."""

from collections.abc import Iterable, Sequence

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import Demand, PrefetchPolicy, RunInfo, View, Wish

__all__ = ["Oracle"]


class Oracle(PrefetchPolicy):
    """The recorded demands of the next events, degraded to a given recall and precision.

    Each expert that will be demanded is named with probability ``recall``; wrong ones of the same
    layer are added so that of all named the expected share ``precision`` is right, as far as the
    layer has enough wrong ones. An event is foreseen once, when it comes into sight, and wished
    for until it is there.

    Args:
        recall: Share of the demanded experts that are named, 0 to 1.
        precision: Share of the named experts that are right, above 0 and at most 1.
        horizon: How many layer events ahead, from 1.
    """

    needs = frozenset({"future"})
    paper = "the upper bound of learned predictors; Pre-gated MoE (ISCA'24) is horizon 1"

    def __init__(
        self, run: RunInfo, *, recall: float = 1.0, precision: float = 1.0, horizon: int = 1
    ) -> None:
        super().__init__(run)
        for name, value, is_right, expected in (
            ("recall", recall, 0 <= recall <= 1, "0 to 1"),
            ("precision", precision, 0 < precision <= 1, "above 0 and at most 1"),
            ("horizon", horizon, horizon >= 1, "at least 1"),
        ):
            if not is_right:
                raise InputError(
                    f"prefetch policy oracle: option {name}={value:g}: expected {expected}"
                )
        assert run.future is not None
        self._future = run.future
        self._recall = recall
        self._wrong_per_right = (1 - precision) / precision
        self._horizon = horizon
        self._foreseen: dict[int, list[int]] = {}  # event -> experts named

    def wants(self, demand: Demand | None, view: View) -> Iterable[Wish]:
        """Return what is named for the events in sight, the next one first."""
        self._foreseen.pop(view.event, None)
        for event in range(view.event + 1, view.event + 1 + self._horizon):
            named = self._foreseen.get(event)
            if named is None:
                named = self._foreseen[event] = self._foresee(self._future.demand(event))
            for expert in named:
                yield Wish(expert, event)

    def _foresee(self, demanded: Sequence[int]) -> list[int]:
        if not demanded or (self._recall == 1 and not self._wrong_per_right):
            return list(demanded)
        rng = self.run.rng
        drawn = rng.random(len(demanded)) < self._recall
        named = [expert for expert, is_named in zip(demanded, drawn, strict=True) if is_named]
        expected_wrong = len(named) * self._wrong_per_right
        wrong = int(expected_wrong) + int(rng.random() < expected_wrong % 1)
        if wrong:
            first = self.run.layer(demanded[0]) * self.run.experts
            others = sorted({*range(first, first + self.run.experts)}.difference(demanded))
            chosen = rng.permutation(len(others))[:wrong]
            named += [others[at] for at in chosen]
            named = [named[at] for at in rng.permutation(len(named))]
        return named
