"""Place experts before the run and never replace one; the others pass through staging."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from moesim.simulator.policies.base import CachePolicy, RunInfo, View
from moesim.simulator.policies.quotas import Scope, split, staging_bytes
from moesim.simulator.terms import Verdict

__all__ = ["Static"]


class Static(CachePolicy):
    """A fixed set, chosen by how often experts were used in a profile trace or without one.

    Args:
        order: ``frequency`` takes the most used of the profile trace; ``uniform`` equally many of
            each layer, lowest ids first; ``front`` whole layers from the first on, ``back`` from
            the last on, ``spread`` at even distances; ``random`` any.
        scope: ``global``, or ``per_layer`` for an equal share of each layer.
        staging: Slots set apart for experts that do not stay; none takes the top-k of one layer.
        staging_layers: Room for this many whole layers in staging, for whole-layer streaming;
            the larger of the two counts.
    """

    needs = frozenset({"profile"})
    paper = "Fiddler (arXiv 2402.07033) section 3.2; KTransformers kt-kernel expert masks"

    def __init__(
        self,
        run: RunInfo,
        *,
        order: Literal["frequency", "uniform", "front", "back", "spread", "random"] = "frequency",
        scope: Scope = "global",
        staging: int | None = None,
        staging_layers: int = 0,
    ) -> None:
        super().__init__(run)
        self._order = order
        self._scope = scope
        layers_bytes = staging_layers * run.experts * max(run.expert_bytes_L)
        self._staging_bytes = max(staging_bytes(run, staging), layers_bytes)

    @classmethod
    def needs_for(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """Return that only the order by frequency needs a profile trace."""
        return cls.needs if options["order"] == "frequency" else frozenset()

    def quotas_L(self) -> list[int] | None:
        """Return equal shares if the scope is per layer."""
        return split(self.run, self._scope, self._staging_bytes)

    def staging_bytes(self) -> int:
        """Return the room for experts that do not stay."""
        return self._staging_bytes

    def initial(self) -> Sequence[int]:
        """Return all experts in order."""
        layers, experts = self.run.layers, self.run.experts
        everyone = range(layers * experts)
        if self._order == "uniform":
            return sorted(everyone, key=lambda expert: (expert % experts, expert))
        if self._order == "random":
            return [int(expert) for expert in self.run.rng.permutation(layers * experts)]
        if self._order in ("front", "back", "spread"):
            return [
                expert
                for layer in self._layers()
                for expert in range(layer * experts, (layer + 1) * experts)
            ]
        assert self.run.popularity_LE is not None
        popularity = self.run.popularity_LE.ravel().tolist()
        return sorted(everyone, key=lambda expert: (-popularity[expert], expert))

    def _layers(self) -> list[int]:
        """Return the layers in the order in which they are placed."""
        layers = self.run.layers
        if self._order == "front":
            return list(range(layers))
        if self._order == "back":
            return list(reversed(range(layers)))
        room_bytes = self.run.budget_bytes - self._staging_bytes
        layer_bytes = self.run.experts * max(self.run.expert_bytes_L)
        placed = min(layers, max(0, room_bytes // layer_bytes))
        spread = [(2 * at + 1) * layers // (2 * placed) for at in range(placed)]
        return [*spread, *(layer for layer in range(layers) if layer not in spread)]

    def admit(self, expert: int, view: View) -> Verdict:
        """Return that the expert only passes through: those that stay are here already."""
        return Verdict.TRANSIENT
