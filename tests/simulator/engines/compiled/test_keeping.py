"""Compiled loops are kept where that can be, and compiled anew where it cannot."""

from types import FunctionType

import numpy as np
import pytest

caching = pytest.importorskip("numba.core.caching")

STEP = 1
TABLE = np.arange(3)


def _add(number: int) -> int:
    return number + STEP + TABLE[0]


def _add_again(number: int) -> int:
    return _add(number) + STEP


def _copied(function: FunctionType, **constants: object) -> FunctionType:
    """Return the function as if its module had other constants."""
    return FunctionType(function.__code__, {**function.__globals__, **constants}, "copied")


def test_an_installation_that_cannot_be_written_still_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where numba finds no place to keep a function, the function works all the same."""
    from moesim.simulator.engines.compiled.jit import entry  # noqa: PLC0415  after importorskip

    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    assert entry()(_copied(_add))(1) == 2


def test_what_is_kept_is_named_by_all_that_went_into_it() -> None:
    """Another constant, or another one of a function that it calls, gives another file."""
    from moesim.simulator.engines.compiled.jit import entry, jit  # noqa: PLC0415  after importorskip

    def name(**constants: object) -> str:
        called = jit(_copied(_add, **constants))
        return str(entry()(_copied(_add_again, _add=called)).py_func.__qualname__)

    assert name() == name()
    assert len({name(), name(STEP=2), name(TABLE=np.arange(1, 4))}) == 3
