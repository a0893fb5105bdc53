"""Nested JSON lists as integer arrays; what is ragged or not a number is found and named."""

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from moesim.traces.errors import blame


def id_array(name: str, place: str, value: object, *, axes: int) -> NDArray[np.int64]:
    """Return an integer array of so many axes, none of them empty.

    Raises:
        TraceError: The lists differ in length or hold something else; names the first bad row.
    """
    try:
        array = np.asarray(value)
    except ValueError:
        _blame_row(name, place, value, axes)
    if array.ndim != axes or array.dtype.kind not in "iu" or 0 in array.shape:
        _blame_row(name, place, value, axes)
    return array.astype(np.int64)


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
