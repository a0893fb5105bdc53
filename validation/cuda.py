"""An NVIDIA GPU as a machine: pinned host memory, one arena, decode in graphs or eager.

Its anchors are a copy of 64 MiB, a graph of one attention layer, a graph of experts of the model,
and a loop of the host. Each is as long as it takes to repeat itself within the protocol's 3 %.
"""

import gc
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from moesim.backends import reference
from moesim.backends.calibration import run as calibration
from moesim.backends.calibration.cuda_bench import CudaBench
from moesim.backends.calibration.eager import HF_EAGER
from moesim.backends.calibration.fingerprint import assigned_cores, cpu_expert_cores, fingerprint
from moesim.backends.controllers import Deciding
from moesim.backends.drivers.cuda.driver import CudaDriver
from moesim.backends.drivers.cuda.graph_driver import GraphDriver
from moesim.backends.drivers.cuda.machine import gpu
from moesim.backends.drivers.cuda.pinned import pinned_bytes
from moesim.backends.execution import MakeDriver
from moesim.backends.opening import open_model
from moesim.backends.sources import Source
from moesim.simulator.commands.policies import DEFAULTS as LRU
from moesim.traces import RoutingTrace, load, samples
from moesim.validation.anchoring import COPY, COPY_BYTES, SAMPLES, host_loop, median_ns, versions_of
from moesim.validation.own_routes import NEW_TOKENS, prompts_of
from moesim.validation.rig import Trees
from moesim.validation.subject import Subject
from moesim.validation.wishes import Wishes

DRIVERS: Mapping[str, MakeDriver] = {"cuda": GraphDriver, "cuda-eager": CudaDriver}
MODES = {"cuda": None, "cuda-eager": HF_EAGER}
"""Which software each calibrates."""
CALIBRATION_S = 150.0
CALIBRATION_SHARE = 0.2
"""Of the minutes that a validation has, for samples; making the models they are taken on adds to
it."""
EXPERT_BYTES = 64 * 2**20
"""At least so many bytes of experts make the anchor's graph."""
WIDTH, HEADS, CONTEXT = 2048, 16, 512
REPLAYS = 20
SETTLING = 6
NS_PER_MS = 1_000_000
SPARE_VRAM_BYTES = 3 * 2**30
"""What an execution with every expert resident needs beside them and the other weights."""

_cuda: Any = torch.cuda  # half of its functions have no types


class CudaRig:
    """One GPU.

    Args:
        backend: ``cuda`` or ``cuda-eager``.

    Raises:
        UnavailableError: There is none.
    """

    minutes: float | None = None
    measures_on_the_model = False

    def __init__(self, backend: str) -> None:
        self.device = gpu()
        self.cpu_threads = cpu_expert_cores()
        self.figures = ("calibrated", f"calibrated-{backend}")
        self._backend = backend
        self._anchors: dict[str, Callable[[], int]] | None = None

    def open(self, wishes: Wishes, trace: RoutingTrace) -> Subject:
        """Load or make the model, and note what it says with every expert in VRAM, if they fit."""
        source = wishes.source or Source(str(Path(reference.__path__[0]) / "weights"))
        opened = open_model(source, self.device)
        subject = Subject(
            opened=opened,
            make_driver=DRIVERS[self._backend],
            prompts=prompts_of(trace, opened.checkpoint.model),
            new_tokens=NEW_TOKENS,
        )
        if wishes.source is None:
            subject.name = trace.header.model
        free, _ = _cuda.mem_get_info(self.device)
        total = opened.store.total_bytes
        if total + SPARE_VRAM_BYTES <= free:
            done = subject.generate(Deciding(policies=LRU, budget_bytes=total))
            subject.resident = done.logits
        return subject

    def fitted_on(self, trace: RoutingTrace) -> RoutingTrace:
        """Return the request on which a calibration replays decisions."""
        del trace
        sample = Path(samples.__path__[0]) / calibration.SAMPLE
        return load(sample).select_requests([0])

    def measure(
        self, subject: Subject | None, fitted: RoutingTrace, minutes: float | None
    ) -> Trees:
        """Calibrate, as ``moesim calibrate`` does, and give all memory back."""
        del subject, fitted
        found = calibration.calibrate(
            CudaBench(),
            name=self.figures[0],
            seconds=min(CALIBRATION_S, CALIBRATION_SHARE * 60 * (minutes or inf)),
            command=f"moesim validate --backend {self._backend}",
            mode=MODES[self._backend],
        )
        gc.collect()
        _cuda.empty_cache()
        machine, runtime = self.figures
        return {machine: found.machine, runtime: {**found.runtime, "name": runtime}}

    def warm_up(self, subject: Subject, trace: RoutingTrace) -> None:
        """Serve a request with copies, so that kernels are loaded and clocks are up."""
        budget = subject.budget_bytes("50%", trace)
        subject.serve(Deciding(policies=LRU, budget_bytes=budget), trace.select_requests([0]))
        self.anchors(subject)

    def anchors(self, subject: Subject) -> dict[str, int]:
        """Return the median times of the anchors."""
        if self._anchors is None:
            self._anchors = {
                COPY: _copy(self.device),
                f"attention graph x {REPLAYS}": _graph(_attention(self.device)),
                f"expert graph x {REPLAYS}": _graph(_experts(subject, self.device)),
            }
        found = {name: measure() for name, measure in self._anchors.items()}
        return found | {"host loop": median_ns(host_loop)}

    def fingerprint(self) -> dict[str, str]:
        """Return GPU, driver, CPU and link."""
        return dict(fingerprint(self.device).model_dump())

    def cores(self) -> dict[str, str]:
        """Return which cores do what."""
        return assigned_cores()

    def versions(self) -> dict[str, str]:
        """Return the versions of what executes."""
        return versions_of("moesim", "torch", "triton", "transformers", "numpy")


