"""What a session needs of a kind of machine; ``cpu.py`` and ``cuda.py`` have one each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from moesim.backends.controllers import Deciding, splits
from moesim.backends.execution import Execution, MakeDriver
from moesim.backends.told import told_by
from moesim.simulator.costs import CostModel
from moesim.simulator.policies.base import UNLIMITED_BYTES
from moesim.simulator.serving.desk import Terms
from moesim.simulator.workload.demands import Workload
from moesim.traces import RoutingTrace
from moesim.validation.cells import Routing, policies_of
from moesim.validation.evidence import Cell
from moesim.validation.loads import Load
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

    def cores(self) -> dict[str, str]:
        """Return which cores do what: the host's loop, the CPU's experts, asks."""
        ...

    def versions(self) -> dict[str, str]:
        """Return the versions of the software that runs."""
        ...


@dataclass(slots=True)
class RiggedMachine:
    """A subject on its rig with the figures that predict it: a ``Machine``.

    Attributes:
        load: What is served.
        make_driver: The device, as an intervention may have made it.
        profile: What systems that are profiled offline look at.
    """

    rig: Rig
    subject: Subject
    costs: CostModel
    load: Load
    routing: Routing
    make_driver: MakeDriver
    profile: RoutingTrace | None = None

    @property
    def trace(self) -> RoutingTrace:
        """What cells serve."""
        return self.load.trace

    @property
    def terms(self) -> Terms | None:
        """On which terms requests are served that arrive by themselves."""
        return self.load.terms(self.subject.opened.kv_bytes_per_token)

    def workload(self, cell: Cell, *, signals: Sequence[str], gates: bool) -> Workload:
        """Return what a cell serves, with what its policies read."""
        return self.load.workload(policies_of(cell), signals=signals, gates=gates)

    def fingerprint(self) -> dict[str, str]:
        """Return what the machine is, which cores do what, and what memory experts share."""
        store = self.subject.opened.store
        shared = {}
        if store.held_bytes < store.total_bytes:
            shared = {"experts": f"{store.total_bytes} bytes share {store.held_bytes} of the host"}
        cores = {f"cores, {name}": what for name, what in self.rig.cores().items()}
        return self.rig.fingerprint() | cores | shared

    def versions(self) -> dict[str, str]:
        """Return the versions of what executes."""
        return self.rig.versions()

    def anchors(self) -> dict[str, int]:
        """Measure the anchors."""
        return self.rig.anchors(self.subject)

    def deciding(self, cell: Cell) -> Deciding:
        """Return a cell's policies and budget, what they may ask of times, and what they are told.

        With forced routes that is what the trace kept.
        """
        terms = self.terms
        deciding = Deciding(
            policies=policies_of(cell),
            budget_bytes=cell.expert_budget_bytes,
            kv_bytes=terms.kv.room_bytes if terms and terms.kv else UNLIMITED_BYTES,
            system=cell.system,
            seed=cell.seed or 0,
            window_bytes=self.costs.window_bytes,
            costs=self.costs,
            profile_trace=self.profile,
        )
        return deciding if self.routing == "own" else told_by(self.trace, deciding)

    def take_turns(self, cells: Sequence[Cell]) -> list[list[Cell]]:
        """Return which cells are executed in turns: all, unless each change of layout costs time.

        Then those of one layout of experts take turns, and the other layout comes after them.
        """
        if self.subject.relaying.is_free():
            return [[*cells]]
        whole, split = (
            [cell for cell in cells if splits(policies_of(cell)) is by_row]
            for by_row in (False, True)
        )
        return [group for group in (whole, split) if group]

    def execute(self, cell: Cell) -> Execution:
        """Execute a cell from cold."""
        stream = self.load.stream
        return self.subject.serve(
            self.deciding(cell),
            self.trace,
            self.routing,
            make_driver=self.make_driver,
            arrivals=None if stream is None else stream.new_arrivals(),
            terms=self.terms,
        )
