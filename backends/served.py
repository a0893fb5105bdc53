"""What requests leave behind when they are served: their tokens, and the routes as a trace."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moesim.backends.controllers import LOOK_IN
from moesim.backends.experts import Chosen
from moesim.backends.generation import Request
from moesim.backends.signals import SPECS
from moesim.backends.store import ExpertStore
from moesim.simulator.terms import Phase
from moesim.traces import RoutingTrace, TraceHeader
from moesim.traces.assemble import RequestRows, assemble
from moesim.traces.header import Evidence

# T tokens, L MoE layers, K chosen, H horizons, M top-m.
Route = tuple[Chosen, Tensor]
"""The choices of one layer in (token, rank) order, and their gates_TK."""
Look = list[list[list[int]]]
"""What one layer foretold: the best experts, [T][H][M]."""


class Served:
    """One request while it is served, and after.

    Attributes:
        cache: Its keys and values while it is served.
        fed: The tokens of the coming forward pass.
        position: How many tokens went through.
        tokens: What was generated.
        logits: Of the last position of every step that gave a token, where they are kept.
    """

    def __init__(self, request: Request, rng: np.random.Generator) -> None:
        self.request = request
        self.rng = rng
        self.cache: Any = None
        self.fed: list[int] = []
        self.position = 0
        self.tokens: list[int] = []
        self.logits: list[Tensor] = []
        self._passes = 0
        self._step_T: list[int] = []
        self._expert_TLK: list[NDArray[np.int64]] = []
        self._gate_TLK: list[NDArray[np.float16]] = []
        self._look_in_TLHM: list[NDArray[np.int64]] = []

    @property
    def prompt_left(self) -> int:
        """How many tokens of the prompt did not go through yet."""
        return max(0, len(self.request.prompt) - self.position)

    @property
    def phase(self) -> Phase:
        """What it does in the coming forward pass."""
        return Phase.PREFILL if self.prompt_left else Phase.DECODE

    @property
    def gives_token(self) -> bool:
        """Whether the coming forward pass is followed by a token: no prompt is left behind it."""
        return self.prompt_left <= len(self.fed)

    def feed(self, chunk: int | None) -> None:
        """Take what the coming forward pass is fed: so much of the prompt, or the last token."""
        if not self.prompt_left:
            self.fed = self.tokens[-1:]
            return
        taken = self.prompt_left if chunk is None else min(chunk, self.prompt_left)
        self.fed = list(self.request.prompt[self.position : self.position + taken])

    def advance(
        self,
        expert_TLK: NDArray[np.int64],
        gate_TLK: NDArray[np.float16],
        look_in_TLHM: NDArray[np.int64] | None,
    ) -> None:
        """Keep the routes of what was fed, which has gone through."""
        self._expert_TLK.append(expert_TLK)
        self._gate_TLK.append(gate_TLK)
        if look_in_TLHM is not None:
            self._look_in_TLHM.append(look_in_TLHM)
        self._step_T += [self._passes] * len(self.fed)
        self._passes += 1
        self.position += len(self.fed)

    def rows(self) -> RequestRows:
        """Return the request as a trace has it."""
        return RequestRows(
            expert_TLK=np.concatenate(self._expert_TLK),
            gate_TLK=np.concatenate(self._gate_TLK),
            is_prefill_T=np.arange(self.position) < len(self.request.prompt),
            step_T=np.array(self._step_T),
            task=self.request.task,
            prompt_tokens=len(self.request.prompt),
            output_tokens=len(self.tokens),
        )

    def look_in(self) -> NDArray[np.int16] | None:
        """Return what the layers' gates foretold, [T, L, H, M]; None where nobody asked."""
        if not self._look_in_TLHM:
            return None
        return np.concatenate(self._look_in_TLHM).astype(np.int16)


def keep_step(
    together: Sequence[Served], routes: Sequence[Route], looks: Sequence[Look]
) -> None:
    """Give each request of a step its rows of every layer's choices and looks ahead."""
    gate_TLK = torch.stack([gates_TK for _, gates_TK in routes], dim=1).half().cpu().numpy()
    tokens, _, top_k = gate_TLK.shape
    routes_LTK = np.array([choices for choices, _ in routes]).reshape(-1, tokens, top_k)
    expert_TLK = routes_LTK.transpose(1, 0, 2)
    look_TLHM = np.array(looks).transpose(1, 0, 2, 3) if looks else None
    begin = 0
    for one in together:
        rows = slice(begin, begin := begin + len(one.fed))
        look = None if look_TLHM is None else look_TLHM[rows]
        one.advance(expert_TLK[rows], gate_TLK[rows], look)


def trace_of(
    served: Sequence[Served], store: ExpertStore, name: str, evidence: Evidence
) -> RoutingTrace:
    """Return the routes that were served, for a replay of the same demands.

    Args:
        served: Every request.
        store: The model's experts.
        name: What the trace calls the model.
        evidence: Of the routes: the model's own, or those of the trace that was forced.
    """
    looks = [look for one in served if (look := one.look_in()) is not None]
    parts = store.parts
    header = TraceHeader(
        model=name,
        layer_ids=tuple(layer.layer_id for layer in parts.layers),
        experts=parts.experts,
        top_k=parts.top_k,
        evidence=evidence,
        selection=parts.selection,
        expert_bytes=store.sizes_L,
        dense_bytes=tuple(parameter_bytes(layer.decoder_layer) for layer in parts.layers),
        signals={LOOK_IN: SPECS["look_in"][LOOK_IN]} if looks else {},
    )
    signals = {LOOK_IN: np.concatenate(looks)} if looks else {}
    return assemble(name, header, [one.rows() for one in served], signals)


def parameter_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of a module's parameters; experts that were taken are not among them."""
    return sum(weights.numel() * weights.element_size() for weights in module.parameters())
