"""Every system decides at its own cost, reads the signals there are, and runs on its own layout."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="it executes")

from moesim.backends.calibration.decisions import Replay
from moesim.backends.suiting import suited
from moesim.backends.told import ToldSignals
from moesim.hardware_profiles.round_numbers import round_machine, round_runtime
from moesim.simulator.messages import FormStep
from moesim.simulator.workload.demands import Workload
from moesim.traces import RoutingTrace, SignalSpec, load, samples
from moesim.validation.beside import Calibration
from moesim.validation.cells import choose_system
from moesim.validation.deciding import (
    Decided,
    DecisionCosts,
    measure_decisions,
    with_rows,
)
from moesim.validation.evidence_files import to_text
from moesim.validation.figures import Figures, with_decisions
from moesim.validation.predict import predict
from moesim.validation.rig import RiggedMachine

ASKING = "likely_use+expert_map:distance=1,search=ask,maps=top,semantic=none+resident_first"
NOTHING = DecisionCosts({}, {})


def sample() -> RoutingTrace:
    """Return two requests of a twin that kept the best of each distribution."""
    return load(Path(samples.__path__[0]) / "twin-olmoe-16x64.npz").head(requests=2)


def test_finemoe_takes_the_best_of_a_distribution() -> None:
    """Where a trace kept the best alone, or no embeddings, the options say so."""
    finemoe = choose_system("finemoe").policies
    top = {"router_top_TLM", "router_top_score_TLM", "embedding_TD"}
    assert suited(finemoe, top)["prefetch"].endswith(",maps=top")
    assert suited(finemoe, {"router_probs_TLE"})["prefetch"].endswith(",semantic=none")
    assert suited(finemoe, {"router_probs_TLE", "embedding_TD"}) == finemoe
    assert suited(finemoe, {"embedding_TD"}) == finemoe
    on_demand = choose_system("on-demand").policies
    assert suited(on_demand, ()) == on_demand


def test_an_execution_is_told_what_a_replay_is_told() -> None:
    """Step by step and layer by layer the signals of a trace are those of its workload."""
    trace = sample().select_requests([1])
    names = ["embedding_TD", "look_out_TLHM", "prompt_embedding_RD", "router_top_TLM"]
    told, workload = ToldSignals(trace, names), Workload(trace, signals=names)
    position = 0
    for tokens in (int(trace.prompt_tokens_R[0]), 1, 1):
        step = workload.begin(FormStep((0,), (None,)))
        assert told.begin([(0, position, tokens)]) == step.signals
        for layer in range(trace.layers):
            assert told.at_layer(layer) == step.layer_signals(layer)
        position += tokens


def test_rows_are_measured_once_and_change_the_profile() -> None:
    """A system without a row gets one, a system that asks its asks; what is known stays.

    One that was executed has what its calls took; another what replays take, and as much more.
    """
    fitted, runtime = sample().select_requests([0]), round_runtime()
    choices = [choose_system(text) for text in ("lfu", "lru", ASKING)]
    known = DecisionCosts({"lfu": (1, 2, 3)}, {})
    executed = {"lfu": Decided((9, 9, 9), 1e9), "lru": Decided((4, 5, 6), 1e9)}

    found = measure_decisions(choices, fitted, known, executed)

    assert found.rows_ns["lfu"] == (1, 2, 3)
    assert found.rows_ns["lru"] == (4, 5, 6)
    assert found.rows_ns[ASKING][0] >= 10**9
    assert found.asks_ns[ASKING]["expert_map_search"] > 0
    rows = with_rows(runtime, found.rows_ns).decisions.systems
    assert [figure.value for figure in (rows["lfu"].base, rows["lfu"].per_command)] == [1, 3]
    assert with_rows(runtime, {}) == runtime
    assert measure_decisions(choices, fitted, found, executed) == found


@pytest.mark.parametrize("is_of_here", [True, False])
def test_another_machines_decisions_stay_as_they_are(is_of_here: bool) -> None:
    """What the folder knows of decisions here is put into figures of this machine alone."""
    before = Calibration(
        fingerprint={}, anchors_ns={}, fit_traces=(), decisions_ns={"lfu": (1, 2, 3)}
    )
    profiles = round_machine(), round_runtime()
    figures = Figures(profiles, (), before, is_of_here=is_of_here)
    found, known = with_decisions(figures, [choose_system("lfu")], sample(), {})
    assert known.rows_ns == {"lfu": (1, 2, 3)}
    assert ("lfu" in found.profiles[1].decisions.systems) is is_of_here


def test_rare_long_calls_are_not_hidden() -> None:
    """Where every eighth call takes a hundred times as long, decode takes what it took in all."""
    replay = Replay("lfu", sample().select_requests([0]), choose_system("lfu").policies)
    times_ns = [1_000_000 if n % 8 == 0 else 10_000 for n in range(len(replay.calls))]
    replay.times_ns = [times_ns]
    base_ns, expert_ns, command_ns = replay.row_ns()
    decode = [call.is_routed and call.experts == replay.top_k for call in replay.calls]
    measured = sum(ns for ns, is_one in zip(times_ns, decode, strict=True) if is_one)
    fitted = sum(
        base_ns + call.experts * expert_ns + call.commands * command_ns
        for call, is_one in zip(replay.calls, decode, strict=True)
        if is_one
    )
    assert fitted == pytest.approx(measured, rel=0.2)


def test_an_ask_costs_what_was_measured(
    machine: Any, cells_of: Callable[..., Any], trace_of: Callable[..., Any]
) -> None:
    """A prediction whose asks take a second differs from one whose asks take nothing."""
    trace = with_top(trace_of())
    machine.trace = trace
    told = frozenset({"router_top_TLM", "router_top_score_TLM"})
    plain = machine.deciding
    machine.deciding = lambda cell: replace(plain(cell), told=told)
    [cell] = cells_of(machine, systems=(ASKING,))
    fast, slow = (
        predict(machine, cell.model_copy(update={"ask_ns": {"expert_map_search": ns}}))
        for ns in (0, 10**9)
    )
    assert fast.prediction.outcome.counts != slow.prediction.outcome.counts


def test_what_came_later_is_not_written_where_it_is_not() -> None:
    """Evidence without decisions or asks of its own has the text that it always had."""
    plain = Calibration(fingerprint={}, anchors_ns={}, fit_traces=())
    asked = plain.model_copy(update={"asks_ns": {"x": {"y": 1}}})
    assert "asks_ns" not in to_text(plain)
    assert "decisions_ns" not in to_text(asked)
    assert Calibration.model_validate_json(to_text(asked)) == asked


@pytest.mark.parametrize("free", [True, False])
def test_systems_of_one_layout_take_turns_where_a_change_costs(
    machine: Any, cells_of: Callable[..., Any], free: bool
) -> None:
    """All take turns where layouts change at no cost; else those that split come last."""
    cells = cells_of(machine, systems=("moepic", "lru", "on-demand"))
    subject: Any = SimpleNamespace(relaying=SimpleNamespace(is_free=lambda: free))
    none: Any = None
    rigged = RiggedMachine(none, subject, machine.costs, none, "forced", none)
    lots = [[cell.system for cell in lot] for lot in rigged.take_turns(cells)]
    if free:
        assert lots == [["moepic", "lru", "on-demand"]]
    else:
        assert lots == [["lru", "on-demand"], ["moepic"]]


def with_top(trace: RoutingTrace) -> RoutingTrace:
    """Return a trace whose routers' best are those that were chosen, alike likely."""
    ids_TLM = np.asarray(trace.expert_TLK)
    spec = SignalSpec(tap="router", known_at="layer_routed", producer="router")
    signals = {
        "router_top_TLM": ids_TLM,
        "router_top_score_TLM": np.full(ids_TLM.shape, 0.5, np.float32),
    }
    header = trace.header.model_copy(update={"signals": dict.fromkeys(signals, spec)})
    return replace(trace, header=header, signals=signals, known=None)
