"""What decisions cost: calls of the controller replayed from a sample trace, each with its time.

A system serves the sample once, its calls are kept, and fresh controllers are then told the same
facts over and over. The time of a router's call is fitted as base + experts + commands.
"""

from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np

from moesim.backends.calibration import sheet as write
from moesim.backends.calibration.fitting import fit
from moesim.backends.calibration.sampling import Probe
from moesim.backends.calibration.sheet import Sheet
from moesim.simulator import registry, systems
from moesim.simulator.assembly import assemble
from moesim.simulator.controller import Controller
from moesim.simulator.costs import CostModel
from moesim.simulator.demands import Workload
from moesim.simulator.engine_counts import count
from moesim.simulator.errors import CapabilityError, InputError, PolicyError
from moesim.simulator.foresight import RecordedFuture
from moesim.simulator.messages import Command, Fact, LayerRouted
from moesim.simulator.registry import Axis, PolicySpec
from moesim.simulator.transfers import DEFAULT_WINDOW_BYTES
from moesim.traces import RoutingTrace

_EXPERT_BYTES = 1_000_000
_ROOM = 0.5
_MOST_CALLS = 1_000
_EVERY = 4
_GATES = "gates"
_GRANTED = frozenset({"future", "profile", "transitions", _GATES})


class Call(NamedTuple):
    """One call of a controller whose router has chosen: its size and where it stands in the log."""

    at: int
    experts: int
    commands: int


class Replay:
    """One system's calls on the sample, told again to fresh controllers.

    Args:
        system: A name of `moesim system list`.
        trace: The sample.

    Raises:
        InputError: The trace lacks what the system's policies read.
    """

    def __init__(self, system: str, trace: RoutingTrace) -> None:
        self.system = system
        self._trace = trace
        bundle = systems.load(system)
        self._policies: dict[Axis, PolicySpec] = {
            axis: registry.parse(axis, getattr(bundle, axis)) for axis in registry.AXES
        }
        needs = frozenset().union(*(policy.needs for policy in self._policies.values()))
        self._budget_bytes = int(_ROOM * trace.layers * trace.experts) * _EXPERT_BYTES
        self._future = RecordedFuture(Workload(trace).events()) if "future" in needs else None
        self._signals = sorted(needs - _GRANTED)
        if lacking := sorted(set(self._signals) - set(trace.signals)):
            raise CapabilityError(f"system {system}: the sample lacks {', '.join(lacking)}")
        self._gates = _GATES in needs
        self._log: list[tuple[list[Fact], int, list[Command]]] = []
        self.calls: list[Call] = []
        self.times_ns: list[list[int]] = []
        self._record()

    def _record(self) -> None:
        """Serve the sample once and keep the first calls."""
        controller = self._controller(keep_log=True)
        workload = Workload(self._trace, signals=self._signals, gates=self._gates)
        count(controller, workload, budget_bytes=self._budget_bytes)
        self._log = (controller.log or [])[:_MOST_CALLS]
        for at, (facts, _, commands) in enumerate(self._log):
            routed = [fact for fact in facts if isinstance(fact, LayerRouted)]
            if routed:
                distinct = sum(len(set(fact.experts)) for fact in routed)
                self.calls.append(Call(at, distinct, len(commands)))

    def sample(self) -> float:
        """Tell a fresh controller everything and return the mean time of a router's call."""
        controller = self._controller()
        controller.initial()
        times_ns = []
        for facts, now_ns, _ in self._log:
            began_ns = perf_counter_ns()
            controller.handle(facts, now_ns)
            times_ns.append(perf_counter_ns() - began_ns)
        routed_ns = [times_ns[call.at] for call in self.calls]
        self.times_ns.append(routed_ns)
        return sum(routed_ns) / len(routed_ns)

    def medians_ns(self) -> list[float]:
        """Return the time of each router's call, the median over all samples."""
        return [float(time) for time in np.median(np.asarray(self.times_ns), axis=0)]

    def _controller(self, *, keep_log: bool = False) -> Controller:
        trace = self._trace
        return assemble(
            self._policies,
            experts=trace.experts,
            top_k=trace.top_k,
            sizes_L=(_EXPERT_BYTES,) * trace.layers,
            budget_bytes=self._budget_bytes,
            costs=CostModel.for_tests(
                layers=trace.layers, experts=trace.experts, top_k=trace.top_k
            ),
            window_bytes=DEFAULT_WINDOW_BYTES,
            profile_trace=trace,
            future=self._future,
            keep_log=keep_log,
        )


def replays(
    trace: RoutingTrace, names: Sequence[str] | None = None
) -> tuple[list[Replay], dict[str, str]]:
    """Return a recorded replay of every system that the sample can serve, and why others are not.

    Args:
        trace: The sample.
        names: Of systems; all by default.
    """
    served: list[Replay] = []
    refused: dict[str, str] = {}
    for name in systems.names() if names is None else names:
        try:
            served.append(Replay(name, trace))
        except (InputError, PolicyError) as error:
            refused[name] = str(error)
    return served, refused


def probes(all_replays: Sequence[Replay]) -> list[Probe]:
    """Return one probe for each system."""
    return [Probe(_name(replay), replay.sample, every=_EVERY) for replay in all_replays]


def decisions(all_replays: Sequence[Replay], sheet: Sheet) -> dict[str, Any]:
    """Return the runtime's section ``decisions``."""
    rows = {}
    for replay in all_replays:
        name = f"decisions-{replay.system}"
        source = sheet.source(name, f"{_what(replay)} of {replay.system}", [_name(replay)])
        rows[replay.system] = _row([replay], source)
    source = sheet.source(
        "decisions", "router's calls of all systems together", [_name(one) for one in all_replays]
    )
    return {"place": "host", "default": _row(all_replays, source), "systems": rows}


def _what(replay: Replay) -> str:
    return f"{len(replay.calls)} router's calls replayed from a sample trace, half of it resident,"


def _row(all_replays: Sequence[Replay], source: str) -> dict[str, Any]:
    """Fit the three costs to the calls' medians."""
    calls = [call for replay in all_replays for call in replay.calls]
    times_ns = [time for replay in all_replays for time in replay.medians_ns()]
    experts = [float(call.experts) for call in calls]
    commands = [float(call.commands) for call in calls]
    base_ns, expert_ns, command_ns = fit([[1.0] * len(calls), experts, commands], times_ns)
    return {
        "base": [write.ns(base_ns), source],
        "per_expert": [write.ns(expert_ns), source],
        "per_command": [write.ns(command_ns), source],
    }


def _name(replay: Replay) -> str:
    return f"decision {replay.system}"
