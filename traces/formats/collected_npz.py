"""Folder of trace.npz and meta.json, the layout that public logs were converted to.

``experts`` uint8 [T, L, K] with 255 = not recorded, ``weights`` float16, ``seq_start`` [S + 1],
``phase`` uint8 (0 prompt, 1 decode), ``token`` where logged; meta.json has ``layer_ids``,
``n_experts``, ``top_k``, ``seq_domain`` and, where known, ``prompt_len``, ``expert_bytes`` and
``dense_bytes``. A sequence becomes a request: all its prompt rows are one step, each decode row is
a step of its own. A log whose notes say "teacher-forced" has phase 0 throughout (DeepSeek's ESFT):
prompt and target went through the model at once, so all rows are read as prompt rows.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.assemble import RequestRows, assemble, make_header
from moesim.traces.errors import blame
from moesim.traces.header import SignalSpec
from moesim.traces.npz import read_npz
from moesim.traces.schema import RoutingTrace
from moesim.traces.texts import integer, parse_json

__all__ = ["read", "sniff"]

# T tokens, L MoE layers, K chosen.
Array = NDArray[Any]

ARRAYS, META = "trace.npz", "meta.json"
ABSENT = 255
NEEDED_ARRAYS = {"experts": 3, "seq_start": 1, "phase": 1}
NEEDED_META = ("model", "n_experts", "top_k", "layer_ids", "seq_domain")
TOKEN = SignalSpec(
    tap="token text, re-tokenised and numbered by the recorder",
    known_at="step_begin",
    producer="host",
    evidence="derived",
)


def sniff(path: Path) -> bool:
    """Whether the folder (or the folder of the trace.npz) has both files and the meta's keys."""
    folder = path.parent if path.name == ARRAYS else path
    meta = folder / META
    if not (folder / ARRAYS).is_file() or not meta.is_file():
        return False
    content = meta.read_bytes()
    return b'"n_experts"' in content and b'"layer_ids"' in content


def read(path: Path) -> RoutingTrace:
    """Read the folder.

    Raises:
        TraceError: A key or array is missing or they disagree; names file, array and row.
    """
    folder = path.parent if path.name == ARRAYS else path
    meta_name, name = str(folder / META), str(folder / ARRAYS)
    meta = _meta(meta_name, parse_json(meta_name, (folder / META).read_bytes()))
    arrays = _arrays(name, folder / ARRAYS)
    _check(name, meta, arrays)
    starts = arrays["seq_start"]
    prompt_len = meta.get("prompt_len")
    teacher_forced = "teacher-forced" in str(meta.get("notes", ""))
    is_prefill_T = arrays["phase"] == 0
    requests = []
    for sequence, task in enumerate(meta["seq_domain"]):
        rows = slice(int(starts[sequence]), int(starts[sequence + 1]))
        ids = arrays["experts"][rows].astype(np.int16)
        ids[ids == ABSENT] = -1
        prompt_rows = int(is_prefill_T[rows].sum())
        prompt_tokens = prompt_rows or -1
        if prompt_len is not None:
            prompt_tokens = integer(meta_name, f"prompt_len {sequence}", prompt_len[sequence])
        requests.append(
            RequestRows(
                expert_TLK=ids,
                gate_TLK=arrays["weights"][rows] if "weights" in arrays else None,
                is_prefill_T=is_prefill_T[rows],
                first_position=0 if prompt_rows else max(prompt_tokens, 0),
                task=str(task),
                prompt_tokens=prompt_tokens,
            )
        )
    signals = {"token_T": arrays["token"]} if "token" in arrays else {}
    header = make_header(
        meta_name,
        model=str(meta["model"]).partition(" (")[0],
        layer_ids=meta["layer_ids"],
        experts=meta["n_experts"],
        top_k=meta["top_k"],
        evidence="recorded",
        source=f"{meta.get('source', 'unknown')}@{meta.get('commit', 'unknown')}",
        licence=meta.get("licence"),
        notes=_notes(meta, teacher_forced=teacher_forced),
        expert_bytes=meta.get("expert_bytes"),
        dense_bytes=meta.get("dense_bytes"),
        teacher_forced=teacher_forced,
        signals={"token_T": TOKEN} if signals else {},
    )
    return assemble(name, header, requests, signals)


