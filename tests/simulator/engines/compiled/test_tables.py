"""Tables are their arrays: what is read and written through one is there."""

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from moesim.simulator.engines.compiled.tables import lesser, lowest_bit, table  # noqa: E402  it needs numba

COLUMNS = 3
SECOND = 1


@numba.njit(_nrt=False)
def _turn(array, flat, wide):
    rows, numbers, other = table(array, "a", COLUMNS), table(flat, "b", 0), table(wide, "c", 0)
    for at in range(len(rows)):
        rows[at, SECOND] += numbers[0]
        numbers[0] = rows[at, 2]
        other[SECOND, at] = numbers[0]
    return len(numbers)


def test_a_table_reads_and_writes_its_array() -> None:
    """By rows of known width, flat, and by rows whose width only the array knows."""
    array, flat = np.arange(12).reshape(4, 3), np.array([7, 8])
    wide = np.zeros((2, 5), np.int32)
    assert _turn(array, flat, wide) == 2
    assert array[:, SECOND].tolist() == [1 + 7, 4 + 2, 7 + 5, 10 + 8]
    assert flat.tolist() == [11, 8]
    assert wide.tolist() == [[0, 0, 0, 0, 0], [2, 5, 8, 11, 0]]


@numba.njit
def _bit(bits):
    return lowest_bit(bits)


@pytest.mark.parametrize("bit", [0, 1, 31, 32, 62, 63])
def test_the_lowest_bit_of_a_word_is_found(bit: int) -> None:
    """Whatever stands above it, the sign among them."""
    word = np.int64(np.uint64(1 << bit | 1 << 63).view(np.int64))
    assert _bit(word) == bit


@numba.njit
def _least(scores):
    least = np.inf
    for at in range(len(scores)):
        least = lesser(least, scores[at])
    return least


@pytest.mark.parametrize("length", [0, 1, 7, 64, 129])
def test_the_least_of_many_is_theirs(length: int) -> None:
    """Whatever their number, infinities among them."""
    scores = np.random.default_rng(length).normal(size=length)
    scores[::3] = np.inf
    assert _least(scores) == min(scores, default=np.inf)
