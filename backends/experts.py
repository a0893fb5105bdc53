"""The seam into transformers 5: one experts function for every family, and what it computes.

A model that selects ``moesim`` hands each layer's hidden states and routes to whatever was attached
to it; one that selects ``moesim-resident`` computes the same products from its own parameters, all
resident. Sums are free of order: each (token, expert) product has a row of its own, and the rows
are added in router order once all are there. So the two agree bit by bit, whatever arrived first.
"""

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moesim.backends.models import Model, MoeParts
from moesim.backends.row_layouts import ROWS

# T tokens, K chosen, S = T x K choices in (token, rank) order, P pieces, R rows of one, D width.
# An experts module of transformers: which one, and what it carries, differs by family.
Module = Any

Positions = slice | Tensor
Chosen = list[int] | NDArray[np.int64]

SKIPPED = -1
"""Stands for the expert of a choice that is skipped; its row is 0."""

OFFLOADED = "moesim"
RESIDENT = "moesim-resident"


class LayerWork:
    """What one layer computes on in one step: inputs, who chose whom, a row for each product.

    Rows and positions are made when the first product needs them: kernels that keep rows of their
    own need neither.

    Attributes:
        choices: The chosen experts, counted within the layer, in (token, rank) order: a list for
            one token, an array for more.
        ids_TK: The same, on the device.
        gates_TK: Their weights.
        hidden_TD: The inputs.
        probs_TE: The router's probabilities of all experts, for lossy systems; else None.
        pieces: Rows that each product has, added in ascending order; more than one for experts that
            may be split. Set before the first product.

    Args:
        module: The experts module of the layer.
        hidden_TD: The inputs.
        ids_TK: Who chose whom, on the device.
        gates_TK: The weights.
        choices: ``ids_TK``, as the host read it.
    """

    def __init__(
        self,
        module: Module,
        hidden_TD: Tensor,
        ids_TK: Tensor,
        gates_TK: Tensor,
        choices: Chosen,
    ) -> None:
        self.choices = choices
        self.ids_TK = ids_TK
        self.gates_TK = gates_TK
        self.hidden_TD = hidden_TD
        self.probs_TE: Tensor | None = None
        self.top_k = ids_TK.shape[-1]
        self.pieces = 1
        self._module = module
        self._lock = Lock()  # products may begin in two threads at once
        self._rows_PSD: Tensor | None = None
        self._positions: dict[int, Positions] | None = None

    def copied(self, copy: Callable[[Tensor], Tensor]) -> Self:
        """Return the same layer where its inputs are copied to, with rows of its own there."""
        return type(self)(
            self._module,
            copy(self.hidden_TD),
            copy(self.ids_TK),
            copy(self.gates_TK),
            self.choices,
        )

    def choose(self, choices: list[int]) -> None:
        """Take other choices; the tensors stay, and hold what belongs to them."""
        self.choices = choices
        self._positions = None

    def reroute(self, changes: Sequence[tuple[int, int | None]]) -> None:
        """Take other experts in place of some choices, or none, and weigh the tokens anew.

        A changed token's gates are the router's probabilities of the experts it has, scaled to the
        sum that its gates had; where a model normalises its gates, that is its own rule. They are
        written where they are, for captured graphs read them there.

        Args:
            changes: By place in ``choices``: an expert by its number over all layers, or None.
        """
        probs_TE = self.probs_TE
        assert probs_TE is not None
        ids_S = np.array(self.choices, np.int64)
        for at, expert in changes:
            ids_S[at] = SKIPPED if expert is None else expert % probs_TE.shape[1]
        self.choices = ids_S.tolist() if isinstance(self.choices, list) else ids_S
        self._positions = None
        device = self.gates_TK.device
        self.ids_TK = torch.from_numpy(ids_S).view(-1, self.top_k).to(device)
        tokens = torch.tensor(sorted({at // self.top_k for at, _ in changes}), device=device)
        ids_NK = self.ids_TK[tokens]
        weights_NK = probs_TE[tokens].float().gather(1, ids_NK.clamp(min=0))
        weights_NK *= ids_NK != SKIPPED
        before_N1 = self.gates_TK[tokens].float().sum(dim=1, keepdim=True)
        total_N1 = weights_NK.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        self.gates_TK[tokens] = (weights_NK * before_N1 / total_N1).to(self.gates_TK.dtype)
        if (ids_S == SKIPPED).any():
            self.rows_PSD[:, torch.from_numpy(ids_S == SKIPPED).to(device)] = 0

    @property
    def rows_PSD(self) -> Tensor:
        """A row for each piece of each product."""
        with self._lock:
            if self._rows_PSD is None:
                hidden_TD = self.hidden_TD
                shape = self.pieces, len(self.choices), hidden_TD.shape[-1]
                self._rows_PSD = hidden_TD.new_empty(shape)
            return self._rows_PSD

    @property
    def positions(self) -> dict[int, Positions]:
        """For each distinct expert, its places in ``choices``, ascending."""
        with self._lock:
            if self._positions is None:
                self._positions = self._sorted()
            return self._positions

    def _sorted(self) -> dict[int, Positions]:
        if len(self.choices) == self.top_k:  # one token: nothing to gather
            return {int(expert): slice(at, at + 1) for at, expert in enumerate(self.choices)}
        distinct, counts = np.unique(self.choices, return_counts=True)
        order_S = torch.argsort(self.ids_TK.reshape(-1), stable=True)
        places = torch.split(order_S, counts.tolist())
        return dict(zip(distinct.tolist(), places, strict=True))

    def compute(self, expert: int, weights: Mapping[str, Tensor], first_piece: int = 0) -> None:
        """Compute one expert for all of its tokens; safe in any thread, in any order.

        Args:
            expert: Counted within the layer.
            weights: Its matrices, by their names in transformers, or the rows of a part.
            first_piece: Of the part.
        """
        positions = self.positions[expert]
        if ROWS not in weights:
            self.rows_PSD[0, positions] = self.product(self.hidden_TD, positions, weights)
            return
        inputs = self._inputs(self.hidden_TD, positions)
        for at, piece_R3D in enumerate(weights[ROWS], first_piece):
            self.rows_PSD[at, positions] = _piece_product(self._module, inputs, piece_R3D)

    def product(
        self, hidden_TD: Tensor, positions: Positions, weights: Mapping[str, Tensor]
    ) -> Tensor:
        """Return one expert's products for the tokens at these positions of the choices.

        Args:
            hidden_TD: The layer's inputs, where the weights are.
            positions: Of the expert, likewise.
            weights: Its matrices.
        """
        inputs = self._inputs(hidden_TD, positions)
        if ROWS not in weights:
            return _gated_product(self._module, inputs, weights)
        return torch.stack([_piece_product(self._module, inputs, p) for p in weights[ROWS]]).sum(0)

    def _inputs(self, hidden_TD: Tensor, positions: Positions) -> Tensor:
        return hidden_TD if isinstance(positions, slice) else hidden_TD[positions // self.top_k]

    def take(self, expert: int, rows_SD: Tensor) -> None:
        """Take in the products of an expert that were computed elsewhere."""
        positions = self.positions[expert]
        self.rows_PSD[1:, positions] = 0
        self.rows_PSD[0, positions] = rows_SD[positions]

    def merge(self) -> Tensor:
        """Weight the products and add them in router order, in float32."""
        rows_PSD = self.rows_PSD.float()
        rows_SD = rows_PSD[0]
        for piece_SD in rows_PSD[1:]:
            rows_SD = rows_SD + piece_SD
        rows_TKD = rows_SD.view(-1, self.top_k, rows_SD.shape[-1])
        weighted_TKD = rows_TKD * self.gates_TK.float().unsqueeze(-1)
        total_TD = weighted_TKD[:, 0].clone()
        for rank in range(1, self.top_k):
            total_TD += weighted_TKD[:, rank]
        return total_TD.to(self.hidden_TD.dtype)


def _gated_product(module: Module, inputs: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Return down(gate and up), by the family's own gating."""

    def times(inputs: Tensor, name: str) -> Tensor:
        matrix, bias = weights[name], weights.get(f"{name}_bias")
        product = inputs @ matrix if module.is_transposed else linear(inputs, matrix)
        return product if bias is None else product + bias

    return times(module._apply_gate(times(inputs, "gate_up_proj")), "down_proj")  # noqa: SLF001  the family's own


def _piece_product(module: Module, inputs: Tensor, piece_R3D: Tensor) -> Tensor:
    """Return what some rows of an expert add to its product, by the family's own gating."""
    gate_RD, up_RD, down_RD = piece_R3D.unbind(1)
    gated = module._apply_gate(torch.cat([linear(inputs, gate_RD), linear(inputs, up_RD)], -1))  # noqa: SLF001  the family's own
    product: Tensor = gated @ down_RD
    return product


Serve = Callable[[int, LayerWork], Tensor]
"""Has a MoE layer's work done, given the layer's number, and returns its merged result."""


Read = Callable[[Tensor], NDArray[np.int64]]
"""Brings numbers of the device to the host."""


def attach(model: Model, parts: MoeParts, serve: Serve, read: Read) -> Callable[[], None]:
    """Let a model whose experts were taken have them computed; the function returned undoes it."""
    for number, layer in enumerate(parts.layers):
        layer.experts.moesim_serve = (serve, read, number)  # type: ignore[assignment]  # any attribute
    model.set_experts_implementation(OFFLOADED)

    def detach() -> None:
        for layer in parts.layers:
            del layer.experts.moesim_serve

    return detach


def _offloaded(module: Module, hidden_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor) -> Tensor:
    serve, read, number = module.moesim_serve
    chosen = read(ids_TK.reshape(-1))
    choices = chosen.tolist() if len(ids_TK) == 1 else chosen
    result: Tensor = serve(number, LayerWork(module, hidden_TD, ids_TK, gates_TK, choices))
    return result


def _resident(module: Module, hidden_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor) -> Tensor:
    choices = ids_TK.reshape(-1).tolist()
    work = LayerWork(module, hidden_TD, ids_TK, gates_TK, choices)
    fused = dict(module.named_parameters())
    for expert in work.positions:
        work.compute(expert, {name: weights[expert] for name, weights in fused.items()})
    return work.merge()


ALL_EXPERTS_FUNCTIONS.register(OFFLOADED, _offloaded)
ALL_EXPERTS_FUNCTIONS.register(RESIDENT, _resident)