def _meta(name: str, meta: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """Return the meta data with its sizes as numbers and its lists as lists."""
    if not isinstance(meta, dict):
        blame(name, "file", "not a JSON object", f"it needs {', '.join(NEEDED_META)}")
    for key in NEEDED_META:
        if key not in meta:
            blame(name, key, "the key is missing", f"it needs {', '.join(NEEDED_META)}")
    sizes = {key: integer(name, key, meta[key]) for key in ("n_experts", "top_k")}
    for key in ("layer_ids", "seq_domain", "prompt_len"):
        if not isinstance(meta.get(key, []), list):
            blame(name, key, f"{meta[key]!r:.60}", "it is a list")
    lengths, sequences = meta.get("prompt_len"), len(meta["seq_domain"])
    if lengths is not None and len(lengths) != sequences:
        problem = f"{len(lengths)} entries for {sequences} sequences"
        blame(name, "prompt_len", problem, "it has one per sequence")
    return meta | sizes


def _arrays(name: str, path: Path) -> dict[str, Array]:
    arrays = read_npz(path)
    for key, axes in NEEDED_ARRAYS.items():
        if key not in arrays:
            blame(name, key, "the array is missing", f"it needs {', '.join(NEEDED_ARRAYS)}")
        if arrays[key].dtype.kind not in "iu":
            blame(name, key, f"dtype {arrays[key].dtype}", "it holds whole numbers")
        if arrays[key].ndim != axes:
            blame(name, key, f"shape {list(arrays[key].shape)}", f"it has {axes} axes")
    return arrays


def _check(name: str, meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    wanted = [len(arrays["phase"]), len(meta["layer_ids"]), meta["top_k"]]
    for key in ("experts", "weights"):
        if key in arrays and list(arrays[key].shape) != wanted:
            problem = f"shape {list(arrays[key].shape)}, expected {wanted}"
            blame(name, key, problem, "phase, layer_ids and top_k give the shape")
    if "token" in arrays and arrays["token"].shape != arrays["phase"].shape:
        blame(name, "token", f"shape {list(arrays['token'].shape)}", "it has one entry per row")
    if meta["n_experts"] > ABSENT:
        blame(name, "experts", f"n_experts is {meta['n_experts']}", "255 must be free for absent")
    starts = arrays["seq_start"].astype(np.int64)
    if len(starts) != len(meta["seq_domain"]) + 1:
        problem = f"{len(starts)} entries for {len(meta['seq_domain'])} sequences"
        blame(name, "seq_start", problem, "it has one more than seq_domain")
    if starts[0] != 0 or starts[-1] != wanted[0]:
        problem = f"runs from {starts[0]} to {starts[-1]}, there are {wanted[0]} rows"
        blame(name, "seq_start", problem, "it runs from 0 to the number of rows")
    falling = np.flatnonzero(np.diff(starts) <= 0)
    if len(falling):
        blame(
            name, f"seq_start: entry {falling[0] + 1}", "it does not rise", "drop empty sequences"
        )
    strange = np.flatnonzero(arrays["phase"] > 1)
    if len(strange):
        problem = f"phase {arrays['phase'][strange[0]]}"
        blame(name, f"phase: row {strange[0]}", problem, "0 is prompt, 1 is decode")


def _notes(meta: Mapping[str, Any], *, teacher_forced: bool) -> str:
    notes = [f"model: {meta['model']}"] if " (" in str(meta["model"]) else []
    notes += [str(meta["notes"])] if "notes" in meta else []
    if "weights" in meta:
        notes.append(f"gates: {meta['weights']}")
    if teacher_forced:
        notes.append("teacher-forced rows are read as prompt rows, one step per request")
    return "; ".join(notes)
