"""Every message of the contract passes through the SimPy engine, whoever decides.

A scripted controller answers each kind of fact with commands of its own, so that messages which
no policy of ours sends yet are obeyed and answered all the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import pytest

from moesim.hardware_profiles import load
from moesim.simulator import messages
from moesim.simulator.costs import CopyKind, CostModel
from moesim.simulator.engines.simpy import SimpyEngine
from moesim.simulator.errors import BudgetError, CapabilityError, MoesimError, ProtocolError
from moesim.simulator.messages import (
    Answered,
    Ask,
    BudgetChanged,
    Command,
    Copy,
    CopyEnded,
    CpuRunEnded,
    Drop,
    Fact,
    Failed,
    FormStep,
    LayerDone,
    LayerRouted,
    Move,
    RequestArrived,
    RequestEnded,
    Reroute,
    Run,
    RunBegan,
    StepBegan,
    StepEnded,
    TimerFired,
    Wait,
    WakeAt,
)
from moesim.simulator.terms import CPU, GPU, NVME, RAM, Cause, Place, Tier
from moesim.simulator.testing import small_run, tiny_trace
from moesim.simulator.workload.demands import Workload

SLOT = Place(Tier.VRAM, 0, 0, 0, 0)
OTHER_SLOT = Place(Tier.VRAM, 0, 0, 1, 1_000_000)
PEER = Place(Tier.VRAM, 1, 0, 0, 0)

Answer = Callable[[Any], Sequence[Command]]


class Scripted:
    """Serves a request layer by layer and, at the facts of a script, does as it says."""

    def __init__(self, script: Mapping[type, Answer], *, awaits: type | None = None) -> None:
        self.facts: list[tuple[int, Fact]] = []
        self.listens = awaits is not None
        self._script = dict(script)
        self._awaits = awaits

    def initial(self) -> tuple[int, ...]:
        """Place nothing."""
        return ()

    def handle(self, facts: list[Fact], now_ns: int) -> list[Command]:
        """Note the facts; form steps, close layers, and answer by the script, once each."""
        commands: list[Command] = []
        for fact in facts:
            self.facts.append((now_ns, fact))
            answer = self._script.pop(type(fact), None)
            if answer is not None:
                commands += answer(fact)
            if isinstance(fact, self._awaits or ()):
                self.listens = False
            if isinstance(fact, LayerRouted):
                commands.append(LayerDone(fact.layer))
        ended = any(isinstance(fact, RequestEnded) for fact in facts)
        if isinstance(facts[-1], RequestArrived | StepEnded) and not ended:
            commands.append(FormStep((0,), (None,)))
        return commands

    def told(self, kind: type) -> list[tuple[int, Any]]:
        """Return when the facts of a kind were told, and what they said."""
        return [(now_ns, fact) for now_ns, fact in self.facts if isinstance(fact, kind)]


def play(
    script: Mapping[type, Answer], *, awaits: type | None = None
) -> tuple[Scripted, SimpyEngine]:
    """Run one request under a script and return the controller and the engine."""
    controller = Scripted(script, awaits=awaits)
    engine = SimpyEngine(
        controller,
        Workload(tiny_trace(layers=2, experts=4, top_k=2).head(requests=1)),
        CostModel.for_tests(machine={"slow_down_ppm": 0}),
        expert_bytes=lambda _expert, _part: 1_000_000,
        budget_bytes=8_000_000,
        compute=lambda name, question: f"{name} of {question}",
        ask_ns={"map": 1_000_000},
        keep_spans=True,
    )
    engine.run()
    return controller, engine


def on_first(kind: type, *commands: Command) -> dict[type, Answer]:
    """Return a script that answers the first fact of a kind with these commands."""
    return {kind: lambda _: commands}


def test_a_plain_run_tells_the_facts_of_a_request_in_their_order() -> None:
    """Run, arrival, steps, layers, step ends and the request's end are told, and nothing else."""
    controller, _ = play({})
    kinds = [type(fact) for _, fact in controller.facts]
    assert kinds[:2] == [RunBegan, RequestArrived]
    assert kinds[-2:] == [StepEnded, RequestEnded]
    steps = len(controller.told(StepBegan))
    assert kinds[2:-1] == [StepBegan, LayerRouted, LayerRouted, StepEnded] * steps
    times = [now_ns for now_ns, _ in controller.facts]
    assert times == sorted(times)
    assert [fact.tokens for _, fact in controller.told(StepEnded)] == [(1,)] * steps


@pytest.mark.parametrize(
    ("src", "dst", "kind"),
    [
        (RAM, SLOT, "h2d"),
        (SLOT, RAM, "d2h"),
        (PEER, SLOT, "peer"),
        (SLOT, PEER, "peer_out"),
        (NVME, RAM, "nvme"),
    ],
)
def test_a_copy_occupies_the_engine_of_its_places(src: Place, dst: Place, kind: str) -> None:
    """A copy runs on the engine that joins its places and is reported ended, by number."""
    controller, engine = play(on_first(LayerRouted, Copy(1, 3, 0, src, dst, Cause.DEMAND)))
    outlasts_the_run = kind == "nvme"
    told = [fact.n for _, fact in controller.told(CopyEnded)]
    assert told == ([] if outlasts_the_run else [1])
    assert engine.timings.engine_copies == {
        name: int(name == kind) for name in ("h2d", "d2h", "peer", "peer_out", "nvme")
    }
    cost: CopyKind = "peer" if kind == "peer_out" else kind
    copy_ns = CostModel.for_tests().copy_ns(1_000_000, cost)
    assert engine.timings.engines_busy_ns[kind] == copy_ns > 0


