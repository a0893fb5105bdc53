"""Which arrays a trace has, of which type and along which axes.

The end of a name is its shape: ``expert_TLK`` is [T, L, K]. Letters that the header knows must
agree with it; others (D, H, M) are free.
"""

import re
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from moesim.traces.errors import blame
from moesim.traces.header import TraceHeader

# T tokens, L MoE layers, E experts of a layer, K chosen, R requests.
Array = NDArray[Any]

NEEDED = {
    "expert_TLK": "int16",
    "step_T": "int32",
    "request_T": "int32",
    "position_T": "int32",
    "is_prefill_T": "bool",
    "arrival_ns_R": "int64",
    "prompt_tokens_R": "int32",
    "output_tokens_R": "int32",
}
KNOWN = NEEDED | {"gate_TLK": "float16 float32"}
SIGNAL_DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 float16 float32"
SIGNAL_NAME = re.compile(r"[a-z][a-z0-9_]*_[TR][A-Z]*")


def _check_names(name: str, header: TraceHeader, arrays: Mapping[str, Array]) -> None:
    for key in NEEDED:
        if key not in arrays:
            blame(name, key, "the array is missing", f"a trace needs {', '.join(NEEDED)}")
    for key in sorted(header.signals.keys() - arrays.keys()):
        blame(name, key, "declared in header.signals but absent", "add the array or drop the entry")
    for key in sorted(arrays.keys() - KNOWN.keys()):
        if key not in header.signals:
            blame(name, key, "not declared in header.signals", "declare its tap and known_at")
        if not SIGNAL_NAME.fullmatch(key):
            blame(name, key, "the name does not end in its axes, T or R first", "rename the signal")


def check_shapes(
    name: str, header: TraceHeader, requests: int, arrays: Mapping[str, Array]
) -> None:
    """Check that header and arrays speak of the same trace.

    Raises:
        TraceError: An array is missing, undeclared, misnamed, of another type or shape, or empty.
    """
    _check_names(name, header, arrays)
    tokens = len(arrays["expert_TLK"]) if arrays["expert_TLK"].ndim else 0
    sizes = {"T": tokens, "L": len(header.layer_ids), "E": header.experts}
    sizes |= {"K": header.top_k, "R": requests}
    for key, array in arrays.items():
        allowed = KNOWN.get(key, SIGNAL_DTYPES).split()
        if array.dtype.name not in allowed:
            blame(name, key, f"dtype {array.dtype.name}", f"convert to {' or '.join(allowed)}")
        axes = key.rpartition("_")[2]
        wanted = [sizes.get(axis) for axis in axes]
        if array.ndim != len(axes) or any(
            size is not None and size != actual
            for size, actual in zip(wanted, array.shape, strict=True)
        ):
            expected = ", ".join(
                str(axis if size is None else size) for axis, size in zip(axes, wanted, strict=True)
            )
            blame(
                name,
                key,
                f"shape [{', '.join(map(str, array.shape))}], expected [{expected}]",
                f"axes are [{', '.join(axes)}]; header and arrays must agree",
            )
    if tokens == 0 or requests == 0:
        blame(name, "expert_TLK", "the trace is empty", "record at least one token")
