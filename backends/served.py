"""What requests leave behind when they are served: their tokens, and the routes as a trace."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moesim.backends.controllers import LOOK_IN, ROUTER_PROBS, Deciding
from moesim.backends.experts import Chosen
from moesim.backends.generation import Request
from moesim.backends.signals import SPECS
from moesim.backends.store import ExpertStore
from moesim.simulator.terms import Phase
from moesim.traces import RoutingTrace, TraceHeader
from moesim.traces.assemble import RequestRows, assemble
from moesim.traces.header import ClosedLoop, Evidence

# T tokens, L MoE layers, E experts of a layer, K chosen, H horizons, M top-m.
Route = tuple[Chosen, Tensor]
"""The choices of one layer in (token, rank) order, and their gates_TK."""
TOKENS = "token_T"
Look = list[list[list[int]]]
"""What one layer foretold: the best experts, [T][H][M]."""


class Served:
    """One request while it is served, and after.

    Attributes:
        cache: Its keys and values while it is served.
        fed: The tokens of the coming forward pass.
        position: How many tokens went through.
        tokens: What was generated.
        is_finished: Whether its last token was given.
        logits: Of the last position of every step that gave a token, where they are kept.
        prompt_logits: Of every position of the prompt, piece by piece, where they are kept.
    """

    def __init__(self, request: Request, rng: np.random.Generator) -> None:
        self.request = request
        self.rng = rng
        self.cache: Any = None
        self.fed: list[int] = []
        self.position = 0
        self.tokens: list[int] = []
        self.is_finished = False
        self.logits: list[Tensor] = []
        self.prompt_logits: list[Tensor] = []
        self._passes = 0
        self._step_T: list[int] = []
        self._expert_TLK: list[NDArray[np.int64]] = []
        self._gate_TLK: list[NDArray[np.float16]] = []
        self._look_in_TLHM: list[NDArray[np.int64]] = []
        self._probs_TLE: list[NDArray[np.float16]] = []
        self._token_T: list[int] = []

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
        probs_TLE: NDArray[np.float16] | None,
    ) -> None:
        """Keep the routes of what was fed, which has gone through."""
        self._expert_TLK.append(expert_TLK)
        self._gate_TLK.append(gate_TLK)
        if look_in_TLHM is not None:
            self._look_in_TLHM.append(look_in_TLHM)
        if probs_TLE is not None:
            self._probs_TLE.append(probs_TLE)
        self._token_T += self.fed
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

    def signals(self) -> dict[str, NDArray[Any]]:
        """Return what policies were told of the routes, by the names of a trace's signals.

        Where routers were watched, the text is kept too: it is not that of the whole model.
        """
        told: dict[str, NDArray[Any]] = {}
        if self._look_in_TLHM:
            told[LOOK_IN] = np.concatenate(self._look_in_TLHM).astype(np.int16)
        if self._probs_TLE:
            told[ROUTER_PROBS] = np.concatenate(self._probs_TLE)
            told[TOKENS] = np.array(self._token_T, np.int32)
        return told


def keep_step(
    together: Sequence[Served],
    routes: Sequence[Route],
    looks: Sequence[Look],
    probs: Sequence[Tensor],
) -> None:
    """Give each request of a step its rows of what is kept of every layer.

    Args:
        together: The requests.
        routes: The routers' own choices.
        looks: What the layers foretold, or nothing.
        probs: What the routers thought of all experts, in half precision, or nothing.
    """
    gate_TLK = torch.stack([gates_TK for _, gates_TK in routes], dim=1).half().cpu().numpy()
    tokens, _, top_k = gate_TLK.shape
    routes_LTK = np.array([choices for choices, _ in routes]).reshape(-1, tokens, top_k)
    expert_TLK = routes_LTK.transpose(1, 0, 2)
    look_TLHM = np.array(looks).transpose(1, 0, 2, 3) if looks else None
    probs_TLE = torch.stack(list(probs), dim=1).numpy() if probs else None
    begin = 0
    for one in together:
        rows = slice(begin, begin := begin + len(one.fed))
        look = None if look_TLHM is None else look_TLHM[rows]
        told = None if probs_TLE is None else probs_TLE[rows]
        one.advance(expert_TLK[rows], gate_TLK[rows], look, told)


def trace_of(
    served: Sequence[Served],
    store: ExpertStore,
    name: str,
    evidence: Evidence,
    deciding: Deciding | None = None,
) -> RoutingTrace:
    """Return the routes that were served, for a replay of the same demands.

    Args:
        served: Every request.
        store: The model's experts.
        name: What the trace calls the model.
        evidence: Of the routes: the model's own, or those of the trace that was forced.
        deciding: The lossy system under which they came to be, to which the trace is then bound.
    """
    told = [one.signals() for one in served]
    signals = {name: np.concatenate([each[name] for each in told]) for name in told[0]}
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
        signals={name: _SPECS[name] for name in signals},
    )
    trace = assemble(name, header, [one.rows() for one in served], signals)
    return trace if deciding is None else _bound(trace, deciding)


_SPECS = {
    LOOK_IN: SPECS["look_in"][LOOK_IN],
    ROUTER_PROBS: SPECS["router_probs"][ROUTER_PROBS],
    TOKENS: SPECS["token"][TOKENS],
}


def _bound(trace: RoutingTrace, deciding: Deciding) -> RoutingTrace:
    loop = ClosedLoop(
        system=deciding.system,
        policies={str(axis): spec.text for axis, spec in deciding.specs().items()},
        budget_bytes=deciding.budget_bytes,
        slots=deciding.budget_bytes // max(trace.header.expert_bytes or (1,)),
        seed=deciding.seed,
        order=trace.order_hash(),
    )
    return replace(trace, header=trace.header.model_copy(update={"closed_loop": loop}))


def parameter_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of a module's parameters; experts that were taken are not among them."""
    return sum(weights.numel() * weights.element_size() for weights in module.parameters())
