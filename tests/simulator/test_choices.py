"""Choices kept as arrays say what the plain lists would say."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moesim.simulator.choices import by_last_touch, choices_by_layer, flat_ids, tokens_of


def recency(touches: Sequence[int]) -> list[int]:
    """Return the distinct experts in order of their last touch."""
    last = {expert: at for at, expert in enumerate(touches)}
    return sorted(last, key=lambda expert: last[expert])


@st.composite
def chosen(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Draw expert ids of tokens and layers, some of them absent, and how many experts there are."""
    tokens, layers, top_k = (draw(st.integers(1, most)) for most in (6, 3, 3))
    experts = draw(st.integers(top_k, 5))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    ids_TLK = np.argsort(rng.random((tokens, layers, experts)), axis=2)[..., :top_k]
    ids_TLK[rng.random((tokens, layers)) < draw(st.sampled_from([0.0, 0.3]))] = -1
    return ids_TLK.astype(np.int16), experts


@given(chosen())
def test_every_layer_says_what_its_list_says(given_ids: tuple[np.ndarray, int]) -> None:
    """Tokens in order of first occurrence, order of last touch, length, items, equality."""
    ids_TLK, experts = given_ids
    found = choices_by_layer(flat_ids(ids_TLK, experts), experts)
    assert len(found) == ids_TLK.shape[1]
    for layer, choices in enumerate(found):
        plain = [
            layer * experts + int(expert)
            for token_K in ids_TLK[:, layer]
            for expert in token_K
            if expert >= 0
        ]
        assert plain == list(choices)
        assert len(plain) == len(choices)
        assert plain == choices
        assert repr(plain) == repr(choices)
        assert plain[1:] == choices[1:]
        assert list(tokens_of(plain).items()) == list(tokens_of(choices).items())
        assert recency(plain) == list(by_last_touch(choices))


@given(st.lists(st.integers(0, 4)))
def test_plain_lists_are_counted_by_hand(plain: list[int]) -> None:
    """Counts and recency of a list are those of its definition."""
    assert tokens_of(plain) == {expert: plain.count(expert) for expert in plain}
    assert recency(plain) == recency(by_last_touch(plain))