def test_a_copy_over_what_a_machine_lacks_is_refused() -> None:
    """A machine without NVMe says so, and which profile to complete."""
    machine = load("h100-sxm")
    lacking = machine.model_copy(update={"nvme": None})
    costs = CostModel.for_tests()
    with pytest.raises(CapabilityError, match="nvme"):
        CostModel(lacking, costs.runtime, costs.shape).copy_ns(1_000_000, "nvme")


def test_a_run_waits_for_its_copies_and_a_copy_for_its_runs() -> None:
    """``after`` holds a run until the copy has ended, and the next copy until that run has."""
    _, engine = play(
        on_first(
            LayerRouted,
            Copy(1, 0, 0, RAM, SLOT, Cause.DEMAND),
            Run(2, (0,), (1,), GPU, (1,)),
            Copy(3, 1, 0, RAM, SLOT, Cause.DEMAND, (2,)),
            Run(4, (1,), (1,), GPU, (3,)),
        )
    )
    assert engine.spans is not None
    times = {what.n: (begin, end) for _, what, begin, end in engine.spans if hasattr(what, "n")}
    assert times[2][0] == times[1][1]
    assert times[3][0] == times[2][1]
    assert times[4][0] == times[3][1]


def test_a_copy_of_what_was_not_handed_over_is_refused() -> None:
    """``after`` may name only what was handed over before."""
    with pytest.raises(ProtocolError, match="waits for 9"):
        play(on_first(LayerRouted, Copy(1, 0, 0, RAM, SLOT, Cause.DEMAND, (9,))))


def test_a_cpu_run_is_reported_when_it_has_ended() -> None:
    """A run on the CPU is told as ended, with its number, after the time that it takes."""
    controller, engine = play(on_first(LayerRouted, Run(1, (0, 1), (1, 1), CPU)))
    ((told_ns, fact),) = controller.told(CpuRunEnded)
    assert fact.n == 1
    assert engine.timings.cpu_busy_ns > 0
    assert told_ns > engine.timings.cpu_busy_ns


def test_a_move_and_a_drop_stay_on_the_device() -> None:
    """A move is a kernel of the compute stream, whose end nobody is told; a drop takes no time."""
    _, plain = play({})
    controller, engine = play(
        on_first(LayerRouted, Drop(5, 0, OTHER_SLOT), Move(1, 4, 0, SLOT, OTHER_SLOT))
    )
    assert controller.told(CopyEnded) == []
    assert engine.timings.engine_copies["h2d"] == 0
    move_ns = CostModel.for_tests().move_ns(1_000_000)
    assert engine.timings.gpu_busy_ns - plain.timings.gpu_busy_ns == move_ns


def test_a_reroute_and_a_wait_change_nothing_of_the_machine() -> None:
    """A reroute has been judged by the controller and a wait asks for nothing: no time passes."""
    plain, _ = play({})
    free = CostModel.for_tests().decision_ns("", 0, 1) - CostModel.for_tests().decision_ns("", 0, 0)
    controller, _ = play(on_first(LayerRouted, Reroute(0, ((1, None),)), Wait()))
    assert controller.facts[-1][0] - plain.facts[-1][0] == 2 * free


def test_an_ask_is_answered_after_its_time() -> None:
    """The answer is computed by the given function and told when its time has passed."""
    controller, _ = play(on_first(StepBegan, Ask(1, "map", "where")), awaits=Answered)
    ((told_ns, fact),) = controller.told(Answered)
    assert fact == Answered(1, "map", "map of where")
    assert told_ns - controller.told(StepBegan)[0][0] >= 1_000_000


def test_an_ask_without_a_known_time_is_refused() -> None:
    """No ask is free: one whose time nobody gave is refused by name."""
    with pytest.raises(CapabilityError, match="asks for 'oracle'.* --ask oracle="):
        play(on_first(StepBegan, Ask(1, "oracle", None)))


def test_a_timer_fires_at_its_time() -> None:
    """A wake is told at its time, or at the next poll after it."""
    controller, _ = play(on_first(StepBegan, WakeAt(1, 500_000)), awaits=TimerFired)
    ((told_ns, fact),) = controller.told(TimerFired)
    assert fact.n == 1
    assert told_ns >= 500_000


def test_a_driver_refuses_what_it_does_not_do() -> None:
    """A prompt chunk that was not recorded is refused by name."""
    controller = Scripted({})
    workload = Workload(tiny_trace())
    with pytest.raises(CapabilityError, match="cut to 3 prompt tokens"):
        workload.begin(FormStep((0,), (3,)))
    assert controller.initial() == ()


def test_the_controller_refuses_what_cannot_be() -> None:
    """A budget below one token's experts is refused; a failure and an unknown timer end the run."""
    controller = small_run(tiny_trace()).controller()
    with pytest.raises(BudgetError, match="budget changed to 5 bytes"):
        controller.handle([BudgetChanged(5)], 0)
    with pytest.raises(MoesimError, match="command 3 failed: out of pinned memory"):
        controller.handle([Failed(3, "out of pinned memory")], 0)
    with pytest.raises(ProtocolError, match="timer 1"):
        controller.handle([TimerFired(1)], 0)


def test_every_message_is_met_above() -> None:
    """No fact or command of the contract is missing from this file."""
    with open(__file__, encoding="utf-8") as lines:  # noqa: PTH123  the file itself
        text = lines.read()
    for kind in (*get_args(messages.Fact), *get_args(messages.Command)):
        assert text.count(kind.__name__) > 1, kind
