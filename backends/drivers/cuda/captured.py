"""Decode as captured graphs, cut where the experts are: no code per family.

Capture runs the model's own forward once, with a cache that stays where it is. The experts
function, reached in every MoE layer, ends the running capture and begins the next: L + 1 pieces.
Each of the first L ends by posting the router's choice to the host (and what a look ahead found);
the next begins by taking in what the experts gave; the last posts the most probable tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moesim.backends.drivers.cuda.machine import reason
from moesim.backends.drivers.cuda.posted import Posted
from moesim.backends.drivers.cuda.streams import new_stream
from moesim.backends.experts import LayerWork, Serve, attach
from moesim.backends.models import Model, MoeParts
from moesim.simulator.errors import CapabilityError, MoesimError, OutOfMemoryError

# T tokens, B rows (a token of each request), L MoE layers, K chosen, S choices, D width,
# V vocabulary.

WARM_UPS = 2
WAY_OUT = "take --backend cuda-eager, which runs it without graphs"


class Experts(Protocol):
    """What computes a captured layer's experts."""

    def cut(self, layer: int, work: LayerWork) -> None:
        """Take in a layer's tensors, which every replay fills anew; nothing is captured."""
        ...

    def merge(self, layer: int, work: LayerWork, out_TD: Tensor) -> None:
        """Put the layer's result into its place; what it launches is captured."""
        ...

    def finish(self) -> None:
        """Capture what remains, when the pieces of the model are whole."""
        ...


class Seen(NamedTuple):
    """What the host learns of a layer beside the choice.

    Attributes:
        gates_TK: In float16, in host memory; the next step overwrites them.
        look: The best experts that a look ahead found, [T][H][M], or None.
        choices: The choice itself.
    """

    gates_TK: Tensor
    look: list[list[list[int]]] | None
    choices: list[int]

    def of(self, rows: Sequence[int], top_k: int) -> "Seen":
        """Return the same of these rows."""
        return Seen(
            self.gates_TK[list(rows)],
            None if self.look is None else [self.look[row] for row in rows],
            [self.choices[at] for row in rows for at in range(row * top_k, (row + 1) * top_k)],
        )


Compute = Callable[[int, LayerWork, Seen], None]
"""Has a layer's experts computed."""
Until = Callable[[Callable[[], bool]], None]
"""Waits until something has come."""
Look = Callable[[int], Tensor]
"""Computes what a layer's look ahead finds: the best experts [T, H, M]."""


