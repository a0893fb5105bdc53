"""What a lossy schedule makes of a router's choice, checked before anything follows from it.

The router chose; a lossy schedule may give a token another expert in place of one, or none. What
it says becomes one ``Reroute`` command, which stands before all copies and runs of the layer, and
the demand that is judged from then on. Cache policies are told of the router's own choice, which
is what predicts the next one, unless the schedule says otherwise (``counts_served``).
"""

from collections.abc import Sequence

from moesim.simulator.control.residency import Residency
from moesim.simulator.control.transfers import Outbox
from moesim.simulator.errors import CapabilityError, InputError, PolicyError
from moesim.simulator.ledger import Counts
from moesim.simulator.messages import LayerRouted, Reroute
from moesim.simulator.policies.base import CachePolicy, RunInfo, SchedulePolicy, View, overrides

LOSSY = frozenset({"reroute", "skip"})
"""What a policy that changes the text says of itself in ``does``."""


def rerouter(schedule: SchedulePolicy) -> SchedulePolicy | None:
    """Return the policy that changes choices: the schedule itself or one that it guards.

    Raises:
        InputError: Two would.
    """
    found: SchedulePolicy | None = None
    policy: object = schedule
    while isinstance(policy, SchedulePolicy):
        if overrides(policy, SchedulePolicy, "reroute"):
            if found is not None:
                raise InputError(
                    f"{type(found).__name__} and {type(policy).__name__}, which it guards, both "
                    "change the router's choices; take one of them"
                )
            found = policy
        policy = getattr(policy, "inner", None)
    return found


class Rerouting:
    """Asks a lossy schedule about one layer after another."""

    def __init__(
        self,
        run: RunInfo,
        schedule: SchedulePolicy,
        cache: CachePolicy,
        *,
        residency: Residency,
        view: View,
        counts: Counts,
        out: Outbox,
    ) -> None:
        self._run = run
        self._schedule = schedule
        self._cache = cache
        self._residency = residency
        self._view = view
        self._counts = counts
        self._out = out
        self.counts_served = schedule.counts_served

    def serve(self, fact: LayerRouted) -> LayerRouted:
        """Return what is demanded in place of what was routed, having said so.

        Raises:
            PolicyError: The schedule answered with what is no choice.
        """
        changes = tuple(self._schedule.reroute(fact.experts, fact.gates, self._view))
        if not changes:
            return fact
        experts = self._changed(fact, changes)
        self._out.commands.append(Reroute(fact.layer, changes))
        skipped = sum(expert is None for _, expert in changes)
        self._counts.skipped += skipped
        self._counts.rerouted += len(changes) - skipped
        return fact._replace(experts=[expert for expert in experts if expert is not None])

    def forget(self, chosen: Sequence[int], served: Sequence[int]) -> None:
        """Tell the cache policy that those touched and neither demanded nor here are not here."""
        demanded = set(served)
        for expert in dict.fromkeys(chosen):
            if expert not in demanded and not self._residency.has_room(expert):
                self._cache.on_evict(expert, self._view)

    def _changed(
        self, fact: LayerRouted, changes: Sequence[tuple[int, int | None]]
    ) -> list[int | None]:
        """Return the choices by place, those skipped as None."""
        top_k, name = self._run.top_k, type(self._schedule).__name__
        experts: list[int | None] = list(fact.experts)
        if len(experts) % top_k:
            raise CapabilityError(
                f"{name} reroutes layer {fact.layer}, where choices of some tokens are absent; "
                "give a trace that has them all"
            )
        begin = fact.layer * self._run.experts
        changed: set[int] = set()
        for at, expert in changes:
            if at in changed or not 0 <= at < len(experts):
                raise PolicyError(
                    f"{name} changes choice {at} of layer {fact.layer}: there are {len(experts)}, "
                    "and each may be changed once"
                )
            if expert is not None and not begin <= expert < begin + self._run.experts:
                raise PolicyError(f"{name} sends a token of layer {fact.layer} to expert {expert}")
            means = "skip" if expert is None else "reroute"
            if means not in type(self._schedule).does:
                raise PolicyError(
                    f"{name} changes the text and does not say so; give the class "
                    f'does = frozenset({{"{means}"}})'
                )
            changed.add(at)
            experts[at] = expert
        for token in {at // top_k for at in changed}:
            row = [e for e in experts[token * top_k : (token + 1) * top_k] if e is not None]
            if len(set(row)) < len(row):
                raise PolicyError(
                    f"{name} sends token {token} of layer {fact.layer} to one expert twice: {row}"
                )
        return experts