def _copy(device: torch.device) -> Callable[[], int]:
    source_B = pinned_bytes(COPY_BYTES)
    target_B = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    return _timed(lambda: target_B.copy_(source_B, non_blocking=True))


def _graph(work: Callable[[], object]) -> Callable[[], int]:
    """Capture work and return what times some replays of it."""
    aside = _cuda.Stream()
    with torch.cuda.stream(aside):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay(_kept: Callable[[], object] = work) -> None:
        # A graph holds the addresses of what it reads, not the memory: the work keeps that.
        for _ in range(REPLAYS):
            graph.replay()

    return _timed(replay)


def _timed(work: Callable[[], object]) -> Callable[[], int]:
    """Return what gives the median time of work between two events."""
    begun, ended = _cuda.Event(enable_timing=True), _cuda.Event(enable_timing=True)

    def once() -> float:
        begun.record()
        work()
        ended.record()
        ended.synchronize()
        return float(begun.elapsed_time(ended)) * NS_PER_MS

    def measure() -> int:
        for _ in range(SETTLING):  # a link or clock that rested takes a while
            once()
        return max(1, round(median(once() for _ in range(SAMPLES))))

    return measure


def _attention(device: torch.device) -> Callable[[], Tensor]:
    """Return one token's attention to a context, with its four projections."""

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16, device=device)

    hidden, into, out = made(1, WIDTH), made(3 * WIDTH, WIDTH), made(WIDTH, WIDTH)
    keys, values = (made(1, HEADS, CONTEXT, WIDTH // HEADS) for _ in range(2))

    def attend() -> Tensor:
        query = torch.nn.functional.linear(hidden, into)[:, :WIDTH].view(1, HEADS, 1, -1)
        seen = torch.nn.functional.scaled_dot_product_attention(query, keys, values)
        return torch.nn.functional.linear(seen.reshape(1, WIDTH), out)

    return attend


def _experts(subject: Subject, device: torch.device) -> Callable[[], list[Tensor]]:
    """Return the products of one token with some experts of the model."""
    store = subject.opened.store
    count = min(store.parts.experts, -(-EXPERT_BYTES // store.sizes_L[0]))
    matrices = [
        matrix.to(device)
        for expert in range(count)
        for name, matrix in store.matrices(expert).items()
        if not name.endswith("_bias")
    ]
    vectors = {
        width: torch.randn(width, dtype=matrices[0].dtype, device=device)
        for width in {matrix.shape[-1] for matrix in matrices}
    }
    return lambda: [matrix @ vectors[matrix.shape[-1]] for matrix in matrices]