class Pieces:
    """The forward of some rows as graphs, between which experts are computed.

    Args:
        parts: The model's MoE blocks.
        rows: How many; each is a token of another request.
        experts: What computes them.
        look: Looks ahead inside the pieces; None does not.
        device: The GPU.
        pool: Memory that graphs share which never run at once; None takes some of their own.
        live_B1: Which rows are served, on the device; None where all always are.
    """

    def __init__(
        self,
        parts: MoeParts,
        rows: int,
        experts: Experts,
        look: Look | None,
        device: torch.device,
        *,
        pool: Any = None,  # noqa: ANN401  a handle of torch
        live_B1: Tensor | None = None,
    ) -> None:
        self._parts = parts
        self._rows = list(range(rows))
        self._experts = experts
        self._look = look
        self._device = device
        self._live_B1 = live_B1
        self._chosen = [Posted(rows * parts.top_k, device) for _ in parts.layers]
        self._looked: list[Posted] = []
        self._look_shape = torch.Size()
        self._best = Posted(rows, device)
        self._works: list[LayerWork] = []
        self._gates: list[Tensor] = []
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._pool = pool or torch.cuda.graph_pool_handle()
        self._logits_BV: Tensor | None = None
        self._run: Callable[[], Tensor] | None = None

    @property
    def works(self) -> list[LayerWork]:
        """What each layer computes on, filled anew by every replay."""
        return self._works

    @property
    def graphs(self) -> list[torch.cuda.CUDAGraph]:
        """The pieces: up to the first router, between routers, and after the last experts."""
        return self._graphs

    def replay(
        self, rows: Sequence[int], compute: Compute, until: Until
    ) -> tuple[Tensor, list[int]]:
        """Return the logits [B, V] of all rows, computed, and the most probable token of each.

        Args:
            rows: Those that are served, in the order in which the controller is told of them.
            compute: Has a layer's experts computed; the next piece adds them up.
            until: Waits.
        """
        for layer, chosen in enumerate(self._chosen):
            self._graphs[layer].replay()
            chosen.expect()
            until(chosen.has_come)
            choices = chosen.values()
            self._works[layer].choose(choices)
            look = self._found(layer, until) if self._looked else None
            seen = Seen(self._gates[layer], look, choices)
            if rows != self._rows:
                seen = seen.of(rows, self._parts.top_k)
            compute(layer, self._works[layer], seen)
        self._graphs[-1].replay()
        self._best.expect()
        until(self._best.has_come)
        assert self._logits_BV is not None
        return self._logits_BV, self._best.values()

    def release(self) -> None:
        """Let go of the graphs and of all that they read; nothing is replayed after it.

        What ``run`` closes over includes these pieces: only a collection would find them.
        """
        self._graphs.clear()
        del self._run, self._look, self._experts
        for kept in (self._works, self._gates, self._chosen, self._looked):
            kept.clear()
        self._logits_BV = None

    def _found(self, layer: int, until: Until) -> list[list[list[int]]]:
        looked = self._looked[layer]
        looked.expect()
        until(looked.has_come)
        _, horizons, width = self._look_shape
        found = looked.values()
        best = [found[at : at + width] for at in range(0, len(found), width)]
        return [best[at : at + horizons] for at in range(0, len(best), horizons)]

    def capture(self, model: Model, run: Callable[[], Tensor]) -> None:
        """Run the forward in pieces.

        Args:
            model: Whose forward it is.
            run: Runs it on what lies where replays will find it; returns the logits [B, V]. Kept,
                for what it holds is read by every replay.

        Raises:
            CapabilityError: The family's forward cannot be captured.
            OutOfMemoryError: VRAM has no room for what it keeps.
        """
        self._run = run

        def forward(best: Posted) -> Tensor:
            logits_BV = run()
            best.post(logits_BV.argmax(-1))
            return logits_BV

        stream = new_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            with self._serving(model, self._warm_up):
                for _ in range(WARM_UPS):
                    forward(Posted(len(self._rows), self._device))
            if self._look is not None:
                count = self._look_shape.numel()
                self._looked = [Posted(count, self._device) for _ in self._chosen]
            torch.cuda.synchronize()
            with self._serving(model, self._cut):
                self._begin()
                self._logits_BV = forward(self._best)
                self._end()
            self._experts.finish()
        torch.cuda.current_stream().wait_stream(stream)

    @contextmanager
    def _serving(self, model: Model, serve: Serve) -> Iterator[None]:
        """Have the model's experts served in that way; say in our words why it cannot be done."""
        detach = attach(model, self._parts, serve, self._guess)
        name = type(model).__name__
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._abandon()
            raise OutOfMemoryError(
                f"{name}: VRAM has no room for its graphs; leave more beside the experts"
            ) from error
        except RuntimeError as error:
            self._abandon()
            if isinstance(error, MoesimError):
                raise
            why = reason(error).partition(". ")[0]
            raise CapabilityError(
                f"{name}: its forward cannot be captured ({why}); {WAY_OUT}"
            ) from error
        finally:
            detach()

    def _begin(self) -> None:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        self._graphs.append(graph)

    def _end(self) -> None:
        self._graphs[-1].capture_end()

    def _abandon(self) -> None:
        if not self._graphs:
            return
        try:
            self._end()
        except RuntimeError:
            self._graphs.clear()

    def _guess(self, ids_S: Tensor) -> NDArray[np.int64]:
        """Return choices that stand for those of a replay."""
        return np.arange(len(ids_S))

    def _warm_up(self, layer: int, work: LayerWork) -> Tensor:
        """Compile and load what will be captured, and see how much a look ahead finds."""
        device = work.hidden_TD.device
        Posted(work.ids_TK.numel(), device).post(work.ids_TK, work.gates_TK)
        if self._look is not None:
            found_THM = self._look(layer)
            self._look_shape = found_THM.shape
            Posted(found_THM.numel(), device).post(found_THM)
        return torch.zeros_like(work.hidden_TD)

    def _cut(self, layer: int, work: LayerWork) -> Tensor:
        if self._live_B1 is not None:  # rows of nobody choose an expert that there is not
            work.ids_TK = work.ids_TK.masked_fill(~self._live_B1, self._parts.experts)
        chosen = self._chosen[layer]
        chosen.post(work.ids_TK, work.gates_TK)
        if self._look is not None:
            self._looked[layer].post(self._look(layer))
        self._end()
        out_TD = torch.zeros_like(work.hidden_TD)
        self._works.append(work)
        self._gates.append(chosen.gates(work.top_k))
        self._experts.cut(layer, work)
        torch.cuda.synchronize()
        self._begin()
        self._experts.merge(layer, work, out_TD)
        return out_TD
