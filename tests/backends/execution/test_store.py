"""The store: one blob per expert, every byte of the model's weights, none left in the model."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the store holds tensors")

from moesim.backends.blob_layouts import ALIGNMENT_BYTES  # noqa: E402
from moesim.backends.models import ModelError  # noqa: E402 - after the skip
from moesim.backends.store import ExpertStore  # noqa: E402


@pytest.mark.parametrize("family", ["Mixtral", "DeepseekV2", "GptOss"])
def test_blobs_hold_the_models_weights(make_model: Callable[[str], Any], family: str) -> None:
    """Every matrix of every expert is in its blob as the model had it, and in the model no more."""
    expected = {
        name: weights.detach().clone()
        for name, weights in make_model(family).named_parameters()
        if ".experts." in name
    }
    model = make_model(family)

    store = ExpertStore.take_from(model)

    assert [name for name, _ in model.named_parameters() if ".experts." in name] == []
    experts = store.parts.experts
    seen = 0
    for number, layer in enumerate(store.parts.layers):
        for name, fused in expected.items():
            if f"layers.{layer.layer_id}." not in name:
                continue
            for index in range(experts):
                matrices = store.matrices(number * experts + index)
                assert torch.equal(fused[index], matrices[name.rpartition(".")[2]])
                seen += 1
    assert seen == experts * len(expected)


def test_matrices_and_blobs_are_aligned(offloaded: Callable[[str], Any]) -> None:
    """Matrices begin at multiples of the alignment, and so do blobs, whatever the biases' sizes."""
    store = offloaded("GptOss").store
    for layout in store.layouts:
        assert layout.blob_bytes % ALIGNMENT_BYTES == 0
        assert all(matrix.begin_bytes % ALIGNMENT_BYTES == 0 for matrix in layout.matrices)
        ends = [matrix.end_bytes for matrix in layout.matrices]
        begins = [matrix.begin_bytes for matrix in layout.matrices[1:]]
        assert all(end <= begin for end, begin in zip(ends, begins, strict=False))
        assert ends[-1] <= layout.blob_bytes


def test_views_read_any_offset_of_an_arena(offloaded: Callable[[str], Any]) -> None:
    """A blob copied to an offset gives the same matrices there."""
    store = offloaded("Olmoe").store
    layout = store.layouts[1]
    arena_B = torch.zeros(3 * layout.blob_bytes, dtype=torch.uint8)
    expert = store.parts.experts + 5
    arena_B[layout.blob_bytes : 2 * layout.blob_bytes] = store.blob(expert)

    views = layout.views(arena_B, layout.blob_bytes)

    assert views.keys() == store.matrices(expert).keys()
    assert all(torch.equal(store.matrices(expert)[name], views[name]) for name in views)


def test_taking_twice_is_refused(offloaded: Callable[[str], Any]) -> None:
    """A model whose experts were taken has none to take, which is said."""
    with pytest.raises(ModelError, match="found none"):
        ExpertStore.take_from(offloaded("Mixtral").model)


def test_experts_with_more_than_gate_up_down_are_refused(make_model: Callable[[str], Any]) -> None:
    """An experts module that normalises its results is refused by its class."""
    model = make_model("Mixtral")
    model.model.layers[1].mlp.experts.has_post_expert_norm = True
    with pytest.raises(ModelError, match=r"MixtralExperts: .* offloading knows no other"):
        ExpertStore.take_from(model)
