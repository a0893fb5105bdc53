"""The CPU as a machine: the threads driver, a real model, real copies and products.

"VRAM" is a piece of memory of the budget's size (``backends/drivers/threads.py``). What it shows is
that the same objects decide; its times are those of a shared CPU and repeat themselves badly.
"""

import os
import platform
from pathlib import Path

import torch

from moesim.backends import reference
from moesim.backends.calibration.fingerprint import host
from moesim.backends.drivers.threads import ThreadsDriver
from moesim.backends.loading import Checkpoint
from moesim.backends.opening import open_model
from moesim.backends.sources import Source
from moesim.backends.testing import resident_logits
from moesim.traces import RoutingTrace
from moesim.validation import quick_files, quick_profile
from moesim.validation.anchoring import COPY, COPY_BYTES, host_loop, median_ns, versions_of
from moesim.validation.own_routes import NEW_TOKENS, prompts_of
from moesim.validation.rig import Trees
from moesim.validation.subject import Logits, Subject
from moesim.validation.wishes import Wishes

EXPERT_RUNS = 50


class CpuRig:
    """Threads that copy and compute."""

    device = torch.device("cpu")
    minutes: float | None = 1.5
    measures_on_the_model = True

    figures = (quick_files.HARDWARE, quick_files.RUNTIME)

    def __init__(self) -> None:
        self.cpu_threads = max(1, (os.cpu_count() or 1) // 2)
        torch.set_num_threads(self.cpu_threads)
        self._gate_up: torch.Tensor | None = None

    def open(self, wishes: Wishes, trace: RoutingTrace) -> Subject:
        """Load the model and note what it says with every expert in place."""
        source = wishes.source or Source(str(Path(reference.__path__[0]) / "weights"))
        prompts: list[list[int]] = []
        resident: Logits = []

        def look(checkpoint: Checkpoint) -> None:
            prompts.extend(prompts_of(trace, checkpoint.model))
            resident.extend(resident_logits(checkpoint.model, prompts, NEW_TOKENS))

        subject = Subject(
            opened=open_model(source, self.device, look),
            make_driver=ThreadsDriver,
            prompts=prompts,
            new_tokens=NEW_TOKENS,
            resident=resident or None,
        )
        if wishes.source is None:
            subject.name = trace.header.model
        return subject

    def fitted_on(self, trace: RoutingTrace) -> RoutingTrace:
        """Return the last request."""
        return trace.select_requests([trace.requests - 1])

    def measure(
        self, subject: Subject | None, fitted: RoutingTrace, minutes: float | None
    ) -> Trees:
        """Take quick figures."""
        del minutes
        assert subject is not None
        shape = subject.opened.costs_of
        return quick_profile.measure(subject.serve, shape, fitted, os.cpu_count() or 1)[2]

    def warm_up(self, subject: Subject, trace: RoutingTrace) -> None:
        """Leave a CPU as it is: the checks before have run all of it."""

    def anchors(self, subject: Subject) -> dict[str, int]:
        """Return the median times of a 64 MiB copy, one expert and a loop of the host."""
        source_B = torch.ones(COPY_BYTES, dtype=torch.uint8)
        target_B = torch.empty_like(source_B)
        if self._gate_up is None:  # the store may be laid out otherwise later
            matrix, *_ = subject.opened.store.matrices(0).values()
            self._gate_up = matrix.reshape(-1, matrix.shape[-1]).clone()
        gate_up = self._gate_up
        hidden_D = torch.ones(1, gate_up.shape[-1])

        def expert() -> None:
            for _ in range(EXPERT_RUNS):
                torch.nn.functional.linear(hidden_D, gate_up)

        return {
            COPY: median_ns(lambda: target_B.copy_(source_B)),
            f"one expert x {EXPERT_RUNS}": median_ns(expert),
            "host loop": median_ns(host_loop),
        }

    def fingerprint(self) -> dict[str, str]:
        """Return architecture and cores; the CPU's name says nothing these times rest on."""
        cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} a product"
        found = {
            "gpu": "none",
            "driver": "threads",
            "cpu": f"{platform.machine()}, {cores}",
            "pcie": "none",
        }
        which = host(self.device)
        return found if which is None else {**found, "host": which}

    def cores(self) -> dict[str, str]:
        """Return how many threads a product has; no core is anybody's own."""
        return {"of": str(os.cpu_count()), "cpu_experts": f"{self.cpu_threads} threads on any"}

    def versions(self) -> dict[str, str]:
        """Return the versions of what executes."""
        return versions_of("moesim", "torch", "transformers", "numpy")
