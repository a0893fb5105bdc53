"""Routes of a trace in place of a model's own: every router answers what was recorded.

The model's forward still runs; what its routers compute is discarded. So a model with random
weights, whose own routing is near uniform, is served the demands of a trained one, and what gates
foretell is the trained one's too where the trace kept it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moesim.backends.controllers import LOOK_IN
from moesim.backends.generation import Request
from moesim.backends.lookahead import LookAhead
from moesim.backends.models import MoeParts
from moesim.simulator.errors import CapabilityError
from moesim.traces import RoutingTrace

# T tokens, L MoE layers, K chosen, H horizons, M top-m.
TOKENS = "token_T"


class ForcedRoutes:
    """Hooks on a model's routers that answer the rows of a trace.

    Args:
        parts: The model's MoE blocks.
        trace: Of the same topology, with every prompt as one step.

    Raises:
        CapabilityError: The trace is of another topology, or lacks routes.
    """

    def __init__(self, parts: MoeParts, trace: RoutingTrace) -> None:
        ours = (len(parts.layers), parts.experts, parts.top_k)
        theirs = (trace.layers, trace.experts, trace.top_k)
        if ours != theirs:
            raise CapabilityError(
                f"the routes are of {theirs[0]} MoE layers x {theirs[1]} experts top-{theirs[2]}, "
                f"the model has {ours[0]} x {ours[1]} top-{ours[2]}; give a trace of its topology"
            )
        self._parts = parts
        self._trace = trace
        self._starts = trace.row_starts().tolist()
        device = next(parts.layers[0].router.parameters()).device
        # There from the start: a step's rows would queue behind the copies of experts.
        self._all_expert_TLK = torch.from_numpy(np.array(trace.expert_TLK)).to(device)
        gates = trace.gate_TLK
        self._all_gate_TLK = (
            torch.full(trace.expert_TLK.shape, 1 / trace.top_k, device=device)
            if gates is None
            else torch.from_numpy(np.array(gates)).to(device)
        )
        # A decode step's row stays where it is: graphs read it there.
        self._expert_TLK = self._one_expert_TLK = self._all_expert_TLK[:1].clone()
        self._gate_TLK = self._one_gate_TLK = self._all_gate_TLK[:1].clone()
        looks = trace.signals.get(LOOK_IN)
        self._all_look_TLHM = (
            None if looks is None else torch.from_numpy(np.array(looks).astype(np.int64)).to(device)
        )
        self._look_TLHM = self._one_look_TLHM = (
            None if self._all_look_TLHM is None else self._all_look_TLHM[:1].clone()
        )
        self._handles = [
            layer.router.register_forward_hook(self._answer(number))
            for number, layer in enumerate(parts.layers)
        ]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def begin(self, shares: Sequence[tuple[int, int, int]]) -> None:
        """Set the rows that the routers answer in the coming forward pass.

        Args:
            shares: Of each request in it: number, position, tokens.

        Raises:
            CapabilityError: The trace lacks one of them.
        """
        rows = [self._rows(*share) for share in shares]
        self._expert_TLK = _taken(self._all_expert_TLK, rows)
        self._gate_TLK = _taken(self._all_gate_TLK, rows)
        if len(self._expert_TLK) == 1:
            self._expert_TLK = self._one_expert_TLK.copy_(self._expert_TLK)
            self._gate_TLK = self._one_gate_TLK.copy_(self._gate_TLK)
        if self._all_look_TLHM is not None and self._one_look_TLHM is not None:
            look_TLHM = _taken(self._all_look_TLHM, rows)
            is_one = len(look_TLHM) == 1
            self._look_TLHM = self._one_look_TLHM.copy_(look_TLHM) if is_one else look_TLHM

    def _rows(self, request: int, position: int, tokens: int) -> slice:
        begin = self._starts[request] + position
        rows = slice(begin, begin + tokens)
        expert_TLK = np.asarray(self._trace.expert_TLK[rows])
        if rows.stop > self._starts[request + 1] or (expert_TLK < 0).any():
            raise CapabilityError(
                f"request {request}: no routes for tokens {position} to {position + tokens - 1}; "
                "give a trace that has every token of prompt and generation"
            )
        return rows

    def look_ahead(self, horizons: int) -> LookAhead:
        """Return what looks ahead for policies: to what the trace says, where it says anything."""
        if self._all_look_TLHM is None:
            return LookAhead(self._parts, horizons)
        return _ForcedLooks(self._parts, horizons, self.looks)

    def looks(self, layer: int) -> Tensor:
        """Return what the trace's gates foretold at a layer of the running step: [T, H, M]."""
        assert self._look_TLHM is not None
        return self._look_TLHM[:, layer]

    def _answer(self, number: int) -> Any:  # noqa: ANN401  a hook of torch
        def answer(module: nn.Module, inputs: object, output: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
            del module, inputs
            logits, gates, ids = output
            return (
                logits,
                self._gate_TLK[:, number].to(gates).contiguous(),
                self._expert_TLK[:, number].to(ids).contiguous(),
            )

        return answer


def _taken(all_T: Tensor, rows: Sequence[slice]) -> Tensor:
    """Return rows of what lies on the device; several pieces by a kernel, not by copies."""
    return all_T[rows[0]] if len(rows) == 1 else torch.cat([all_T[each] for each in rows])


class _ForcedLooks(LookAhead):
    """Takes the time that looking ahead takes, and answers what was recorded."""

    def __init__(self, parts: MoeParts, horizons: int, recorded: Callable[[int], Tensor]) -> None:
        super().__init__(parts, horizons)
        self._recorded = recorded

    def ids(self, layer: int) -> Tensor:
        super().ids(layer)
        return self._recorded(layer)


def requests_of(trace: RoutingTrace, vocabulary: int) -> list[Request]:
    """Return the requests of a trace, to be served with its routes.

    Tokens are the trace's where it kept them; else they count up through the vocabulary, which the
    forced routes do not notice.
    """
    starts = trace.row_starts().tolist()
    requests = []
    for number, task in enumerate(trace.task_R):
        rows = slice(starts[number], starts[number + 1])
        length = rows.stop - rows.start
        kept = trace.signals.get(TOKENS)
        tokens = (
            [position % vocabulary for position in range(length)]
            if kept is None
            else np.asarray(kept[rows]).tolist()
        )
        prompt = int(np.asarray(trace.is_prefill_T[rows]).sum())
        if prompt == 0:
            raise CapabilityError(
                f"request {number}: the trace has no prompt rows; a model cannot begin without them"
            )
        requests.append(
            Request(prompt=tokens[:prompt], task=task, forced=[*tokens[prompt:], tokens[-1]])
        )
    return requests
