"""From a table with one entry per chosen expert, in any order, to dense arrays.

Route logs are written as rows of (request, token, layer, expert). Here they are sorted, every
(token, layer) is checked to have the same number of experts, and the line of the file is kept
until then so that a message can name it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.assemble import RequestRows, step_numbers
from moesim.traces.errors import blame
from moesim.traces.ids import LARGEST_ID

# T tokens, L MoE layers, K chosen; N entries of the table, C (token, layer) pairs.
Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """The table, column by column; entries of one (token, layer) are in the router's order.

    Attributes:
        line_N: Line of the file, for messages.
        request_N: Request of the entry; requests are numbered from 0.
        step_N: Forward pass, or None where the table does not say.
        task_R: Label of each request.
    """

    line_N: Array
    request_N: Array
    token_N: Array
    layer_N: Array
    expert_N: Array
    is_prefill_N: Array
    gate_N: Array | None
    step_N: Array | None
    task_R: Sequence[str]


def dense(name: str, cells: Cells, top_k: int | None = None) -> tuple[list[RequestRows], list[int]]:
    """Return the requests and the layer ids that occur.

    Args:
        name: What messages call the file.
        cells: The table.
        top_k: Experts per (token, layer); if None, what most of them have.

    Raises:
        TraceError: No entries, an id out of range, a (token, layer) with too few or too many
            experts, or a token whose entries disagree about phase or step. Names the line.
    """
    if not len(cells.line_N):
        blame(name, "table", "it has no rows", "record at least one token")
    wrong = (cells.expert_N < 0) | (cells.expert_N > LARGEST_ID)
    if wrong.any():
        first = int(wrong.argmax())
        problem = f"expert {cells.expert_N[first]}"
        blame(name, f"line {cells.line_N[first]}", problem, f"ids lie in [0, {LARGEST_ID}]")
    order_N = np.lexsort((cells.layer_N, cells.token_N, cells.request_N))
    request_N, token_N = cells.request_N[order_N], cells.token_N[order_N]
    layer_N, line_N = cells.layer_N[order_N], cells.line_N[order_N]
    new_token_N = _changes(request_N, token_N)
    start_C = np.flatnonzero(new_token_N | _changes(layer_N))
    count_C = np.diff(start_C, append=len(order_N))
    chosen = int(np.bincount(count_C).argmax()) if top_k is None else top_k
    odd_C = np.flatnonzero(count_C != chosen)
    if len(odd_C):
        cell = int(odd_C[0])
        entry = start_C[cell]
        blame(
            name,
            f"line {line_N[entry]}",
            f"{count_C[cell]} experts for token {token_N[entry]}, layer {layer_N[entry]}",
            f"every token and layer has {chosen}",
        )
    row_N = np.cumsum(new_token_N) - 1
    first_T = np.flatnonzero(new_token_N)
    for label, column in (("phase", cells.is_prefill_N), ("step", cells.step_N)):
        if column is None:
            continue
        unequal = column[order_N] != column[order_N][first_T][row_N]
        if unequal.any():
            entry = int(unequal.argmax())
            problem = f"token {token_N[entry]} changes its {label}"
            blame(name, f"line {line_N[entry]}", problem, "a token goes through the model once")
    layer_ids = np.unique(layer_N)
    expert_TLK = np.full((len(first_T), len(layer_ids), chosen), -1, dtype=np.int16)
    place = row_N[start_C], np.searchsorted(layer_ids, layer_N[start_C])
    expert_TLK[place] = cells.expert_N[order_N].reshape(-1, chosen)
    gate_TLK = None
    if cells.gate_N is not None:
        gate_TLK = np.zeros(expert_TLK.shape, dtype=np.float32)
        with np.errstate(over="ignore"):
            gate_TLK[place] = cells.gate_N[order_N].reshape(-1, chosen)
    request_T = request_N[first_T]
    requests = []
    for request, task in enumerate(cells.task_R):
        rows = slice(*np.searchsorted(request_T, [request, request + 1]))
        is_prefill_T = cells.is_prefill_N[order_N][first_T][rows]
        position_T = token_N[first_T][rows]
        prompt_rows = int(is_prefill_T.sum())
        requests.append(
            RequestRows(
                expert_TLK=expert_TLK[rows],
                gate_TLK=None if gate_TLK is None else gate_TLK[rows],
                is_prefill_T=is_prefill_T,
                position_T=position_T,
                step_T=(
                    step_numbers(is_prefill_T)
                    if cells.step_N is None
                    else cells.step_N[order_N][first_T][rows]
                ),
                task=task,
                prompt_tokens=int(position_T[prompt_rows - 1]) + 1 if prompt_rows else -1,
            )
        )
    return requests, [int(layer) for layer in layer_ids]


def _changes(*columns: Array) -> NDArray[np.bool_]:
    """Return where any column differs from the entry before; the first always does."""
    changed = np.zeros(len(columns[0]), dtype=np.bool_)
    changed[0] = True
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
    return changed
