"""What decisions cost: calls of the controller replayed from a sample trace, each with its time.

A system serves the sample once, its calls are kept, and fresh controllers are then told the same
facts over and over. The time of a call is fitted as base + experts + commands; calls that report no
router's choice, of which systems with prefetch have many, have no experts. What a system asks to
have computed elsewhere is timed beside them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np

from moesim.backends.calibration import sheet as write
from moesim.backends.calibration.fitting import fit
from moesim.backends.calibration.sampling import Probe
from moesim.backends.calibration.sheet import Sheet
from moesim.backends.execution import Log
from moesim.backends.suiting import suited
from moesim.simulator import registry, systems
from moesim.simulator.assembly import assemble
from moesim.simulator.control.transfers import DEFAULT_WINDOW_BYTES
from moesim.simulator.controller import Controller
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.counts import count
from moesim.simulator.errors import CapabilityError, InputError, PolicyError
from moesim.simulator.messages import Ask, Command, LayerRouted
from moesim.simulator.registry import Axis, PolicySpec
from moesim.simulator.run_spec import GRANTS
from moesim.simulator.workload.demands import Workload
from moesim.simulator.workload.foresight import RecordedFuture
from moesim.traces import RoutingTrace

_EXPERT_BYTES = 1_000_000
_ROOM = 0.5
_MOST_CALLS = 1_000
_EVERY, _SELDOM = 4, 32
_SLOW_S = 0.3
"""A system that takes so long to serve the sample is sampled seldom: others would have too few."""
_CUTS = 4
_GATES = "gates"
_GRANTED = GRANTS | {_GATES}


class Call(NamedTuple):
    """One call of a controller: its place in the log, its size, whether a router has chosen."""

    at: int
    experts: int
    commands: int
    is_routed: bool


class Replay:
    """One system's calls on the sample, told again to fresh controllers.

    Args:
        system: A name of `moesim system list`, unless policies are given.
        trace: The sample.
        policies: A spec for each axis, under whatever name.

    Attributes:
        calls: Of the controller, in order.
        times_ns: Of each, by sample.
        asks_ns: How long what was asked took, by name.
        is_slow: Whether serving the sample took long.

    Raises:
        InputError: The trace lacks what the system's policies read.
    """

    def __init__(
        self, system: str, trace: RoutingTrace, policies: Mapping[Axis, str] | None = None
    ) -> None:
        self.system = system
        self.top_k = trace.top_k
        self._trace = trace
        if policies is None:
            bundle = systems.load(system)
            policies = {axis: getattr(bundle, axis) for axis in registry.AXES}
        self._policies: dict[Axis, PolicySpec] = {
            axis: registry.parse(axis, text)
            for axis, text in suited(policies, trace.signals).items()
        }
        needs = frozenset().union(*(policy.needs for policy in self._policies.values()))
        self._budget_bytes = int(_ROOM * trace.layers * trace.experts) * _EXPERT_BYTES
        self._future = RecordedFuture(Workload(trace).events()) if "future" in needs else None
        self._signals = sorted(needs - _GRANTED)
        if lacking := sorted(set(self._signals) - set(trace.signals)):
            raise CapabilityError(f"system {system}: the sample lacks {', '.join(lacking)}")
        self._gates = _GATES in needs
        self._log: Log = []
        self.calls: list[Call] = []
        self.times_ns: list[list[int]] = []
        self.asks_ns: dict[str, list[int]] = defaultdict(list)
        self.is_slow = False
        self._record()

    def _record(self) -> None:
        """Serve the sample once and keep the first calls."""
        began_ns = perf_counter_ns()
        controller = self._controller(keep_log=True)
        workload = Workload(self._trace, signals=self._signals, gates=self._gates)
        count(controller, workload, budget_bytes=self._budget_bytes)
        self.is_slow = perf_counter_ns() - began_ns > _SLOW_S * 1e9
        self._log = (controller.log or [])[:_MOST_CALLS]
        self.calls = calls_of(self._log)

    def sample(self) -> float:
        """Tell a fresh controller everything and return the mean time of a router's call."""
        controller = self._controller()
        controller.initial()
        times_ns = []
        for facts, now_ns, _ in self._log:
            began_ns = perf_counter_ns()
            commands = controller.handle(facts, now_ns)
            times_ns.append(perf_counter_ns() - began_ns)
            self._time_asks(controller, commands)
        self.times_ns.append(times_ns)
        routed_ns = [times_ns[call.at] for call in self.calls if call.is_routed]
        return sum(routed_ns) / len(routed_ns)

    def medians_ns(self) -> list[float]:
        """Return the time of each call, the median over all samples."""
        return [float(time) for time in np.median(np.asarray(self.times_ns), axis=0)]

    def row_ns(self) -> tuple[int, int, int]:
        """Return what a decision costs after some samples: base, per expert, per command."""
        return fit_row(self.calls, self.medians_ns(), self.top_k)

    def ask_ns(self) -> dict[str, int]:
        """Return the median time of each kind of ask."""
        return {name: round(median(times)) for name, times in sorted(self.asks_ns.items())}

    def _time_asks(self, controller: Controller, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Ask):
                began_ns = perf_counter_ns()
                controller.compute(command.name, command.question)
                self.asks_ns[command.name].append(perf_counter_ns() - began_ns)

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
    return [
        Probe(_name(replay), replay.sample, every=_SELDOM if replay.is_slow else _EVERY)
        for replay in all_replays
    ]


