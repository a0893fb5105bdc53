"""Compressed numpy archives, written so that equal arrays give equal bytes, read without pickle."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.errors import TraceError

Array = NDArray[Any]

NPZ_START = b"PK\x03\x04"
# What zipfile, zlib and numpy's header parser raise on bytes that are not what they should be.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write as numpy's own savez_compressed does, members in the order given."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read_npz(path: Path) -> dict[str, Array]:
    """Read every array into memory.

    Raises:
        TraceError: The file is cut off, damaged, or holds Python objects.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except DAMAGE as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> TraceError:
    """Return the line for a file that its library could not read."""
    reason = str(error).partition("\n")[0]
    return TraceError(f"{path}: damaged or cut off ({reason}); copy or record it again")
