"""Decode of one token as captured graphs, cut where the experts are: no code per family.

Capture runs the model's own forward once, with a static cache. The experts function, reached in
every MoE layer, ends the running capture and begins the next: L + 1 pieces. Each of the first L
ends by posting the router's choice to the host (and what a look ahead found); the next begins by
taking in what the experts gave; the last posts the most probable token.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from moesim.backends.drivers.cuda.machine import reason
from moesim.backends.drivers.cuda.pinned import mapped, pinned_bytes, words
from moesim.backends.drivers.cuda.posted import Posted
from moesim.backends.drivers.cuda.streams import new_stream
from moesim.backends.experts import LayerWork, attach
from moesim.backends.models import Model, MoeParts
from moesim.simulator.errors import CapabilityError

# T tokens, L MoE layers, K chosen, S = T x K choices, D width.

CONTEXT_STEP = 128
"""Static caches are cut to multiples of it; attention reads all of one."""
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


Compute = Callable[[int, LayerWork, Seen], None]
"""Has a layer's experts computed."""
Until = Callable[[Callable[[], bool]], None]
"""Waits until something has come."""
Look = Callable[[int], Tensor]
"""Computes what a layer's look ahead finds: the best experts [T, H, M]."""


class GraphedDecode:
    """A model's decode step as pieces between which experts are computed.

    Args:
        model: Its experts may have been taken.
        parts: Its MoE blocks.
        longest: Tokens of the longest request, prompt and generation.
        experts: What computes them.
        look: Looks ahead inside the pieces; None does not.

    Attributes:
        cache: Of the one request that is served.
    Raises:
        CapabilityError: The family's forward cannot be captured.
    """

    def __init__(
        self,
        model: Model,
        parts: MoeParts,
        longest: int,
        experts: Experts,
        look: Look | None = None,
    ) -> None:
        self._parts = parts
        self._experts = experts
        self._look = look
        kind = type(model).__name__
        self.cache: Any = transformers.StaticCache(
            config=model.config, max_cache_len=-(-longest // CONTEXT_STEP) * CONTEXT_STEP
        )
        if any(self.cache.is_sliding):
            raise CapabilityError(
                f"{kind}: its sliding windows move on the host, which no graph repeats; {WAY_OUT}"
            )
        device = next(model.parameters()).device
        token_1 = pinned_bytes(8).view(torch.long)
        self._token = words(token_1)
        self._token_11 = mapped(token_1).view(1, 1)
        self._chosen = [Posted(parts.top_k, device) for _ in parts.layers]
        self._looked: list[Posted] = []
        self._look_shape = torch.Size()
        self._best = Posted(1, device)
        self._works: list[LayerWork] = []
        self._gates: list[Tensor] = []
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._pool = torch.cuda.graph_pool_handle()
        self._logits = self._capture(model, kind)

    def open(self) -> Any:  # noqa: ANN401  a cache of transformers
        """Return the cache, emptied."""
        self.cache.reset()
        return self.cache

    def close(self, cache: Any) -> None:  # noqa: ANN401  likewise
        """Keep the cache for the next request."""

    def step(
        self, fed: Sequence[tuple[Any, int]], compute: Compute, until: Until
    ) -> tuple[Tensor, list[int]]:
        """Return the logits [1, V] after one more token, computed, and the most probable one.

        Args:
            fed: The one request's cache and token.
            compute: Has a layer's experts computed; the next piece adds them up.
            until: Waits.
        """
        ((_, self._token[0]),) = fed
        for layer, chosen in enumerate(self._chosen):
            self._graphs[layer].replay()
            chosen.expect()
            until(chosen.has_come)
            work = self._works[layer]
            choices = chosen.values()
            work.choose(choices)
            look = self._found(layer, until) if self._looked else None
            compute(layer, work, Seen(self._gates[layer], look, choices))
        self._graphs[-1].replay()
        self._best.expect()
        until(self._best.has_come)
        return self._logits, self._best.values()

    def _found(self, layer: int, until: Until) -> list[list[list[int]]]:
        looked = self._looked[layer]
        looked.expect()
        until(looked.has_come)
        _, _, width = self._look_shape
        found = looked.values()
        return [[found[at : at + width] for at in range(0, len(found), width)]]

    def _capture(self, model: Model, kind: str) -> Tensor:
        """Run the forward in pieces; return where it leaves the last logits."""

        def forward(best: Posted) -> Tensor:
            ids = self._token_11 + 0  # by a kernel: a copy would queue behind an expert's
            out = model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            logits: Tensor = out.logits[:, -1]
            best.post(logits.argmax())
            return logits

        stream = new_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            detach = attach(model, self._parts, self._warm_up, self._guess)
            for _ in range(WARM_UPS):
                forward(Posted(1, self._token_11.device))
            detach()
            if self._look is not None:
                count = self._look_shape.numel()
                self._looked = [Posted(count, self._token_11.device) for _ in self._chosen]
            torch.cuda.synchronize()
            detach = attach(model, self._parts, self._cut, self._guess)
            try:
                self._begin()
                logits = forward(self._best)
                self._end()
            except RuntimeError as error:
                self._abandon()
                why = reason(error).partition(". ")[0]
                raise CapabilityError(
                    f"{kind}: its forward cannot be captured ({why}); {WAY_OUT}"
                ) from error
            finally:
                detach()
            self._experts.finish()
        torch.cuda.current_stream().wait_stream(stream)
        return logits

    def _begin(self) -> None:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        self._graphs.append(graph)

    def _end(self) -> None:
        self._graphs[-1].capture_end()

    def _abandon(self) -> None:
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
