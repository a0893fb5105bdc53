"""An array that lies in pieces, as much of numpy's manner as a trace's readers use.

Rows are asked for by slice, number or list and come as numpy arrays: a view where they lie in one
piece, a copy where they don't. The whole is made only where somebody asks for it by name, with
`numpy.asarray`; sums and extremes go piece by piece.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

# T rows of the whole.
Array = NDArray[Any]


class Chained:
    """Pieces of one array, opened when their rows are asked for.

    Args:
        dtype: Of all pieces.
        row_shape: Shape of one row.
        lengths: Rows of each piece.
        piece: Opens a piece by its number.
        maximum: The largest value, where it is known beforehand.
    """

    def __init__(
        self,
        dtype: np.dtype[Any],
        row_shape: Sequence[int],
        lengths: Sequence[int],
        piece: Callable[[int], Array],
        *,
        maximum: int | None = None,
    ) -> None:
        self.dtype = dtype
        self._starts = [0, *accumulate(lengths)]
        self._piece = piece
        self._maximum = maximum
        self.shape = (self._starts[-1], *row_shape)
        self.ndim = len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return self.size * self.dtype.itemsize

    def pieces(self) -> Iterator[Array]:
        """Yield the pieces in order; one is open at a time."""
        for number in range(len(self._starts) - 1):
            yield self._piece(number)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401  as numpy's
        if isinstance(key, tuple):
            rows, rest = key[0], key[1:]
            if isinstance(rows, slice):
                return self[rows][(slice(None), *rest)]
            return self[rows][rest]
        if isinstance(key, slice):
            return self._slice(key)
        if isinstance(key, int | np.integer):
            row = range(len(self))[int(key)]
            number = bisect_right(self._starts, row) - 1
            return self._piece(number)[row - self._starts[number]]
        return self._gather(np.asarray(key))

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> Array:
        """Return the whole in memory.

        Raises:
            ValueError: As numpy's, if it must not be a copy.
        """
        if copy is False:
            raise ValueError("a chained array becomes one only as a copy")
        whole = np.empty(self.shape, self.dtype if dtype is None else dtype)
        for start, piece in zip(self._starts, self.pieces(), strict=False):
            whole[start : start + len(piece)] = piece
        return whole

    def any(self) -> np.bool_:
        """Return whether any value is true."""
        return np.bool_(any(piece.any() for piece in self.pieces()))

    def all(self) -> np.bool_:
        """Return whether every value is true."""
        return np.bool_(all(piece.all() for piece in self.pieces()))

    def sum(self) -> int:
        """Return the sum of all values, which are integers or truth values."""
        return sum(int(piece.sum()) for piece in self.pieces())

    def max(self) -> int:
        """Return the largest value, an integer."""
        if self._maximum is None:
            self._maximum = max(int(piece.max()) for piece in self.pieces())
        return self._maximum

    def _slice(self, key: slice) -> Array:
        start, stop, step = key.indices(len(self))
        if step != 1:
            return self._gather(np.arange(start, stop, step))
        stop = max(start, stop)
        first = bisect_right(self._starts, start) - 1 if start < len(self) else 0
        if start == stop:
            return np.empty((0, *self.shape[1:]), self.dtype)
        parts = []
        for number in range(first, len(self._starts) - 1):
            begin, end = self._starts[number], self._starts[number + 1]
            if begin >= stop:
                break
            parts.append(self._piece(number)[max(0, start - begin) : min(stop, end) - begin])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _gather(self, key: Array) -> Array:
        rows = np.flatnonzero(key) if key.dtype == np.bool_ else key
        number_N = np.searchsorted(self._starts, rows, side="right") - 1
        taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for number in np.unique(number_N).tolist():
            is_here = number_N == number
            taken[is_here] = self._piece(number)[rows[is_here] - self._starts[number]]
        return taken


class RequestNumbers(Chained):
    """``request_T`` of chained requests: sorted, so where each begins is known.

    Args:
        starts: Where each request's rows begin, and T at the end: [R + 1].
        lengths: Rows of each piece.
        piece: Opens a piece by its number; its requests are numbered in the whole.
    """

    def __init__(
        self, starts: NDArray[np.int64], lengths: Sequence[int], piece: Callable[[int], Array]
    ) -> None:
        super().__init__(np.dtype(np.int32), (), lengths, piece)
        self._request_starts = starts

    def searchsorted(self, v: Array, side: str = "left", sorter: None = None) -> NDArray[np.int64]:
        """Return the first row of each request asked for, as `numpy.searchsorted` does.

        Raises:
            ValueError: Another side or order is asked for.
        """
        if side != "left" or sorter is not None:
            raise ValueError("request numbers are searched from the left")
        found: NDArray[np.int64] = self._request_starts[np.asarray(v)]
        return found
