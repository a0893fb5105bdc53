"""A store changes its layout between runs, and every expert keeps its values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moesim.backends.relaying import Relaying
from moesim.backends.store import ExpertStore
from moesim.simulator.errors import CapabilityError


def gates(store: ExpertStore, expert: int) -> torch.Tensor:
    """Return an expert's gate matrix as kernels read it, whatever the layout."""
    if store.by_row:
        layout: Any = store.layouts[expert // store.parts.experts]
        return layout.rows.unpack(store.blob(expert))[0]
    return store.matrices(expert)["gate_up_proj"].chunk(2)[0]


@pytest.mark.parametrize("room", [0, 10**12])
def test_experts_keep_their_values(make_model: Callable[[str], Any], room: int) -> None:
    """There and back again every blob has the bytes it had, with and without a second store."""
    store = ExpertStore.take_from(make_model("Mixtral"))
    relaying = Relaying(store, lambda _store: room)
    before = [store.blob(expert).clone() for expert in range(2 * store.parts.experts)]
    values = [gates(store, expert).clone() for expert in range(2 * store.parts.experts)]

    relaying.lay(by_row=True)

    assert store.by_row
    assert all(torch.equal(value, gates(store, n)) for n, value in enumerate(values))
    relaying.lay(by_row=False)
    assert all(torch.equal(blob, store.blob(n)) for n, blob in enumerate(before))


def test_two_stores_are_kept_where_memory_does(make_model: Callable[[str], Any]) -> None:
    """With room for both layouts each is made once, and changing back is free; without, neither."""
    wide = ExpertStore.take_from(make_model("Mixtral"))
    both = Relaying(wide, lambda _store: 10**12)
    first = wide.layers_EB[0]
    assert both.is_free()
    both.lay(by_row=True)
    second = wide.layers_EB[0]
    both.lay(by_row=False)
    assert wide.layers_EB[0] is first
    both.lay(by_row=True)
    assert wide.layers_EB[0] is second

    narrow = ExpertStore.take_from(make_model("Mixtral"))
    one = Relaying(narrow, lambda _store: 0)
    first = narrow.layers_EB[0]
    assert not one.is_free()
    one.lay(by_row=True)
    one.lay(by_row=False)
    assert narrow.layers_EB[0] is not first


def test_unsplittable_experts_stay_as_they_are(make_model: Callable[[str], Any]) -> None:
    """A model whose experts cannot be split refuses the layout by row and still runs whole."""
    store = ExpertStore.take_from(make_model("GptOss"))
    relaying = Relaying(store, lambda _store: 0)
    assert relaying.is_free()
    with pytest.raises(CapabilityError, match="cannot be split"):
        relaying.lay(by_row=True)
    assert not store.by_row
