"""A machine without hardware: it executes by replaying, on figures of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moesim.backends.batches import workload_for
from moesim.backends.controllers import Deciding
from moesim.hardware_profiles.round_numbers import round_machine, round_runtime
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.simpy import SimpyEngine
from moesim.simulator.workload.demands import Workload
from moesim.traces import RoutingTrace, TraceHeader, write
from moesim.traces.assemble import RequestRows, assemble
from moesim.validation.cells import choose_system, make_cell, policies_of
from moesim.validation.evidence import Cell
from moesim.validation.protocol import Origin

LAYERS, EXPERTS, TOP_K, PROMPT, DECODE = 3, 8, 2, 4, 30
SIZE = 1_000_000
STILL = {"copy": 1000, "loop": 500}


def make_trace(seed: int = 0, requests: int = 2) -> RoutingTrace:
    """Return random routes of a small model."""
    rng = np.random.default_rng(seed)
    header = TraceHeader(
        model="tiny", layer_ids=range(LAYERS), experts=EXPERTS, top_k=TOP_K, evidence="recorded"
    )
    rows = [
        RequestRows(
            expert_TLK=rng.permuted(
                np.tile(np.arange(EXPERTS), (PROMPT + DECODE, LAYERS, 1)), axis=2
            )[:, :, :TOP_K],
            is_prefill_T=np.arange(PROMPT + DECODE) < PROMPT,
            prompt_tokens=PROMPT,
        )
        for _ in range(requests)
    ]
    return assemble("tiny", header, rows)


def costs_with(**machine: int) -> CostModel:
    """Return round figures, some of them changed."""
    return CostModel.for_tests(
        layers=LAYERS, experts=EXPERTS, top_k=TOP_K, expert_bytes=SIZE, machine=machine
    )


@dataclass
class FakeMachine:
    """Executes by replaying.

    Attributes:
        truth: What the machine's figures really are.
        decides: The policies that really decide, by system, where they are others.
        noise: By how much each execution's times are stretched, one after another; 1 once spent.
        before: Called before each execution.
    """

    costs: CostModel = field(default_factory=costs_with)
    truth: CostModel = field(default_factory=costs_with)
    trace: RoutingTrace = field(default_factory=make_trace)
    decides: dict[str, Any] = field(default_factory=dict)
    noise: list[float] = field(default_factory=list)
    anchor_readings: list[dict[str, int]] = field(default_factory=list)
    before: Callable[[Cell], None] = lambda _cell: None
    terms: None = None
    executed: list[str] = field(default_factory=list)

    def fingerprint(self):
        return {"cpu": "none"}

    def versions(self):
        return {"moesim": "test"}

    def anchors(self):
        return self.anchor_readings.pop(0) if self.anchor_readings else dict(STILL)

    def deciding(self, cell: Cell) -> Deciding:
        policies = {"cache": cell.cache, "prefetch": cell.prefetch, "schedule": cell.schedule}
        return Deciding(policies=policies, budget_bytes=cell.expert_budget_bytes, costs=self.costs)

    def workload(self, cell, *, signals, gates):
        return workload_for(policies_of(cell), self.trace, signals=signals, gates=gates)

    def take_turns(self, cells):
        return [[*cells]]

    def execute(self, cell: Cell) -> Any:
        self.before(cell)
        self.executed.append(cell.system)
        deciding = self.deciding(cell)
        if cell.system in self.decides:
            deciding = Deciding(
                policies=self.decides[cell.system], budget_bytes=cell.expert_budget_bytes
            )
        controller = deciding.controller(
            experts=EXPERTS, top_k=TOP_K, sizes_L=(SIZE,) * LAYERS, keep_log=True
        )
        engine = SimpyEngine(
            controller,
            Workload(self.trace),
            self.truth,
            expert_bytes=lambda _expert, _part: SIZE,
            budget_bytes=deciding.budget_bytes,
            keep_spans=True,
        )
        timings = engine.run()
        controller.close()
        factor = self.noise.pop(0) if self.noise else 1.0
        for request in timings.requests:
            request.arrived_ns = round(request.arrived_ns * factor)
            request.token_ends_ns = [round(end * factor) for end in request.token_ends_ns]
        return SimpleNamespace(
            counts=controller.counts, timings=timings, log=controller.log, spans=engine.spans
        )


@pytest.fixture
def machine() -> FakeMachine:
    """Return a machine that is as its profile says."""
    return FakeMachine()


@pytest.fixture
def trace_of() -> Callable[..., RoutingTrace]:
    """Return the function that makes random routes of a seed."""
    return make_trace


@pytest.fixture
def slow_link() -> CostModel:
    """Return figures of a machine whose link is half as fast as its profile says."""
    return costs_with(link_bytes_per_s=5 * 10**9)


@pytest.fixture
def cells_of() -> Callable[..., list[Cell]]:
    """Return a function that gives the cells of systems at budgets in slots."""

    def make(
        machine: FakeMachine,
        systems: tuple[str, ...] = ("lru", "on-demand"),
        slots: tuple[int, ...] = (12,),
        fit_traces: tuple[str, ...] = (),
        repeats: int = 3,
    ) -> list[Cell]:
        return [
            make_cell(
                choose_system(system),
                f"{count} slots",
                count * SIZE,
                backend="fake",
                profiles=(round_machine(), round_runtime()),
                fit_traces=fit_traces,
                model="tiny",
                trace=machine.trace,
                trace_name="tiny",
                routing="forced",
                lengths=(2, 20, repeats),
            )
            for count in slots
            for system in systems
        ]

    return make


@pytest.fixture
def origin() -> Origin:
    """Return who made the evidence."""
    return Origin(command="moesim validate", commit="none")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an empty folder."""
    path = tmp_path / "evidence"
    path.mkdir()
    return path


