"""RTRACE01, the router probabilities that fitz-tec's patched llama.cpp writes.

Layout (fitz-tec 0.1.1, fitz_tec/tools/_trace_format.py): the magic ``RTRACE01``, int32 number of
experts, int32 version 0, then a record per (token, layer): int32 token, int32 layer, float32
softmax probability of every expert. The file holds neither k nor the phase: k is read from the
model's ``config.json`` beside it, the k most probable experts are taken as chosen, the gates are
left out (whether the model normalises them is not said) and all rows are read as decode rows, with
a note.
"""

from pathlib import Path

import numpy as np

from moesim.traces.assemble import RequestRows, assemble, make_header
from moesim.traces.errors import blame
from moesim.traces.header import SignalSpec
from moesim.traces.ids import LARGEST_ID
from moesim.traces.model_config import CONFIG_NAME, shape_beside
from moesim.traces.schema import RoutingTrace
from moesim.traces.texts import head

__all__ = ["read", "sniff"]

# T tokens, L MoE layers, E experts of a layer, K chosen.
MAGIC = b"RTRACE01"
HEADER_BYTES = 16


def sniff(path: Path) -> bool:
    """Whether the file begins with the magic."""
    return head(path, len(MAGIC)) == MAGIC


def read(path: Path) -> RoutingTrace:
    """Read the file.

    Raises:
        TraceError: It is cut off, a token lacks a layer, or there is no config.json beside it.
    """
    name = str(path)
    shape = shape_beside(path)
    if shape.top_k is None:
        way_out = f"put the model's {CONFIG_NAME} beside the file"
        blame(name, "header", "the file does not say how many experts are chosen", way_out)
    raw = path.read_bytes()
    experts = int(np.frombuffer(raw[8:12], dtype="<i4")[0]) if len(raw) >= HEADER_BYTES else 0
    if not shape.top_k <= experts <= LARGEST_ID:
        way_out = f"between the {shape.top_k} chosen and {LARGEST_ID}"
        blame(name, "header", f"{experts} experts", way_out)
    record = np.dtype([("token", "<i4"), ("layer", "<i4"), ("probs_E", "<f4", (experts,))])
    body = raw[HEADER_BYTES:]
    if not body or len(body) % record.itemsize:
        problem = f"{len(body)} bytes are not records of {record.itemsize}"
        blame(name, f"record {len(body) // record.itemsize}", problem, "is the file cut off?")
    records = np.frombuffer(body, dtype=record)
    tokens, row_C = np.unique(records["token"], return_inverse=True)
    layer_ids, layer_C = np.unique(records["layer"], return_inverse=True)
    seen_TL = np.zeros((len(tokens), len(layer_ids)), dtype=np.int64)
    np.add.at(seen_TL, (row_C, layer_C), 1)
    if (seen_TL != 1).any():
        row, layer = (int(axis) for axis in np.argwhere(seen_TL != 1)[0])
        place = f"token {tokens[row]}, layer {layer_ids[layer]}"
        blame(name, place, f"{seen_TL[row, layer]} records", "each token has each layer once")
    probs_TLE = np.empty((*seen_TL.shape, experts), dtype=np.float32)
    probs_TLE[row_C, layer_C] = records["probs_E"]
    ids_TLK = np.argsort(-probs_TLE, axis=2, kind="stable")[..., : shape.top_k]
    signal = SignalSpec(tap="router softmax", known_at="layer_routed", producer="router")
    header = make_header(
        name,
        model=shape.name or "unknown",
        layer_ids=layer_ids.tolist(),
        experts=experts,
        top_k=shape.top_k,
        evidence="recorded",
        recorder="fitz-tec llama-router-trace",
        notes="phase not recorded, all rows are read as decode rows; k from config.json",
        signals={"router_probs_TLE": signal},
    )
    rows = RequestRows(
        expert_TLK=ids_TLK,
        is_prefill_T=np.zeros(len(tokens), dtype=np.bool_),
        position_T=tokens,
        output_tokens=-1,
    )
    return assemble(name, header, [rows], {"router_probs_TLE": probs_TLE})
