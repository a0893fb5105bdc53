"""Experts computed by the CPU for a layer on the GPU: inputs out, products back.

Both go through page-locked memory. Inputs leave by a stream of their own as soon as the router's
choice is known; products are read by the GPU where the CPU wrote them. The buffers are those of one
layer: the next layer's router is known only when the GPU has read this one's products.

One thread hands a run's products, one after another, to torch's own threads. The first core is left
to the host's loop, and a few beside it to CUDA. The loop naps while they compute: one that spins
holds the interpreter, and four experts took 149 ms instead of 1.4.
"""

import os
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from moesim.backends.drivers.cuda.pinned import mapped, pinned_bytes
from moesim.backends.drivers.cuda.streams import new_event, new_stream
from moesim.backends.drivers.streams import Job, Stream
from moesim.backends.experts import LayerWork, Positions
from moesim.backends.store import ExpertStore
from moesim.simulator.messages import CpuRunEnded, Fact, Run

# T tokens, S choices in (token, rank) order, D width.


class CpuExperts:
    """The CPU's side of one layer after the other.

    Args:
        store: The experts.
        stream: Computes.
        take: Has the GPU take in a layer's products of one expert.
    """

    def __init__(
        self,
        store: ExpertStore,
        stream: Stream,
        take: Callable[[LayerWork, int, Tensor], None],
    ) -> None:
        self._store = store
        self._experts = store.parts.experts
        self._computing = stream
        self._take = take
        self._out = new_stream()
        self._have_left = new_event(has_time=False)
        self._work: LayerWork | None = None
        self._runs: dict[int, tuple[Job, Run]] = {}  # not yet reported
        self._block_B = torch.empty(0, dtype=torch.uint8)
        self._hidden_TD = torch.empty(0)
        self._rows_SD = torch.empty(0)
        self._seen_SD = torch.empty(0)
        self._positions: Mapping[int, Positions] = {}

    def __bool__(self) -> bool:
        return bool(self._runs)

    def start(self, command: Run, work: LayerWork) -> None:
        """Hand a run over."""
        if self._work is not work:
            self._open(work)
        job = Job(command, lambda: self._compute(command, work), ())
        self._runs[command.n] = (job, command)
        self._computing.submit(job)

    def jobs(self) -> list[tuple[int, Job]]:
        """Return what was handed over and not reported, by number."""
        return [(n, job) for n, (job, _) in self._runs.items()]

    def take_ended(self) -> list[Fact]:
        """Return the ends that were not reported; the GPU takes in what they computed."""
        facts: list[Fact] = []
        for n in [n for n, (job, _) in self._runs.items() if job.ended.is_set()]:
            _, run = self._runs.pop(n)
            assert self._work is not None
            for expert in run.experts:
                self._take(self._work, expert % self._experts, self._seen_SD)
            facts.append(CpuRunEnded(n))
        return facts

    def forget(self) -> None:
        """Let go of the layer."""
        self._work = None

    def abandon(self) -> None:
        """Forget all runs."""
        self._runs = {}
        self.forget()

    def _open(self, work: LayerWork) -> None:
        """Have a layer's inputs brought to the host."""
        self._work = work
        hidden_TD = work.hidden_TD
        self._make_room(hidden_TD, len(work.choices))
        with torch.cuda.stream(self._out):
            self._hidden_TD.copy_(hidden_TD, non_blocking=True)
            self._have_left.record(self._out)
        if len(hidden_TD) == 1:
            self._positions = work.positions
            return
        order_S = np.argsort(work.choices, kind="stable")
        distinct, starts = np.unique(np.asarray(work.choices)[order_S], return_index=True)
        places = np.split(order_S, starts[1:])
        self._positions = {
            expert: torch.from_numpy(place)
            for expert, place in zip(distinct.tolist(), places, strict=True)
        }

    def _compute(self, command: Run, work: LayerWork) -> None:
        """Compute a run's experts; in the CPU's thread."""
        self._have_left.synchronize()
        for expert in command.experts:
            positions = self._positions[expert % self._experts]
            weights = self._store.matrices(expert)
            self._rows_SD[positions] = work.product(self._hidden_TD, positions, weights)

    def _make_room(self, hidden_TD: Tensor, choices: int) -> None:
        tokens, width = hidden_TD.shape
        size = hidden_TD.element_size() * width
        if self._block_B.numel() < (tokens + choices) * size:
            self._block_B = pinned_bytes(2 * (tokens + choices) * size)
        both_XD = self._block_B[: (tokens + choices) * size].view(hidden_TD.dtype).view(-1, width)
        self._hidden_TD, self._rows_SD = both_XD[:tokens], both_XD[tokens:]
        self._seen_SD = mapped(self._rows_SD)


def leave_cores() -> None:
    """Keep the calling thread, and those it will start, off the first core and to 3 of 4 cores.

    A product is as fast on 12 cores of 16 as on 15; a thread that waits for its turn on a core
    holds up all others, and made an expert of 12 MiB take 0.7 to 1 ms instead of 0.3.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[1:])
        torch.set_num_threads(min(torch.get_num_threads(), max(1, len(cores) * 3 // 4)))
