"""Decode of one token as captured graphs, cut where the experts are: no code per family.

Capture runs the model's own forward once, with a static cache. The experts function, reached in
every MoE layer, ends the running capture and begins the next: L + 1 pieces. Each of the first L
ends with the router's choice on its way to page-locked memory; the next begins by taking in what
the experts gave.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor

from moesim.backends.drivers.cuda.machine import reason
from moesim.backends.drivers.cuda.pinned import pinned_bytes
from moesim.backends.drivers.cuda.streams import new_stream
from moesim.backends.experts import LayerWork, attach
from moesim.backends.models import Model, MoeParts
from moesim.simulator.errors import CapabilityError

# T tokens, L MoE layers, K chosen, S = T x K choices, D width.

CONTEXT_STEP = 128
"""Static caches are cut to multiples of it; attention reads all of one."""
WARM_UPS = 2
WAY_OUT = "take --backend cuda, which runs it without graphs"


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


class GraphedDecode:
    """A model's decode step as pieces between which experts are computed.

    Args:
        model: Its experts may have been taken.
        parts: Its MoE blocks.
        longest: Tokens of the longest request, prompt and generation.
        experts: What computes them.

    Attributes:
        cache: Of the one request that is served.

    Raises:
        CapabilityError: The family's forward cannot be captured.
    """

    def __init__(self, model: Model, parts: MoeParts, longest: int, experts: Experts) -> None:
        self._parts = parts
        self._experts = experts
        kind = type(model).__name__
        self.cache: Any = transformers.StaticCache(
            config=model.config, max_cache_len=-(-longest // CONTEXT_STEP) * CONTEXT_STEP
        )
        if any(self.cache.is_sliding):
            raise CapabilityError(
                f"{kind}: its sliding windows move on the host, which no graph repeats; {WAY_OUT}"
            )
        device = next(model.parameters()).device
        self._ids = torch.zeros(1, 1, dtype=torch.long, device=device)
        choices = len(parts.layers) * parts.top_k
        self._choices_LK = pinned_bytes(choices * 8).view(torch.long).view(-1, parts.top_k)
        self._outs: list[Tensor] = []
        self._works: list[LayerWork] = []
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._pool = torch.cuda.graph_pool_handle()
        self._logits = self._capture(model, kind)

    def step(
        self, token: int, compute: Callable[[int, LayerWork], None], settle: Callable[[], None]
    ) -> Tensor:
        """Return the logits after one more token.

        Args:
            token: Fed to the model.
            compute: Has a layer's experts computed; the next piece adds them up.
            settle: Waits for the GPU.
        """
        self._ids.fill_(token)
        for layer, (graph, work) in enumerate(zip(self._graphs, self._works, strict=False)):
            graph.replay()
            settle()
            work.choose(self._choices_LK[layer].tolist())
            compute(layer, work)
        self._graphs[-1].replay()
        return self._logits

    def _capture(self, model: Model, kind: str) -> Tensor:
        """Run the forward in pieces; return where it leaves the last logits."""

        def forward() -> Tensor:
            out = model(self._ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            logits: Tensor = out.logits[0, -1]
            return logits

        stream = new_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            detach = attach(model, self._parts, _skip, self._guess)
            for _ in range(WARM_UPS):
                forward()
            detach()
            torch.cuda.synchronize()
            detach = attach(model, self._parts, self._cut, self._note_choices)
            try:
                self._begin()
                logits = forward()
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

    def _note_choices(self, ids_S: Tensor) -> list[int]:
        self._choices_LK[len(self._works)].copy_(ids_S, non_blocking=True)
        return self._guess(ids_S)

    def _guess(self, ids_S: Tensor) -> list[int]:
        """Return choices that stand for those of a replay."""
        return list(range(len(ids_S)))

    def _cut(self, layer: int, work: LayerWork) -> Tensor:
        self._end()
        out_TD = torch.zeros_like(work.hidden_TD)
        self._works.append(work)
        self._outs.append(out_TD)
        self._experts.cut(layer, work)
        torch.cuda.synchronize()
        self._begin()
        self._experts.merge(layer, work, out_TD)
        return out_TD


def _skip(layer: int, work: LayerWork) -> Tensor:
    del layer
    return torch.zeros_like(work.hidden_TD)
