"""Let through only the prefetches that the link can finish in time."""

from collections.abc import Iterable

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import PrefetchPolicy, RunInfo, View, Wish
from moesim.simulator.policies.guards import PrefetchGuard

__all__ = ["ByteBudget"]


class ByteBudget(PrefetchGuard):
    """Wishes whose copies end, one after another, before their layer's router has chosen.

    The window of a layer is what the GPU computes until then: the experts of the layer just routed,
    and attention and router of each layer on the way. Copies of the present demand take no part of
    it, since the GPU waits for them; prefetches that are still under way or queued do. Whole
    experts only, the most urgent first. MoE-Infinity measures link and layers while it serves; here
    both come from the cost model of the run.

    Args:
        fraction: Share of the window that copies may fill, above 0.
        cold_steps: Steps at the beginning in which the cache fills and few are let through.
        cold_limit: Prefetches let through after each router during these steps.
    """

    paper = "MoE-Infinity pull request 180 (overlap-aware prefetch)"

    def __init__(
        self,
        run: RunInfo,
        inner: PrefetchPolicy,
        *,
        fraction: float = 1.0,
        cold_steps: int = 1,
        cold_limit: int = 2,
    ) -> None:
        super().__init__(run, inner)
        for name, value, is_right, expected in (
            ("fraction", fraction, fraction > 0, "above 0"),
            ("cold_steps", cold_steps, cold_steps >= 0, "at least 0"),
            ("cold_limit", cold_limit, cold_limit >= 0, "at least 0"),
        ):
            if not is_right:
                raise InputError(
                    f"prefetch policy byte_budget: option {name}={value:g}: expected {expected}"
                )
        self._fraction = fraction
        self._cold_steps = cold_steps
        self._cold_limit = cold_limit
        self._queued: dict[int, float] = {}  # let through, not seen handed over -> priority
        self._one_token = [1] * run.top_k

    def let_through(self, wishes: Iterable[Wish], view: View) -> Iterable[Wish]:
        """Return the wishes that fit into their windows."""
        self._forget_what_is_over(view)
        wished = {e: priority for e, priority in wishes if not _is_here(e, view)}
        windows_ns = self._windows_ns()
        busy_ns = self._backlog_ns(view)
        is_cold = view.step < self._cold_steps
        left = self._cold_limit
        passed: list[Wish] = []
        everyone = sorted((self._queued | wished).items(), key=lambda item: item[1])
        for expert, priority in everyone:
            copied_ns = busy_ns + self.run.costs.copy_ns(self.run.size(expert))
            if expert not in self._queued:
                window_ns = windows_ns[self._layers_ahead(expert) - 1]
                if copied_ns > self._fraction * window_ns or (is_cold and left == 0):
                    continue
                left -= 1
            busy_ns = copied_ns
            self._queued[expert] = priority
            if expert in wished:
                passed.append(Wish(expert, priority))
        return passed

    def _forget_what_is_over(self, view: View) -> None:
        """Drop what was handed over since, and what was cancelled when its layer was routed."""
        self._queued = {
            expert: priority
            for expert, priority in self._queued.items()
            if self.run.layer(expert) != view.layer and not _is_here(expert, view)
        }

    def _layers_ahead(self, expert: int) -> int:
        layers = self.run.layers
        routed = -1 if self.demand is None else self.demand.layer
        return (self.run.layer(expert) - routed - 1) % layers + 1

    def _windows_ns(self) -> list[int]:
        """Return what the GPU computes before each layer ahead has been routed, nearest first."""
        costs, layers = self.run.costs, self.run.layers
        if self.demand is None:
            layer, tokens, window_ns = -1, self._one_token, 0
        else:
            layer, tokens = self.demand.layer, list(self.demand.tokens.values())
            window_ns = costs.experts_gpu_ns(layer, tokens)
        windows_ns = []
        for ahead in range(1, layers + 1):
            at = (layer + ahead) % layers
            window_ns += costs.layer_ns(at)
            windows_ns.append(window_ns)
            window_ns += costs.experts_gpu_ns(at, tokens)
        return windows_ns

    def _backlog_ns(self, view: View) -> int:
        """Return how long the link is busy with earlier prefetches."""
        size = self.run.expert_bytes_L[self.demand.layer] if self.demand else 0
        demanded_bytes = size * len(self.demand.misses) if self.demand else 0
        backlog_bytes = view.queued_bytes - demanded_bytes
        return self.run.costs.copy_ns(backlog_bytes) if backlog_bytes > 0 else 0


def _is_here(expert: int, view: View) -> bool:
    return view.residency.is_resident(expert) or view.residency.is_loading(expert)
