"""Compiled loops are kept where that can be, and compiled anew where it cannot."""

from collections.abc import Callable

import pytest

caching = pytest.importorskip("numba.core.caching")


def _make(digest: int) -> Callable[[int], int]:
    def add(number: int) -> int:
        return number + 1 + digest * 0

    return add


def test_an_installation_that_cannot_be_written_still_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where numba finds no place to keep a function, the function works all the same."""
    from moesim.simulator.compiled.jit import entry  # noqa: PLC0415  after importorskip

    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    assert entry(_make)(1) == 2


def test_what_is_kept_depends_on_all_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another digest of the sources is another function to numba's cache."""
    from moesim.simulator.compiled import jit  # noqa: PLC0415  after importorskip

    keys = []
    for digest in (1, 2):
        monkeypatch.setattr(jit, "_digest", lambda digest=digest: digest)
        function = jit.entry(_make)
        keys.append([cell.cell_contents for cell in function.py_func.__closure__])
    assert keys == [[1], [2]]
