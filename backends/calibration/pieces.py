"""One model as the driver runs it: attention pieces by context, runs of experts, head, prompts.

Weights are random at true dimensions. Runs rotate over more experts than a cache holds, and pieces
over layers, for a model's weights are cold too.
"""

from typing import Any

import torch

from moesim.backends.drivers.cuda.graphed_experts import KernelExperts, kernel_layout
from moesim.backends.drivers.cuda.graphs import GraphedDecode
from moesim.backends.drivers.cuda.grouped_experts import GroupedExperts
from moesim.backends.drivers.cuda.machine import vram
from moesim.backends.experts import LayerWork
from moesim.backends.lookahead import LookAhead
from moesim.backends.opening import open_model
from moesim.backends.sources import RANDOM, Source
from moesim.simulator.errors import CapabilityError
from moesim.simulator.models.schema import ModelShape

LEAST_POOL = "1MiB"
"""Of host memory: all layers share the blobs of one."""
ARENA_BYTES = 2**31
ROUNDS = 12
LOOKING = 0
"""Stands for a context: the first one, with a look ahead in each piece."""
HORIZONS = 2
"""Of a look ahead, as an execution has it unless told otherwise."""


def prompt_work(
    module: Any,  # noqa: ANN401  an experts module of transformers
    hidden: int,
    experts: int,
    top_k: int,
    tokens: int,
    place: torch.device,
) -> LayerWork:
    """Return a prompt's layer, whose tokens use every expert alike."""
    every_TK = torch.arange(tokens * top_k, device=place) % experts
    ids_TK = every_TK.view(tokens, top_k)
    hidden_TD = torch.randn(tokens, hidden, device=place, dtype=torch.bfloat16)
    gates_TK = torch.full_like(ids_TK, 1 / top_k, dtype=torch.float32)
    return LayerWork(module, hidden_TD, ids_TK, gates_TK, ids_TK.reshape(-1).cpu().numpy())


class Pieces:
    """One model, captured.

    Args:
        name: Of its shape.
        layers: How many to build.
        contexts: Lengths of the static caches.
        place: The GPU.

    Raises:
        CapabilityError: No kernel of ours reads its experts.
    """

    def __init__(
        self, name: str, layers: int, contexts: tuple[int, ...], place: torch.device
    ) -> None:
        self.name = name
        opened = open_model(Source(name, RANDOM, layers=layers, pinned_pool=LEAST_POOL), place)
        store = opened.store
        layout = kernel_layout(store)
        if layout is None or opened.model_shape is None:
            raise CapabilityError(f"{name}: no kernel reads its experts; calibrate with another")
        self.shape: ModelShape = opened.model_shape
        self.top_k = store.parts.top_k
        self._blob_bytes = store.sizes_L[0]
        self._slots = max(4 * self.top_k, ARENA_BYTES // self._blob_bytes)
        arena_B = vram(self._slots * self._blob_bytes, place)
        for slot in range(self._slots):
            begin = slot * self._blob_bytes
            arena_B[begin : begin + self._blob_bytes].copy_(store.blob(slot % store.parts.experts))
        self._slot = 0
        self._experts = store.parts.experts
        self._place = place
        self._module = store.parts.layers[0].experts
        self._grouped = GroupedExperts(arena_B, layout, self._experts)
        self._decoders: dict[int, tuple[GraphedDecode, KernelExperts]] = {}
        model = opened.checkpoint.model
        for context in contexts:
            kernels = KernelExperts(arena_B, layout, self.top_k)
            decode = GraphedDecode(model, store.parts, context, kernels)
            self._decoders[context] = decode, kernels
        look_ahead = LookAhead(store.parts, HORIZONS)
        kernels = KernelExperts(arena_B, layout, self.top_k)
        decode = GraphedDecode(model, store.parts, contexts[0], kernels, look_ahead.ids)
        self._decoders[LOOKING] = decode, kernels
        look_ahead.remove()
        self._opened = opened  # graphs hold the weights' addresses, not the weights

    def forget(self, context: int) -> None:
        """Empty a cache: each turn of `attend` fills a place of it."""
        self._decoders[context][0].cache.reset()

    def attend(self, context: int) -> int:
        """Launch some layers' attention and router, and return how many."""
        decode, _ = self._decoders[context]
        graphs = decode.graphs[1:-1]
        turns = -(-ROUNDS // len(graphs))
        for _ in range(turns):
            for graph in graphs:
                graph.replay()
        return turns * len(graphs)

    def speak(self, context: int) -> int:
        """Launch what follows the last experts."""
        decode, _ = self._decoders[context]
        decode.graphs[-1].replay()
        return 1

    def run(self, experts: int) -> int:
        """Launch some runs of so many experts, each of others than the one before."""
        decode, kernels = next(iter(self._decoders.values()))
        work = decode.works[0]
        work.choose(list(range(self.top_k)))
        for _ in range(ROUNDS):
            slots = [(self._slot + number) % self._slots for number in range(experts)]
            self._slot = (self._slot + experts) % self._slots
            kernels.run(work, range(experts), [slot * self._blob_bytes for slot in slots])
        return ROUNDS

    def open_prompt(self, tokens: int) -> None:
        """Sort a prompt's rows, which use every expert alike."""
        counts = self.shape.hidden, self._experts, self.top_k, tokens
        self._grouped.open(prompt_work(self._module, *counts, self._place))
        torch.cuda.synchronize()

    def run_prompt(self, tokens: int) -> int:
        """Launch a run of all experts for the prompt that was opened."""
        counts = [self.prompt_tokens(tokens)] * self._experts
        offsets = [expert % self._slots * self._blob_bytes for expert in range(self._experts)]
        self._grouped.run(range(self._experts), counts, offsets)
        return 1

    def prompt_tokens(self, tokens: int) -> int:
        """Return how many tokens each expert serves in a prompt of that many."""
        return tokens * self.top_k // self._experts

    @property
    def experts(self) -> int:
        """How many a layer has."""
        return self._experts

    def close(self) -> None:
        """Release graphs, arena and model."""
        torch.cuda.synchronize()
        self._decoders.clear()
        del self._opened
