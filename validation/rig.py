"""What a session needs of a kind of machine; ``cpu.py`` and ``cuda.py`` have one each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from moesim.backends.controllers import Deciding
from moesim.backends.execution import Execution
from moesim.simulator.costs import CostModel
from moesim.traces import RoutingTrace
from moesim.validation.cells import Routing
from moesim.validation.evidence import Cell
from moesim.validation.subject import Subject
from moesim.validation.wishes import Wishes

Trees = Mapping[str, dict[str, Any]]
"""The content of the profiles' files, by their names."""


class Rig(Protocol):
    """One kind of machine.

    Attributes:
        device: Where models run.
        figures: What the profiles measured in a session are called: machine, runtime.
        minutes: What a validation takes at most unless the user says otherwise; None is no limit.
        cpu_threads: How many compute the CPU's experts, here and when figures are measured.
        measures_on_the_model: Whether figures are measured on the model that is then executed;
            else they are measured before it takes its memory.
    """

    device: torch.device
    figures: tuple[str, str]
    minutes: float | None
    cpu_threads: int
    measures_on_the_model: bool

    def open(self, wishes: Wishes, trace: RoutingTrace) -> Subject:
        """Load or make the model, with its resident logits where they can be had."""
        ...

    def fitted_on(self, trace: RoutingTrace) -> RoutingTrace:
        """Return what figures measured in a session are fitted on; no claim is made on it."""
        ...

    def measure(
        self, subject: Subject | None, fitted: RoutingTrace, minutes: float | None
    ) -> Trees:
        """Measure the figures of this machine.

        Args:
            subject: The model, where figures are measured on it.
            fitted: What may be looked at.
            minutes: What the whole validation takes at most; a part of them may be used.
        """
        ...

    def warm_up(self, subject: Subject, trace: RoutingTrace) -> None:
        """Bring clocks, memory and code to where they stay; called before anything is timed."""
        ...

    def anchors(self, subject: Subject) -> dict[str, int]:
        """Measure a few fixed pieces of work, in ns."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """Return what the machine is: names of parts, never of a host."""
        ...

    def versions(self) -> dict[str, str]:
        """Return the versions of the software that runs."""
        ...


@dataclass(slots=True)
class RiggedMachine:
    """A subject on its rig with the figures that predict it: a ``Machine``."""

    rig: Rig
    subject: Subject
    costs: CostModel
    trace: RoutingTrace
    routing: Routing

    def fingerprint(self) -> dict[str, str]:
        """Return what the machine is, and what part of the host's memory experts share."""
        store = self.subject.opened.store
        shared = {}
        if store.held_bytes < store.total_bytes:
            shared = {"experts": f"{store.total_bytes} bytes share {store.held_bytes} of the host"}
        return self.rig.fingerprint() | shared

    def versions(self) -> dict[str, str]:
        """Return the versions of what executes."""
        return self.rig.versions()

    def anchors(self) -> dict[str, int]:
        """Measure the anchors."""
        return self.rig.anchors(self.subject)

    def deciding(self, cell: Cell) -> Deciding:
        """Return a cell's policies and budget, and what they may ask of times."""
        return Deciding(
            policies={"cache": cell.cache, "prefetch": cell.prefetch, "schedule": cell.schedule},
            budget_bytes=cell.expert_budget_bytes,
            system=cell.system,
            window_bytes=self.costs.window_bytes,
            costs=self.costs,
        )

    def execute(self, cell: Cell) -> Execution:
        """Execute a cell from cold."""
        return self.subject.serve(self.deciding(cell), self.trace, self.routing)
