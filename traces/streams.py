"""Arrays to a file, block by block: what a trace is written with when it is larger than memory.

A column knows its type and shape beforehand and yields its rows in order. Equal columns give equal
bytes, however they are cut into blocks.
"""

import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SAFETENSORS_NAMES = {
    "bool": "BOOL", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "uint8": "U8", "uint16": "U16", "uint32": "U32", "float16": "F16", "float32": "F32",
}  # fmt: skip
HEADER_ALIGNMENT_BYTES = 8


@dataclass(frozen=True)
class Column:
    """An array that need not be in memory.

    Attributes:
        dtype: Of every block.
        shape: Of the whole.
        blocks: Called once for each writing; the blocks follow each other along the first axis.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Array]]

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def raw(self) -> Iterable[memoryview]:
        """Yield the bytes of each block, little-endian and in C order."""
        little = self.dtype.newbyteorder("<")
        for block in self.blocks():
            if block.size:
                yield np.ascontiguousarray(block, dtype=little).reshape(-1).view(np.uint8).data


def whole(array: Array) -> Column:
    """Return the column of an array that is in memory or mapped."""
    return Column(array.dtype, array.shape, lambda: (array,))


def stream_safetensors(
    path: Path, columns: Mapping[str, Column], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file: the widest types first, so that every array is aligned."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    order = sorted(columns, key=lambda name: (-columns[name].dtype.itemsize, name))
    end = 0
    for name in order:
        start, end = end, end + columns[name].size_bytes
        header[name] = {
            "dtype": SAFETENSORS_NAMES[columns[name].dtype.name],
            "shape": list(columns[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            for raw in columns[name].raw():
                file.write(raw)


def stream_npz(path: Path, columns: Mapping[str, Column]) -> None:
    """Write what numpy's own savez_compressed would write, members in the order given."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, column in columns.items():
            descr = np.lib.format.dtype_to_descr(column.dtype.newbyteorder("<"))
            about = {"descr": descr, "fortran_order": False, "shape": column.shape}
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, about)
                for raw in column.raw():
                    member.write(raw)