def decisions(all_replays: Sequence[Replay], sheet: Sheet, cold_ns: float) -> dict[str, Any]:
    """Return the runtime's section ``decisions``.

    Args:
        all_replays: Of the systems, sampled.
        sheet: Of the runtime.
        cold_ns: How much longer a call takes in a run than here; 0 where that was not measured.
    """
    more = f" and {write.ns(cold_ns)} more for each call, which a run's cold caches cost"
    rows = {}
    for replay in all_replays:
        text = f"{_what(replay)} of {replay.system}{more if cold_ns else ''}"
        source = sheet.source(f"decisions-{replay.system}", text, [_name(replay)])
        rows[replay.system] = _row([replay], source, cold_ns)
    text = f"calls of all systems together{more if cold_ns else ''}"
    source = sheet.source("decisions", text, [_name(one) for one in all_replays])
    return {"place": "host", "default": _row(all_replays, source, cold_ns), "systems": rows}


def _what(replay: Replay) -> str:
    return f"{len(replay.calls)} calls replayed from a sample trace, half of it resident,"


def _row(all_replays: Sequence[Replay], source: str, cold_ns: float) -> dict[str, Any]:
    """Fit the three costs to the calls' medians: of one system, or typical ones of all."""
    base_ns, expert_ns, command_ns = (
        all_replays[0].row_ns() if len(all_replays) == 1 else _fit_calls(all_replays)
    )
    return {
        "base": [write.ns(base_ns + cold_ns), source],
        "per_expert": [write.ns(expert_ns), source],
        "per_command": [write.ns(command_ns), source],
    }


def _fit_calls(all_replays: Sequence[Replay]) -> list[float]:
    """Return base, per expert and per command that are typical of many systems' calls, in ns."""
    calls = [call for replay in all_replays for call in replay.calls]
    times_ns = [time for replay in all_replays for time in replay.medians_ns()]
    experts, commands = ([float(call[size]) for call in calls] for size in (1, 2))
    return fit([[1.0] * len(calls), experts, commands], times_ns)


def in_a_row_ns(log: Log, fresh: Controller) -> int:
    """Return how long all calls of a log take, told to a fresh controller one after another.

    Args:
        log: Every call of an execution.
        fresh: Its controller as it began, with a log too.
    """
    took_ns = 0
    for facts, now_ns, _ in log:
        began_ns = perf_counter_ns()
        fresh.decide(facts, now_ns)
        took_ns += perf_counter_ns() - began_ns
    return took_ns


def calls_of(log: Log) -> list[Call]:
    """Return the size of each call of a log."""
    calls = []
    for at, (facts, _, commands) in enumerate(log):
        routed = [fact for fact in facts if isinstance(fact, LayerRouted)]
        distinct = sum(len(set(fact.experts)) for fact in routed)
        calls.append(Call(at, distinct, len(commands), bool(routed)))
    return calls


def fit_row(calls: Sequence[Call], times_ns: Sequence[float], top_k: int) -> tuple[int, int, int]:
    """Return base, per expert and per command that meet the mean times of groups of calls, in ns.

    A search takes a hundred times what the call after it takes: means are what tokens are made of,
    and single calls fitted by their relative errors would hide it. Groups are calls without a
    router's choice, decode and prompts, each cut by the number of commands.

    Args:
        calls: Of one system.
        times_ns: What each took.
        top_k: Experts that a token uses.
    """
    alike: dict[tuple[bool, bool], list[tuple[Call, float]]] = defaultdict(list)
    for call, time_ns in zip(calls, times_ns, strict=True):
        alike[call.is_routed, call.experts > top_k].append((call, time_ns))
    groups: list[Sequence[tuple[Call, float]]] = []
    scales_ns: list[float] = []
    for each in alike.values():
        each.sort(key=lambda pair: pair[0].commands)
        step = -(-len(each) // _CUTS)
        cut = [each[begin : begin + step] for begin in range(0, len(each), step)]
        groups += cut
        scales_ns += [fmean(time_ns for _, time_ns in each)] * len(cut)
    experts, commands = (
        [fmean(call[size] for call, _ in group) for group in groups] for size in (1, 2)
    )
    means_ns = [fmean(time_ns for _, time_ns in group) for group in groups]
    found = fit([[1.0] * len(groups), experts, commands], means_ns, scales_ns)
    base_ns, expert_ns, command_ns = map(round, found)
    return base_ns, expert_ns, command_ns


def _name(replay: Replay) -> str:
    return f"decision {replay.system}"