@pytest.fixture
def options(
    tmp_path: Path, trace_of: Callable[..., RoutingTrace], write_shape: Callable[..., Path]
) -> list[str]:
    """Return the options of a validation of a shape of which three of four layers are kept."""
    shape, trace = write_shape(decoder_layers=4), tmp_path / "routes.npz"
    write(trace_of(requests=3), trace)
    model = ["--model", shape, "--weights", "random", "--layers", 3, "--trace", trace]
    cell = ["--warm", 2, "--tokens", 10, "--repeats", 2, "--slots", "50%", "--system", "on-demand"]
    return [str(word) for word in [*model, *cell, "--pinned-pool", "100KiB"]]


@pytest.fixture
def tiny_subject() -> Any:
    """Return a random Mixtral of three layers of eight experts that were taken, and two prompts."""
    pytest.importorskip("torch", reason="it is a real model")
    budget, drivers, loading, opening, served, store, testing = (
        pytest.importorskip(f"moesim.backends.{name}")
        for name in [
            "budget",
            "drivers.threads",
            "loading",
            "opening",
            "served",
            "store",
            "testing",
        ]
    )
    prompts, new_tokens, model = ((5, 9, 200, 17, 33, 4), (7, 8, 9, 10)), 6, testing.tiny_model()
    resident = testing.resident_logits(model, prompts, new_tokens)
    opened = opening.Opened(
        checkpoint=loading.Checkpoint(
            model=model,
            tokenizer=None,
            name="tiny",
            revision=None,
            bytes_per_parameter=4,
            tokenizer_hash=None,
        ),
        store=store.ExpertStore.take_from(model),
        dense_bytes=served.parameter_bytes(model),
        kv_bytes_per_token=budget.kv_bytes_per_token(model),
    )
    return pytest.importorskip("moesim.validation.subject").Subject(
        opened=opened,
        make_driver=drivers.ThreadsDriver,
        prompts=prompts,
        new_tokens=new_tokens,
        resident=resident,
    )
