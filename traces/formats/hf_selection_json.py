"""JSON of the Hugging Face data set core12345/MoE_expert_selection_trace.

The layout was read from files of the set that a public project has checked in (github
andronius-yang/cse223b-proj, traffic-gen/llama4-mmlu-*/N.json), and its reader; the data set's card
names only the folders: profiling_result/ORGANISATION/MODEL/BENCHMARK/SUBJECT/N.json. A file is one
request: a list whose entry 0 is the prefill and whose later entries are decode steps. An entry maps
each decoder layer ("0", "1", …) to null for a dense layer or to one list of expert ids per token.
There are no gates. The files do not say how many experts a layer has: a ``config.json`` of the
model in the folder does, else the largest id decides and the notes say so.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.assemble import RequestRows, assemble, make_header
from moesim.traces.errors import blame
from moesim.traces.ids import id_array
from moesim.traces.model_config import CONFIG_NAME, shape_beside
from moesim.traces.schema import RoutingTrace
from moesim.traces.texts import head, parse_json

__all__ = ["read", "sniff"]

# T tokens, L MoE layers, K chosen.
Array = NDArray[Any]

START = re.compile(rb'\s*\[\s*\{\s*"\d+"\s*:\s*(null|\[)')
ROOT = "profiling_result"


def sniff(path: Path) -> bool:
    """Whether the file, or the first JSON file below the folder, begins as the set's files do."""
    files = _files(path)
    return bool(files) and START.match(head(files[0])) is not None


def read(path: Path) -> RoutingTrace:
    """Read one request, or all below a folder in the order of their paths, numbers by value.

    Raises:
        TraceError: Names file, entry and layer.
    """
    requests = []
    moe_layers: list[int] | None = None
    files = _files(path)
    models = sorted({_model(file) for file in files})
    if len(models) > 1:
        blame(str(path), "folder", f"models {', '.join(models)}", "give the folder of one model")
    for file in files:
        layers, request = _read_request(file, moe_layers)
        moe_layers = layers
        requests.append(request)
    assert moe_layers is not None
    shape = shape_beside(path)
    largest = max(int(request.expert_TLK.max()) for request in requests)
    header = make_header(
        str(path),
        model=shape.name or models[0],
        layer_ids=moe_layers,
        experts=largest + 1 if shape.experts is None else shape.experts,
        top_k=requests[0].expert_TLK.shape[2],
        evidence="recorded",
        source="huggingface.co/datasets/core12345/MoE_expert_selection_trace",
        notes=None if shape.experts else "number of experts taken from the largest id",
    )
    return assemble(str(path), header, requests)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = (file for file in path.rglob("*.json") if file.name != CONFIG_NAME)
    return sorted(found, key=lambda file: (file.parent, len(file.stem), file.stem))


def _model(file: Path) -> str:
    parts = file.resolve().parts
    if ROOT in parts[:-3]:
        start = parts.index(ROOT) + 1
        return "/".join(parts[start : start + 2])
    return "unknown"


def _read_request(file: Path, expected: list[int] | None) -> tuple[list[int], RequestRows]:
    name = str(file)
    entries = parse_json(name, file.read_bytes())
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        blame(name, "file", "not a list of objects", "one object per forward pass")
    arrays = []
    for index, entry in enumerate(entries):
        layers, ids = _read_entry(name, index, entry)
        if expected is not None and layers != expected:
            problem = f"experts in {len(layers)} layers, elsewhere in {len(expected)}"
            blame(name, f"entry {index}", problem, "every entry has the same MoE layers")
        expected = layers
        arrays.append(ids)
    if expected is None:
        blame(name, "file", "no entries", "the first is the prefill")
    counts = [len(ids) for ids in arrays]
    return expected, RequestRows(
        expert_TLK=np.concatenate(arrays),
        is_prefill_T=np.arange(sum(counts)) < counts[0],
        step_T=np.repeat(np.arange(len(counts)), counts),
        task=file.parent.name,
        prompt_tokens=counts[0],
    )


def _read_entry(name: str, index: int, entry: dict[str, Any]) -> tuple[list[int], Array]:
    by_layer = {}
    for key, rows in entry.items():
        if not key.isdecimal():
            blame(name, f"entry {index}", f"layer {key!r}", "layers are numbers")
        if rows is not None:
            by_layer[int(key)] = id_array(name, f"entry {index}, layer {key}", rows, axes=2)
    if not by_layer:
        blame(name, f"entry {index}", "no layer has experts", "drop the entry")
    layers = sorted(by_layer)
    first = by_layer[layers[0]].shape
    for layer in layers:
        if by_layer[layer].shape != first:
            problem = f"{list(by_layer[layer].shape)} ids, layer {layers[0]} has {list(first)}"
            blame(name, f"entry {index}, layer {layer}", problem, "tokens times k, in every layer")
    return layers, np.stack([by_layer[layer] for layer in layers], axis=1)
