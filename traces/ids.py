"""Expert ids as other programs write them: nested lists, arrays or base64; checked to fit int16.

What is ragged, not a whole number or out of range is found and named; nothing wraps around.
"""

import base64
import binascii
import io
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from moesim.traces.errors import TraceError, blame
from moesim.traces.npz import DAMAGE

Array = NDArray[Any]

LARGEST_ID = np.iinfo(np.int16).max


def as_expert_ids(name: str, ids: Array, place: str = "") -> NDArray[np.int16]:
    """Return integers as int16, the type of a trace.

    Raises:
        TraceError: An id is below -1 or above 32767; names the first row that has one.
    """
    wrong = (ids < -1) | (ids > LARGEST_ID)
    if wrong.any():
        row = f"row {np.argwhere(wrong)[0][0]}"
        where = f"{place}, {row}" if place else row
        blame(name, where, f"expert {ids[wrong][0]}", f"ids lie in [0, {LARGEST_ID}]")
    return ids.astype(np.int16)


def id_array(name: str, place: str, value: object, *, axes: int) -> NDArray[np.int16]:
    """Return nested lists as an array of so many axes, none of them empty.

    Raises:
        TraceError: The lists differ in length, or hold something else than ids; names the row.
    """
    try:
        array = np.asarray(value)
    except ValueError:
        _blame_row(name, place, value, axes)
    if array.ndim != axes or array.dtype.kind not in "iu" or 0 in array.shape:
        _blame_row(name, place, value, axes)
    return as_expert_ids(name, array, place)


def ids_of_npy(name: str, place: str, text: str) -> NDArray[np.int16]:
    """Return the [T, L, K] ids of a .npy file in base64.

    Raises:
        TraceError: It is not base64, not a .npy file, or has another number of axes.
    """
    content = io.BytesIO(from_base64(name, place, text))
    try:
        rows = np.load(content, allow_pickle=False)
    except DAMAGE as error:
        reason = str(error).partition("\n")[0]
        problem = f"routed_experts is not a base64 .npy ({reason})"
        raise TraceError(f"{name}: {place}: {problem}; is the dump cut off?") from error
    return id_array(name, f"{place}, routed_experts", rows, axes=3)


def from_base64(name: str, place: str, text: object) -> bytes:
    """Return the bytes.

    Raises:
        TraceError: The text is not base64.
    """
    try:
        return base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError) as error:
        problem = f"routed_experts is not base64 ({error})"
        raise TraceError(f"{name}: {place}: {problem}; is the dump cut off?") from error


def _blame_row(name: str, place: str, value: object, axes: int) -> NoReturn:
    way_out = f"expert ids are whole numbers in lists {axes} deep, all of one length"
    if not isinstance(value, list) or not value:
        blame(name, place, f"{value!r:.60}", way_out)
    shapes = [_shape(row) for row in value]
    for row, shape in enumerate(shapes):
        if shape is None or len(shape) != axes - 1 or shape != shapes[0] or 0 in shape:
            blame(name, f"{place}, row {row}", f"{value[row]!r:.60}", way_out)
    blame(name, place, f"{value!r:.60}", way_out)


def _shape(value: Any) -> tuple[int, ...] | None:  # noqa: ANN401 - any JSON
    """Return the shape of nested lists of integers, None if they have no shape."""
    if isinstance(value, int) and not isinstance(value, bool):
        return ()
    if not isinstance(value, list):
        return None
    shapes = [_shape(item) for item in value]
    inner = shapes[0] if shapes else ()
    if inner is None or any(shape != inner for shape in shapes):
        return None
    return (len(value), *inner)
