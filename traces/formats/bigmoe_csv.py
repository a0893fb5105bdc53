"""Route CSV of BigMoeOnEdge (--route-trace), with expert and dense bytes per layer.

The engine (github Helldez/BigMoeOnEdge, core/include/bmoe/route_trace.h, commit 2d4f2b11) writes
``# route_trace v1``, ``# model=… n_layer=… n_expert=… n_expert_used=…`` and, for each layer,
``# layer=… expert_bytes=… dense_bytes=…``; then one row per routed expert with the columns
``turn,phase,step,layer,slot,expert,weight,residency,expert_bytes`` and, in new files, ``dropped``.
``step`` is the token's position in the context, ``phase`` 0 for prompt rows, ``slot`` the router's
rank. A turn becomes a request. The last layer routes only the prompt's last token; the others are
absent there. Residency is what the engine's own cache did and is not read.
"""

from pathlib import Path

import numpy as np

from moesim.traces.assemble import assemble, make_header
from moesim.traces.cells import Cells, dense
from moesim.traces.errors import blame
from moesim.traces.schema import RoutingTrace
from moesim.traces.texts import csv_rows, head, integer, number

__all__ = ["read", "sniff"]

START = b"# route_trace"
COLUMNS = ("turn", "phase", "step", "layer", "slot", "expert", "weight")
STATIC = ("model", "n_expert", "n_expert_used")


def sniff(path: Path) -> bool:
    """Whether the file begins with the engine's first line."""
    return head(path, len(START)) == START


def read(path: Path) -> RoutingTrace:
    """Read the file.

    Raises:
        TraceError: The preamble lacks a fact, or a row is cut off or not numeric; names the line.
    """
    name = str(path)
    facts, layer_bytes = _preamble(path)
    rows: list[tuple[int, ...]] = []
    gates: list[float] = []
    lines: list[int] = []
    for line, row in csv_rows(path):
        if not rows:
            for column in COLUMNS:
                if column not in row:
                    blame(
                        name, f"column {column}", "it is missing", f"it needs {','.join(COLUMNS)}"
                    )
        place = f"line {line}"
        rows.append(tuple(integer(name, f"{place}, {key}", row[key]) for key in COLUMNS[:-1]))
        gates.append(number(name, f"{place}, weight", row["weight"]))
        lines.append(line)
    if not rows:
        blame(name, "table", "it has no rows", "record at least one token")
    turn_N, phase_N, step_N, layer_N, slot_N, expert_N = np.array(rows).T
    turns, request_N = np.unique(turn_N, return_inverse=True)
    order_N = np.lexsort((slot_N,))
    no_gates = np.isnan(gates).all()
    cells = Cells(
        line_N=np.array(lines)[order_N],
        request_N=request_N[order_N],
        token_N=step_N[order_N],
        layer_N=layer_N[order_N],
        expert_N=expert_N[order_N],
        is_prefill_N=(phase_N == 0)[order_N],
        gate_N=None if no_gates else np.array(gates)[order_N],
        step_N=None,
        task_R=[f"turn {turn}" for turn in turns],
    )
    requests, layer_ids = dense(name, cells, integer(name, "n_expert_used", facts["n_expert_used"]))
    sizes = [layer_bytes.get(layer, (0, 0)) for layer in layer_ids]
    have_bytes = all(expert > 0 for expert, _ in sizes)
    header = make_header(
        name,
        model=Path(facts["model"]).name,
        layer_ids=layer_ids,
        experts=integer(name, "n_expert", facts["n_expert"]),
        top_k=integer(name, "n_expert_used", facts["n_expert_used"]),
        evidence="recorded",
        recorder="BigMoeOnEdge route_trace v1",
        expert_bytes=[expert for expert, _ in sizes] if have_bytes else None,
        dense_bytes=[dense_size for _, dense_size in sizes] if have_bytes else None,
    )
    return assemble(name, header, requests)


def _preamble(path: Path) -> tuple[dict[str, str], dict[int, tuple[int, int]]]:
    """Return the facts of the run, and (expert, dense) bytes by layer."""
    name = str(path)
    facts: dict[str, str] = {}
    layer_bytes: dict[int, tuple[int, int]] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.startswith("#"):
                break
            pairs = dict(word.split("=", 1) for word in line[1:].split() if "=" in word)
            if "layer" in pairs:
                expert, other = (pairs.get(key, "0") for key in ("expert_bytes", "dense_bytes"))
                layer = integer(name, "layer", pairs["layer"])
                layer_bytes[layer] = (
                    integer(name, f"layer {layer}, expert_bytes", expert),
                    integer(name, f"layer {layer}, dense_bytes", other),
                )
            else:
                facts |= pairs
    for key in STATIC:
        if key not in facts:
            blame(name, key, "it is missing from the # lines", "record again with --route-trace")
    return facts, layer_bytes
