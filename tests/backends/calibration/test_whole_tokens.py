"""Whole tokens: what single figures leave over is found again, and sessions take what they say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moesim.backends.calibration import eager
from moesim.backends.calibration.eager import EagerSoftware
from moesim.backends.calibration.leftover import SYSTEM, Rest, Times, rest_of
from moesim.backends.calibration.sampling import Probe
from moesim.backends.calibration.sheet import Provenance, Sheet
from moesim.backends.calibration.whole_tokens import Lengths, Session, made_routes, times_of
from moesim.backends.drivers.threads import ThreadsDriver
from moesim.hardware_profiles.round_numbers import round_machine, round_runtime
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.clock import ClockEngine
from moesim.simulator.workload.demands import Workload

LENGTHS = Lengths(prompt=8, short=2, decode=6, skipped=2)


@pytest.fixture(scope="module")
def sessions(small_olmoe: Path) -> tuple[Session, Session]:
    """Return a small model with two layers and with all five."""
    place = torch.device("cpu")
    few = Session(str(small_olmoe), 2, place, ThreadsDriver, LENGTHS)
    return few, Session(str(small_olmoe), None, place, ThreadsDriver, LENGTHS)


def figure(old: Any, value: float) -> Any:
    """Return a figure with another value."""
    return old.model_copy(update={"value": round(value)})


def explained(session: Session, rest: Rest) -> Times:
    """Return what a machine and a runtime of round numbers, and this rest, say."""
    base = round_runtime()
    wait = base.wait.model_copy(update={"router": figure(base.wait.router, rest.router)})
    kernels = base.kernels.model_copy(
        update={"head_fixed": figure(base.kernels.head_fixed, rest.head)}
    )
    launch = base.launch.model_copy(
        update={
            "prompt_layer": figure(base.launch.layer, rest.prompt_layer),
            "prompt_expert": figure(base.launch.layer, rest.prompt_expert),
        }
    )
    runtime = base.model_copy(update={"wait": wait, "kernels": kernels, "launch": launch})
    return session.explained(round_machine(), runtime)


@pytest.mark.parametrize(
    "true",
    [Rest(30_000, 200_000, 400_000, 7_000), Rest(5_000, 0, 90_000, 0)],
    ids=["all four", "nothing per token, nothing per expert"],
)
def test_the_rest_is_found_again(sessions: tuple[Session, Session], true: Rest) -> None:
    """Times that a known rest gives tell that rest."""
    few, many = sessions
    found = rest_of(sessions, (explained(few, true), explained(many, true)), explained)
    for name in ("router", "head", "prompt_layer", "prompt_expert"):
        assert getattr(true, name) == pytest.approx(getattr(found, name), rel=0.01, abs=500)


def test_a_faster_machine_than_the_figures_leaves_nothing_over(
    sessions: tuple[Session, Session],
) -> None:
    """Where the figures already take too long the rest is 0, never less."""
    nothing = Times(1.0, 1.0, 1.0)
    assert Rest() == rest_of(sessions, (nothing, nothing), explained)


def test_two_clocks_say_what_the_engine_says(sessions: tuple[Session, Session]) -> None:
    """A replay of the session's requests takes as long as the two clocks of a step."""
    session = sessions[1]
    runtime = round_runtime(launch_prompt_layer_ns=90_000, launch_prompt_expert_ns=4_000)
    costs = CostModel(round_machine(), runtime, session._opened.costs_of)
    size, trace = costs.shape.layers[0].expert_bytes, session._trace
    controller = session._deciding.controller(
        experts=trace.experts, top_k=trace.top_k, sizes_L=(size,) * trace.layers
    )
    timings = ClockEngine(
        controller,
        Workload(trace),
        costs,
        expert_bytes=lambda _expert, _part: size,
        budget_bytes=trace.layers * trace.experts * size,
        system=SYSTEM,
    ).run()
    replayed = times_of(timings.requests, LENGTHS)
    says = session.explained(round_machine(), runtime)
    for name in ("token", "short", "prompt"):
        assert getattr(replayed, name) == pytest.approx(getattr(says, name), rel=0.001)


def test_a_session_is_served(sessions: tuple[Session, Session]) -> None:
    """The probes of a session tell the times of one execution, all above 0."""
    token, short, prompt = sessions[0].probes(1)
    assert token.sample() > 0
    assert short.sample() > 0
    assert prompt.sample() > 0


def test_prompts_use_every_expert_alike() -> None:
    """After the first prompt every expert is resident, so that decode tokens all hit."""
    trace = made_routes(3, 8, 2, LENGTHS)
    rows_TLK = np.asarray(trace.expert_TLK[: LENGTHS.prompt])
    counts = [np.bincount(rows_TLK[:, layer].ravel(), minlength=8).tolist() for layer in range(3)]
    assert [[2] * 8 for _ in range(3)] == counts
    decode_TLK = np.asarray(trace.expert_TLK)[~np.asarray(trace.is_prefill_T, dtype=bool)]
    assert all(len(set(row.tolist())) == 2 for row in decode_TLK.reshape(-1, 2))


class Base:
    """Software of which everything but whole tokens was measured; it costs nothing."""

    words = "nothing"

    def kernel(self) -> None:
        """Do nothing."""

    def probes(self) -> list[Probe]:
        """Return one probe."""
        return [Probe("host event", lambda: 1_000.0)]

    def gpu(self, _sheet: Sheet) -> dict[str, Any]:
        """Return what the base says."""
        return {"of": "the base"}

    def sections(self, _sheet: Sheet) -> dict[str, Any]:
        """Return the sections of a runtime of round numbers."""
        figures: dict[str, Any] = {
            "launch": {name: ["0us", "made"] for name in ("layer", "run", "per_expert", "event")},
            "wait": {"poll": ["0us", "made"]},
        }
        return figures

    def cold_ns(self, _sheet: Sheet) -> float:
        """Return nothing."""
        return 0.0

    def complete(self, *_: object) -> None:
        """Is not asked."""
        raise AssertionError

    def close(self) -> None:
        """Hold nothing."""


def test_eager_tokens_tell_what_a_run_costs_the_host(
    small_olmoe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch for each expert instead of one a layer takes as much longer as launches cost."""
    models: list[tuple[str, int | None]] = [(str(small_olmoe), 2), (str(small_olmoe), None)]
    base: Any = Base()
    software = EagerSoftware(base, models, torch.device("cpu"), ThreadsDriver, LENGTHS)
    names = [probe.name for probe in software.probes()]
    assert len(names) == len(set(names)) == 1 + 3 * 3
    samples = {name: [50_000.0] for name in names}
    samples["host event"] = [1_000.0]
    together, alone = (session.names()[0] for session in (software._many, software._alone))
    layers, top_k = software._many.layers, software._many.top_k
    samples[alone] = [samples[together][0] + layers * (top_k - 1) * 31_000]
    filled: list[Any] = []
    monkeypatch.setattr(eager, "fit_tokens", lambda *given: filled.append(given))
    sheet = Sheet(samples, Provenance("a test", "today", "none"))
    runtime = software.sections(sheet)
    software.complete({}, runtime, sheet)
    assert runtime["launch"]["run"] == ["30.000us", "eager-run"]
    assert runtime["launch"]["per_expert"] == ["0.000us", "eager-run"]
    assert filled == [({}, runtime, sheet, (software._few, software._many), [])]
    software.close()
