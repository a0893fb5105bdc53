"""What decisions and asks cost on this host.

A decision costs more in a run than among decisions alone, small ones two or three times as much:
what it touches has left the caches. So a system's row is what its calls took in an execution before
anything is predicted, on what no claim is made on: on the model's own routes, or where it needs
what an execution cannot tell, on the request that calibrations look at. A system that neither was
is charged what replayed calls take, and as much more as those of the others took. Rows are kept in
the folder: who goes on there predicts with the same figures. A profile of another machine is left
as it is.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from moesim.backends.calibration.decisions import Replay, calls_of, fit_row, in_a_row_ns
from moesim.backends.execution import Execution
from moesim.hardware_profiles import RuntimeProfile
from moesim.hardware_profiles.runtime_schema import Decision
from moesim.simulator import registry
from moesim.simulator.commands.policies import Choice
from moesim.simulator.controller import Controller
from moesim.simulator.errors import InputError, PolicyError
from moesim.traces import RoutingTrace

SAMPLES = 5
Row = tuple[int, int, int]
"""Base, per expert, per command, in ns."""


class DecisionCosts(NamedTuple):
    """What was measured here, by system.

    Attributes:
        rows_ns: Of decisions.
        asks_ns: Of each kind of ask.
    """

    rows_ns: dict[str, Row]
    asks_ns: dict[str, dict[str, int]]


class Decided(NamedTuple):
    """What a system's decisions took in an execution.

    Attributes:
        row_ns: Of its calls.
        cold_ns: How much longer a call took than a fresh controller takes, told all in a row.
    """

    row_ns: Row
    cold_ns: float

    @classmethod
    def of(cls, done: Execution, fresh: Controller, top_k: int) -> "Decided":
        """Return it, from an execution that kept its log and a controller that keeps one too."""
        assert done.log is not None
        took_ns = done.timings.calls_ns
        cold_ns = max(0.0, (sum(took_ns) - in_a_row_ns(done.log, fresh)) / len(took_ns))
        return cls(fit_row(calls_of(done.log), took_ns, top_k), cold_ns)


def measure_decisions(
    choices: Sequence[Choice],
    fitted: RoutingTrace,
    known: DecisionCosts,
    executed: Mapping[str, Decided],
) -> DecisionCosts:
    """Return what is known and what is lacking of the systems that are asked for.

    A system that neither was executed nor can be served by the fitted trace stays without a row.

    Args:
        choices: The systems.
        fitted: What is replayed.
        known: What was measured before.
        executed: What those took that were executed.
    """
    rows_ns, asks_ns = dict(known.rows_ns), dict(known.asks_ns)
    cold_ns = median(one.cold_ns for one in executed.values()) if executed else 0.0
    for choice in choices:
        has_row = choice.system in rows_ns
        if not has_row and choice.system in executed:
            rows_ns[choice.system], has_row = executed[choice.system].row_ns, True
        may_ask = any(registry.parse(axis, choice.policies[axis]).may_ask for axis in registry.AXES)
        if has_row and (not may_ask or choice.system in asks_ns):
            continue
        try:
            replay = Replay(choice.system, fitted, choice.policies)
        except (InputError, PolicyError):
            continue
        for _ in range(SAMPLES):
            replay.sample()
        if not has_row:
            base_ns, expert_ns, command_ns = replay.row_ns()
            rows_ns[choice.system] = base_ns + round(cold_ns), expert_ns, command_ns
        if may_ask:
            asks_ns[choice.system] = replay.ask_ns()
    return DecisionCosts(rows_ns, asks_ns)


def with_rows(runtime: RuntimeProfile, rows_ns: Mapping[str, Row]) -> RuntimeProfile:
    """Return a runtime that has these rows too."""
    decisions = runtime.decisions
    rows = {system: _row(decisions.default, row_ns) for system, row_ns in rows_ns.items()}
    changed = decisions.model_copy(update={"systems": {**decisions.systems, **rows}})
    return runtime.model_copy(update={"decisions": changed})


def _row(default: Decision, row_ns: Row) -> Decision:
    names = ("base", "per_expert", "per_command")
    return Decision(
        **{
            name: getattr(default, name).model_copy(update={"value": value})
            for name, value in zip(names, row_ns, strict=True)
        }
    )
