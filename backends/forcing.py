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
        trace: Of the same topology.
        batch: The most requests that run together.

    Raises:
        CapabilityError: The trace is of another topology, or lacks routes.
    """

    def __init__(self, parts: MoeParts, trace: RoutingTrace, batch: int = 1) -> None:
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
        gates, looks = trace.gate_TLK, trace.signals.get(LOOK_IN)
        shape = trace.expert_TLK.shape
        self._expert = _Column(torch.from_numpy(np.array(trace.expert_TLK)).to(device), batch)
        self._gate = _Column(
            torch.full(shape, 1 / trace.top_k, device=device)
            if gates is None
            else torch.from_numpy(np.array(gates)).to(device),
            batch,
        )
        self._look = (
            None
            if looks is None
            else _Column(torch.from_numpy(np.array(looks).astype(np.int64)).to(device), batch)
        )
        self._handles = [
            layer.router.register_forward_hook(self._answer(number))
            for number, layer in enumerate(parts.layers)
        ]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def begin(
        self,
        shares: Sequence[tuple[int, int, int]],
        places: tuple[int, Sequence[int]] | None = None,
    ) -> None:
        """Set the rows that the routers answer in the coming forward pass.

        Args:
            shares: Of each request in it: number, position, tokens.
            places: Where graphs compute a token of each: of how many rows, in which ones.

        Raises:
            CapabilityError: The trace lacks one of them.
        """
        rows = [self._rows(*share) for share in shares]
        if places is not None:
            count, taken = places
            at = dict(zip(taken, rows, strict=True))
            rows = [at.get(place, slice(0, 1)) for place in range(count)]
        stay = places is not None or sum(each.stop - each.start for each in rows) == 1
        for column in self._columns():
            column.take(rows, stay=stay)

    def _columns(self) -> "list[_Column]":
        return [column for column in (self._expert, self._gate, self._look) if column is not None]

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
        if self._look is None:
            return LookAhead(self._parts, horizons)
        return _ForcedLooks(self._parts, horizons, self.looks)

    def looks(self, layer: int, tokens: int) -> Tensor:
        """Return what the trace's gates foretold at a layer of the running step: [T, H, M]."""
        assert self._look is not None
        return self._look.of(tokens)[:, layer]

    def _answer(self, number: int) -> Any:  # noqa: ANN401  a hook of torch
        def answer(module: nn.Module, inputs: object, output: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
            del module, inputs
            logits, gates, ids = output
            return (
                logits,
                self._gate.of(len(ids))[:, number].to(gates).contiguous(),
                self._expert.of(len(ids))[:, number].to(ids).contiguous(),
            )

        return answer


class _Column:
    """One array of the trace, on the device from the start: rows would queue behind experts.

    Args:
        all_T: The whole of it.
        batch: The most tokens of a decode step; graphs read their rows where they stay.
    """

    def __init__(self, all_T: Tensor, batch: int) -> None:
        self._all_T = all_T
        self._kept_B = all_T[:1].repeat_interleave(batch, dim=0)
        self._now_T = self._kept_B[:1]

    def take(self, rows: Sequence[slice], *, stay: bool) -> None:
        """Take the rows of the coming forward; pieces are put together by a kernel."""
        pieces = [self._all_T[each] for each in rows]
        taken_T = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        self._now_T = self._kept_B[: len(taken_T)].copy_(taken_T) if stay else taken_T

    def of(self, tokens: int) -> Tensor:
        """Return the rows of the running forward; one that nobody announced is being captured."""
        return self._now_T if len(self._now_T) == tokens else self._kept_B[:tokens]


class _ForcedLooks(LookAhead):
    """Takes the time that looking ahead takes, and answers what was recorded."""

    def __init__(
        self, parts: MoeParts, horizons: int, recorded: Callable[[int, int], Tensor]
    ) -> None:
        super().__init__(parts, horizons)
        self._recorded = recorded

    def ids(self, layer: int) -> Tensor:
        return self._recorded(layer, len(super().ids(layer)))


def requests_of(trace: RoutingTrace, vocabulary: int) -> list[Request]:
    """Return the requests of a trace, to be served with its routes.

    Tokens are the trace's where it kept them, within the vocabulary; else they count up through
    it, which the forced routes do not notice.
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
            else (np.asarray(kept[rows]) % vocabulary).tolist()
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
