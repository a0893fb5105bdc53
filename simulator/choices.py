"""The choices of many tokens in one layer, kept as arrays until somebody asks for each.

A layer of a step of N tokens has N x K choices, of at most E distinct experts. What decides mostly
needs the distinct ones: in order of first occurrence with their tokens (a demand), or in order of
last touch (recency). Both come from a few array operations over all layers of a step at once; the
choices one by one, in touch order, are made when iterated.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

# N tokens of the step, L MoE layers, E experts of a layer, K chosen, M choices of all layers.


class Choices(Sequence[int]):
    """Experts chosen in one layer, in touch order: by token, then by router rank.

    Attributes:
        tokens: How many tokens each distinct expert serves, in order of first occurrence.
        by_last_touch: The distinct experts, the one touched last at the end.
    """

    __slots__ = ("_ids", "by_last_touch", "tokens")

    def __init__(
        self, ids: NDArray[np.int64], tokens: dict[int, int], by_last_touch: list[int]
    ) -> None:
        self._ids = ids
        self.tokens = tokens
        self.by_last_touch = by_last_touch

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids.tolist())

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> list[int]: ...
    def __getitem__(self, at: int | slice) -> int | list[int]:
        found: int | list[int] = self._ids[at].tolist()
        return found

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Choices):
            return np.array_equal(self._ids, other._ids)
        return isinstance(other, list | tuple) and self._ids.tolist() == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list's

    def __repr__(self) -> str:
        return repr(self._ids.tolist())


def tokens_of(choices: Sequence[int]) -> Mapping[int, int]:
    """Return how many tokens each distinct expert serves, in order of first occurrence.

    >>> tokens_of([7, 3, 7])
    {7: 2, 3: 1}
    """
    if type(choices) is Choices:  # isinstance asks Sequence's metaclass
        return choices.tokens
    tokens = dict.fromkeys(choices, 1)
    if len(tokens) < len(choices):
        tokens = dict.fromkeys(tokens, 0)
        for expert in choices:
            tokens[expert] += 1
    return tokens


def by_last_touch(choices: Sequence[int]) -> Sequence[int]:
    """Return choices that leave the same recency: where they are many, each expert's last alone.

    >>> by_last_touch([7, 3, 7])
    [7, 3, 7]
    """
    if type(choices) is Choices:  # isinstance asks Sequence's metaclass
        return choices.by_last_touch
    return choices


def choices_by_layer(
    chosen_NLK: NDArray[np.int32], experts: int, names: NDArray[np.object_] | None = None
) -> list[Choices]:
    """Return the choices of every layer of a step.

    Args:
        chosen_NLK: Experts as ``layer * E + expert``, tokens in touch order; -1 where a token's
            choices of a layer are absent.
        experts: E.
        names: The int object to use for each expert, by number; new ones if left out. Keys that
            are one object are found in half the time of keys that are equal.
    """
    tokens, layers, top_k = chosen_NLK.shape
    # Layer by layer, each in touch order; wide integers index faster than they are widened.
    ids_M = chosen_NLK.transpose(1, 0, 2).reshape(-1).astype(np.int64)
    ends_L = np.arange(1, layers + 1) * (tokens * top_k)
    if ids_M.size and int(ids_M.min()) < 0:
        here_M = ids_M >= 0
        ends_L = np.cumsum(here_M.reshape(layers, -1).sum(axis=1))
        ids_M = ids_M[here_M]
    size = layers * experts
    counts = np.bincount(ids_M, minlength=size)
    places = np.arange(len(ids_M))
    first, last = np.empty(size, np.int64), np.empty(size, np.int64)
    first[ids_M[::-1].copy()] = places[::-1].copy()  # of equal indices the last assigned counts
    last[ids_M] = places
    is_there = counts > 0
    bounds: list[int] = np.cumsum(is_there.reshape(layers, -1).sum(axis=1)).tolist()
    by_first, by_last = (_at(place[is_there], ids_M) for place in (first, last))
    served: list[int] = counts[by_first].tolist()
    firsts: list[int]
    lasts: list[int]
    firsts, lasts = (
        (order if names is None else names[order]).tolist() for order in (by_first, by_last)
    )
    found, begin, first_distinct = [], 0, 0
    for end, last_distinct in zip(ends_L.tolist(), bounds, strict=True):
        mine = slice(first_distinct, last_distinct)
        tokens_by_expert = dict(zip(firsts[mine], served[mine], strict=True))
        found.append(Choices(ids_M[begin:end], tokens_by_expert, lasts[mine]))
        begin, first_distinct = end, last_distinct
    return found


def _at(places: NDArray[np.int64], ids_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ids at some places, in the order of these; faster than to sort the places."""
    is_taken_M = np.zeros(len(ids_M), np.bool_)
    is_taken_M[places] = True
    return ids_M[is_taken_M]


def flat_ids(expert_TLK: NDArray[Any], experts: int) -> NDArray[np.int32]:
    """Return experts of layers as ``layer * E + expert``; -1 stays -1."""
    layers = expert_TLK.shape[1]
    offsets_L1 = (np.arange(layers, dtype=np.int32) * experts)[:, None]
    chosen_TLK = expert_TLK.astype(np.int32)
    absent_TLK = chosen_TLK < 0
    chosen_TLK += offsets_L1
    if absent_TLK.any():
        chosen_TLK[absent_TLK] = -1
    return chosen_TLK
