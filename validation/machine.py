"""What a validation needs of a machine: anything that has it can be validated.

The CPU's is in ``cpu.py``. A machine carries one model and one workload; which cells there are is
the protocol's business.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from moesim.backends.controllers import Deciding
from moesim.simulator.costs import CostModel
from moesim.simulator.ledger import Counts, Timings
from moesim.simulator.messages import Command, Fact
from moesim.simulator.serving.desk import Terms
from moesim.simulator.workload.demands import Workload
from moesim.traces import RoutingTrace
from moesim.validation.evidence import Cell

Log = Sequence[tuple[list[Fact], int, list[Command]]]
Span = tuple[str, object, int, int]


class Executed(Protocol):
    """What an execution leaves; ``backends.execution.Execution`` is one."""

    @property
    def counts(self) -> Counts:
        """The decisions, counted."""
        ...

    @property
    def timings(self) -> Timings:
        """What was measured."""
        ...

    @property
    def log(self) -> Any:  # noqa: ANN401  a Log once it was kept
        """Every call of the controller."""
        ...

    @property
    def spans(self) -> list[Span] | None:
        """Every job."""
        ...


class Machine(Protocol):
    """One machine with one model and one workload.

    Attributes:
        costs: The machine's and the runtime's figures for the model: what predictions are made of.
    """

    costs: CostModel

    @property
    def trace(self) -> RoutingTrace:
        """What cells serve; its requests were not fitted on."""
        ...

    @property
    def terms(self) -> Terms | None:
        """On which terms requests are served that arrive by themselves; None where none do."""
        ...

    def workload(self, cell: Cell, *, signals: Sequence[str], gates: bool) -> Workload:
        """Return what a cell serves, with what its policies read."""
        ...

    def fingerprint(self) -> Mapping[str, str]:
        """Return what the machine is: GPU, driver, CPU; names of parts, never of a host."""
        ...

    def versions(self) -> Mapping[str, str]:
        """Return the versions of the software that runs."""
        ...

    def anchors(self) -> dict[str, int]:
        """Measure a few fixed pieces of work, in ns: they tell whether the machine has changed."""
        ...

    def deciding(self, cell: Cell) -> Deciding:
        """Return who decides in a cell: for the prediction and for every execution."""
        ...

    def take_turns(self, cells: Sequence[Cell]) -> list[list[Cell]]:
        """Return which cells of a group are executed in turns, one lot after another."""
        ...

    def execute(self, cell: Cell) -> Executed:
        """Execute a cell from cold, keeping log and jobs."""
        ...
