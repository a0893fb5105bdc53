"""What requests leave behind when they are served: their tokens, and the routes as a trace."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moesim.backends.controllers import LOOK_IN
from moesim.backends.generation import Request
from moesim.backends.signals import SPECS
from moesim.backends.store import ExpertStore
from moesim.traces import RoutingTrace, TraceHeader
from moesim.traces.assemble import RequestRows, assemble
from moesim.traces.header import Evidence

# T tokens, L MoE layers, K chosen, H horizons, M top-m.
Route = tuple[list[int], Tensor]
"""The choices of one layer in (token, rank) order, and their gates_TK."""
Look = list[list[list[int]]]
"""What one layer foretold: the best experts, [T][H][M]."""


class Served:
    """One request while it is served, and after.

    Attributes:
        fed: The tokens of the coming forward pass.
        position: How many tokens went through.
        tokens: What was generated.
        logits: Of the last position of every step, where they are kept.
    """

    def __init__(self, request: Request, rng: np.random.Generator) -> None:
        self.request = request
        self.rng = rng
        self.cache: Any = None
        self.fed: list[int] = list(request.prompt)
        self.position = 0
        self.tokens: list[int] = []
        self.logits: list[Tensor] = []
        self._expert_TLK: list[NDArray[np.int64]] = []
        self._gate_TLK: list[NDArray[np.float16]] = []
        self._look_in_TLHM: list[NDArray[np.int64]] = []

    def keep_step(self, routes: Sequence[Route], looks: Sequence[Look]) -> None:
        """Keep a step's routes: one, and one look ahead where there are any, for each layer."""
        gates_TLK = torch.stack([gates_TK for _, gates_TK in routes], dim=1).half().cpu().numpy()
        tokens, _, top_k = gates_TLK.shape
        routes_LTK = np.array([choices for choices, _ in routes]).reshape(-1, tokens, top_k)
        self._expert_TLK.append(routes_LTK.transpose(1, 0, 2))
        self._gate_TLK.append(gates_TLK)
        if looks:
            self._look_in_TLHM.append(np.array(looks).transpose(1, 0, 2, 3))

    def rows(self) -> RequestRows:
        """Return the request as a trace has it."""
        return RequestRows(
            expert_TLK=np.concatenate(self._expert_TLK),
            gate_TLK=np.concatenate(self._gate_TLK),
            is_prefill_T=np.arange(self.position) < len(self.request.prompt),
            task=self.request.task,
            prompt_tokens=len(self.request.prompt),
            output_tokens=len(self.tokens),
        )

    def look_in(self) -> NDArray[np.int16] | None:
        """Return what the layers' gates foretold, [T, L, H, M]; None where nobody asked."""
        if not self._look_in_TLHM:
            return None
        return np.concatenate(self._look_in_TLHM).astype(np.int16)


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
