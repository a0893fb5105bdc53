"""How the loops are compiled: once for each machine, and kept beside the sources.

Only a loop's outermost function is kept; what it calls is compiled into it. numba notices when that
function's own file has changed and not when another has, and it announces a file before it writes
it, so that a second process may read the code of an older version meanwhile. So the names of what
is kept carry a *digest* of all code and constants that went into it, as they are in this process:
whoever finds a file of that name finds this code, whoever wrote it and when.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, TypeVar, cast
from zlib import crc32

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., object])

_TABLES = Path(__file__).with_name("tables.py").read_text(encoding="utf-8")
"""What makes code of accesses to tables; nobody calls it."""

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_INNER: dict[str, Any] = {
    **_OPTIONS,
    # No wrappers: nobody calls it from Python.
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    # Nothing is allocated, so no table needs its references counted: that took 6/7 of the time.
    "_nrt": False,
}


def jit(function: Function) -> Function:
    """Return a function to be compiled into those that call it; it may not allocate.

    A call would pass all tables, number by number: half of the time.
    """
    return cast("Function", numba.njit(**_INNER, forceinline=True)(function))


def rare(function: Function) -> Function:
    """Return a function to be called, not compiled into its callers: what seldom happens."""
    return cast("Function", numba.njit(**_INNER)(function))


def entry(*, allocates: bool = True) -> Callable[[Function], Function]:
    """Return what makes an outermost function, compiled at its first call or read from a file.

    Where nothing can be kept, in an installation that may not be written and no home folder beside
    it, it is compiled anew in every process.
    """
    options = {**_OPTIONS, "_nrt": allocates}

    def compiled(function: Function) -> Function:
        parts = "\n".join((_TABLES, *_parts(cast("FunctionType", function), set())))
        function.__qualname__ = f"{function.__name__}.{crc32(parts.encode()):08x}"
        try:
            return cast("Function", numba.njit(cache=True, **options)(function))
        except RuntimeError:  # numba: "no locator available"
            return cast("Function", numba.njit(**options)(function))

    return compiled


def _parts(function: FunctionType, seen: set[FunctionType]) -> Iterator[str]:
    """Yield the code of a function, its constants, and the same of all that it calls."""
    if function in seen:
        return
    seen.add(function)
    code = function.__code__
    constants = [c.co_code if isinstance(c, CodeType) else c for c in code.co_consts]
    yield repr((code.co_code, constants, code.co_varnames, code.co_names))
    for name in code.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, int | float | np.number):
            yield f"{name} = {value!r}"
        elif isinstance(value, np.ndarray):
            yield f"{name} = {value.tolist()}"
        elif isinstance(called := getattr(value, "py_func", None), FunctionType):
            yield from _parts(called, seen)
