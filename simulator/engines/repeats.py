"""Layers that take as long as one before: what was worked out once is not worked out again.

A machine is *at rest* when nothing runs on it, waits or is unreported, as it mostly is when the
router of a decode step has chosen and nothing is copied ahead. From there on times count from that
instant: when the host has decided and issued, when each copy and each run ends. They depend on how
many experts are copied and run, and on how long the link stood still; which experts and when is all
one. So they are learnt by watching host and machine serve such a layer, up to where the next
attention begins, and hold whenever its like comes again.
"""

from collections.abc import Sequence
from typing import NamedTuple

from moesim.simulator.costs import CostModel
from moesim.simulator.engines.hands import Hands
from moesim.simulator.engines.machine import Kind
from moesim.simulator.ledger import Timings
from moesim.simulator.messages import Copies, LayerDone, Order, Run, Runs
from moesim.simulator.terms import GPU

_MEMO_ENTRIES = 4096
_RUNS = (Run, Runs)

Like = tuple[object, ...]
"""What layers have in common that take as long."""


class Lapse(NamedTuple):
    """What a layer took: ends count from its router's choice, uses are lengths.

    Attributes:
        issued_ns: When the host has handed all over, the next attention included.
        begins_ns: When that attention begins, or after the last layer the head.
        copied_ns: When the last copy has ended.
        decision_ns: Use of what decides.
        experts_ns: Use of the GPU by runs of experts.
        slow_down_ns: What of that was lost because copies ran.
        link_ns: Use of the link.
    """

    issued_ns: int
    begins_ns: int
    copied_ns: int
    decision_ns: int
    experts_ns: int
    slow_down_ns: int
    link_ns: int


class _Watched(NamedTuple):
    """A layer that is being learnt: when its router chose, and what had been used by then."""

    like: Like
    since_ns: int
    still_ns: int
    used: tuple[int, ...]


class Repeats:
    """What layers took that a machine at rest has served.

    Args:
        hands: Those that serve: of one GPU, one command after another in the host's own time.
        costs: How long things take.
        timings: Where the host measures.
    """

    def __init__(self, hands: Hands, costs: CostModel, timings: Timings) -> None:
        self._hands = hands
        self._gpu = hands.gpu
        self._link = hands.link
        self._timings = timings
        self._class_L = costs.class_L
        self._issue_ns = costs.copy_issue_ns(1)
        self._pause_ns = costs.pause_threshold_ns
        self._known: dict[Like, dict[int, Lapse]] = {}
        self._lead_ns: dict[Like, int] = {}  # from the choice until the first copy is handed over
        self._watched: _Watched | None = None

    def serve(self, layer: int, orders: Sequence[Order], now_ns: int) -> int | None:
        """Let host and machine do what they did when the layer's like was served.

        Its copies are reported with the next facts.

        Args:
            layer: Whose router has chosen.
            orders: What was decided upon it.
            now_ns: When.

        Returns:
            How long it takes until the next attention, or the head, has ended; None if nothing was
            done, since that is not known. What the host then does is watched, for `learn`.
        """
        self._watched = None
        hands = self._hands
        like = self._like(layer, orders) if hands.is_at_rest(now_ns) else None
        if like is None:
            return None
        still_ns = now_ns - self._link.free_ns
        known = self._known.get(like)
        lapse = known.get(self._pauses(still_ns + self._lead_ns[like])) if known else None
        if lapse is None:
            self._watched = _Watched(like, now_ns, still_ns, self._used())
            return None
        issued_ns, begins_ns, copied_ns, decision_ns, experts_ns, slow_down_ns, link_ns = lapse
        timings, gpu, link, first = self._timings, self._gpu, self._link, orders[0]
        if type(first) is Copies:
            copies = len(first.experts)
            link.unreported += range(first.first, first.first + copies)
            link.free_ns = now_ns + copied_ns
            link.busy_ns += link_ns
            link.jobs += copies
            link.work += copies * first.nbytes
        kind, dense_ns = hands.dense(layer + 1)
        gpu.free_ns = now_ns + begins_ns + dense_ns
        gpu.busy_ns[Kind.EXPERTS] += experts_ns
        gpu.busy_ns[kind] += dense_ns
        gpu.slow_down_ns += slow_down_ns
        timings.decision_ns += decision_ns
        timings.host_busy_ns += issued_ns
        return max(issued_ns, begins_ns + dense_ns)

    def learn(self, layer: int, orders: Sequence[Order], issued_ns: int, now_ns: int) -> None:
        """Keep what a layer has taken that was not known, if the machine is at rest again.

        Args:
            layer: As for `serve`.
            orders: As for `serve`.
            issued_ns: When all was handed over.
            now_ns: When the next attention has ended.
        """
        watched, self._watched = self._watched, None
        if watched is None:
            return
        gpu, link = self._gpu, self._link
        used = [now - then for now, then in zip(self._used(), watched.used, strict=True)]
        decision_ns, experts_ns, slow_down_ns, link_ns, took_ns = used
        dense_ns = self._hands.dense(layer + 1)[1]
        begins_ns = gpu.free_ns - dense_ns
        is_alone = took_ns == dense_ns and link.is_idle(begins_ns)
        if not (is_alone and gpu.is_idle(now_ns)):
            return
        lead_ns = decision_ns + self._issue_ns if type(orders[0]) is Copies else 0
        if len(self._known) >= _MEMO_ENTRIES:
            self._known.clear()
        self._lead_ns[watched.like] = lead_ns
        lapses = self._known.setdefault(watched.like, {})
        lapses[self._pauses(watched.still_ns + lead_ns)] = Lapse(
            issued_ns - watched.since_ns,
            begins_ns - watched.since_ns,
            link.free_ns - watched.since_ns,
            decision_ns,
            experts_ns,
            slow_down_ns,
            link_ns,
        )

    def _like(self, layer: int, orders: Sequence[Order]) -> Like | None:
        """Return what matters of orders; None if they are not copies, then runs on one GPU."""
        if not orders or type(orders[-1]) is not LayerDone:
            return None
        like: list[object] = [self._class_L[layer]]
        before = 0  # the number before that of the first copy
        for order in orders[:-1]:
            if isinstance(order, _RUNS):
                _, _, tokens, device, after, _ = order
                if device is not GPU:
                    return None
                like += (type(order), tokens, tuple([n and n - before for n in after]))
            elif isinstance(order, Copies) and len(like) == 1:
                before = order.first - 1
                like += (order.nbytes, len(order.experts))
            else:
                return None
        return tuple(like)

    def _pauses(self, still_ns: int) -> int:
        """Return which of three kinds of copies begins after the link stood still for so long."""
        return (still_ns > 0) + (still_ns > self._pause_ns)

    def _used(self) -> tuple[int, ...]:
        busy_ns = self._gpu.busy_ns
        return (
            self._timings.decision_ns,
            busy_ns[Kind.EXPERTS],
            self._gpu.slow_down_ns,
            self._link.busy_ns,
            busy_ns[Kind.DENSE] + busy_ns[Kind.HEAD],
        )
