"""The CPU as a machine: the threads driver, a real model, real copies and products.

"VRAM" is a piece of memory of the budget's size (``backends/drivers/threads.py``). What it shows is
that the same objects decide; its times are those of a shared CPU and repeat themselves badly.
"""

import gc
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from statistics import median
from time import perf_counter_ns
from typing import Any

import torch

from moesim.backends.budget import expert_budget_bytes, kv_bytes_per_token
from moesim.backends.controllers import Deciding
from moesim.backends.execution import Execution, Keep, execute
from moesim.backends.experts import RESIDENT
from moesim.backends.forcing import TOKENS, requests_of
from moesim.backends.generation import Sampling
from moesim.backends.loading import Checkpoint
from moesim.backends.served import parameter_bytes
from moesim.backends.store import ExpertStore
from moesim.backends.testing import resident_logits
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import CapabilityError
from moesim.simulator.memory import MemorySpec
from moesim.simulator.models.cost_shape import CostShape
from moesim.traces import RoutingTrace
from moesim.validation.cells import Routing
from moesim.validation.evidence import Cell

ANCHOR_COPY_BYTES = 64 * 2**20
ANCHOR_SAMPLES = 9
EXPERT_RUNS = 50
LOOP_TURNS = 50_000


class Subject:
    """A model whose experts were taken, on threads; runs anything, times nothing by itself.

    Args:
        checkpoint: In evaluation mode on the CPU; it loses its experts.
        prompts: For which the resident model's logits are kept.
        new_tokens: How many for each.

    Attributes:
        resident: Logits with every expert in place, by prompt and step.
    """

    def __init__(
        self, checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], new_tokens: int
    ) -> None:
        model: Any = checkpoint.model
        self.name = checkpoint.name
        self.model = model
        self.prompts = prompts
        self.new_tokens = new_tokens
        self.resident = resident_logits(model, prompts, new_tokens)
        model.set_experts_implementation(RESIDENT)
        self._kv_bytes_per_token = kv_bytes_per_token(model)
        self.store = ExpertStore.take_from(model)
        self.dense_bytes = parameter_bytes(model)

    @property
    def shape(self) -> CostShape:
        """What its costs are charged for."""
        layers = self.store.parts.layers
        return CostShape.from_bytes(
            self.store.sizes_L,
            [parameter_bytes(layer.decoder_layer) for layer in layers],
            experts=self.store.parts.experts,
            top_k=self.store.parts.top_k,
            name=self.name,
            bits_per_weight=8 * self.store.layouts[0].matrices[0].dtype.itemsize,
        )

    def budget_bytes(self, text: str, trace: RoutingTrace) -> int:
        """Return the room for experts that ``50%`` of them, or a size of all VRAM, gives.

        Raises:
            InputError: It cannot be read.
            BudgetError: Nothing is left for experts.
        """
        spec = MemorySpec(slots=text) if text.endswith("%") else MemorySpec(vram=text)
        context = int(trace.position_T.max()) + 1
        return expert_budget_bytes(
            spec,
            self.store,
            dense_bytes=self.dense_bytes,
            kv_bytes=self._kv_bytes_per_token * context,
        )

    def serve(
        self, deciding: Deciding, trace: RoutingTrace, routing: Routing = "forced"
    ) -> Execution:
        """Execute the requests of a trace from cold, keeping log and jobs.

        Raises:
            CapabilityError: The model's own routes are wanted and the trace has no tokens.
        """
        if routing == "own" and TOKENS not in trace.signals:
            raise CapabilityError(
                "--routing own feeds the trace's tokens and it kept none; use --routing forced"
            )
        requests = requests_of(trace, self.model.config.get_text_config().vocab_size)
        gc.collect()
        gc.disable()
        try:
            return execute(
                self.model,
                self.store,
                requests,
                deciding,
                Sampling(new_tokens=1, ignore_eos=True),
                routes=trace if routing == "forced" else None,
                name=self.name,
                keep=Keep(log=True, spans=True),
            )
        finally:
            gc.enable()

    def anchors(self) -> dict[str, int]:
        """Return the median times of a 64 MiB copy, one expert and a loop of the host."""
        source_B = torch.ones(ANCHOR_COPY_BYTES, dtype=torch.uint8)
        target_B = torch.empty_like(source_B)
        weights = self.store.matrices(0)
        hidden_D = torch.ones(1, weights["gate_up_proj"].shape[-1])

        def expert() -> None:
            for _ in range(EXPERT_RUNS):
                torch.nn.functional.linear(hidden_D, weights["gate_up_proj"])

        def loop() -> None:
            total = 0
            for turn in range(LOOP_TURNS):
                total += turn

        return {
            "copy 64MiB": _median_ns(lambda: target_B.copy_(source_B)),
            f"one expert x {EXPERT_RUNS}": _median_ns(expert),
            "host loop": _median_ns(loop),
        }


class CpuMachine:
    """A subject with the figures that predict it."""

    def __init__(
        self, subject: Subject, costs: CostModel, trace: RoutingTrace, routing: Routing
    ) -> None:
        self.costs = costs
        self.trace = trace
        self._subject = subject
        self._routing = routing

    def fingerprint(self) -> Mapping[str, str]:
        """Return architecture and cores; the CPU's name says nothing that these times rest on."""
        return fingerprint()

    def versions(self) -> Mapping[str, str]:
        """Return the versions of what executes."""
        names = ("moesim", "torch", "transformers", "numpy")
        return {"python": platform.python_version()} | {name: version(name) for name in names}

    def anchors(self) -> dict[str, int]:
        """Measure the anchors."""
        return self._subject.anchors()

    def deciding(self, cell: Cell) -> Deciding:
        """Return a cell's policies and budget, and what they may ask of times."""
        return Deciding(
            policies={"cache": cell.cache, "prefetch": cell.prefetch, "schedule": cell.schedule},
            budget_bytes=cell.expert_budget_bytes,
            system=cell.system,
            costs=self.costs,
        )

    def execute(self, cell: Cell) -> Execution:
        """Execute a cell from cold."""
        return self._subject.serve(self.deciding(cell), self.trace, self._routing)


def fingerprint() -> dict[str, str]:
    """Return what this machine is, without a name of it."""
    return {
        "gpu": "none",
        "driver": "threads",
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} a product",
        "pcie": "none",
    }


def _median_ns(work: Any) -> int:  # noqa: ANN401  whatever it returns is dropped
    work()
    times = []
    for _ in range(ANCHOR_SAMPLES):
        began_ns = perf_counter_ns()
        work()
        times.append(perf_counter_ns() - began_ns)
    return max(1, round(median(times)))
