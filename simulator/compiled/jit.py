"""How the loops are compiled: once for each machine, and kept beside the sources.

Only a loop's outermost function is kept; what it calls is compiled into it. numba notices when
that function's own file has changed and not when another has. So the outermost functions are made
by functions of a *digest* of all sources, which numba counts as part of what it keeps.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast
from zlib import crc32

import numba

Function = TypeVar("Function", bound=Callable[..., object])

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_INNER: dict[str, Any] = {
    **_OPTIONS,
    # No wrappers: nobody calls it from Python.
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    # A call would pass all tables, number by number: half of the time.
    "forceinline": True,
    # Nothing is allocated, so no table needs its references counted: that took 6/7 of the time.
    "_nrt": False,
}


def jit(function: Function) -> Function:
    """Return a function to be compiled into those that call it; it may not allocate."""
    return cast("Function", numba.njit(**_INNER)(function))


def entry(make: Callable[[int], Function], *, allocates: bool = True) -> Function:
    """Return an outermost function, compiled at its first call or read from where it is kept.

    Where nothing can be kept, in an installation that may not be written and no home folder beside
    it, it is compiled anew in every process.
    """
    function = make(_digest())
    options = {**_OPTIONS, "_nrt": allocates}
    try:
        return cast("Function", numba.njit(cache=True, **options)(function))
    except RuntimeError:  # numba: "no locator available"
        return cast("Function", numba.njit(**options)(function))


@cache
def _digest() -> int:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return crc32(b"\0".join(path.read_bytes() for path in sources))
