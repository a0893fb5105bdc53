"""Shapes as models: true dimensions, made-up weights, experts that take no memory of the device."""

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="it builds a model")

import transformers  # noqa: E402 - after the skip

from moesim.backends.models import ModelError  # noqa: E402
from moesim.backends.opening import open_model  # noqa: E402
from moesim.backends.shapes import config_of  # noqa: E402
from moesim.backends.sources import Source, cut  # noqa: E402
from moesim.simulator import models  # noqa: E402
from moesim.simulator.errors import InputError  # noqa: E402

EXPERT_BYTES = 3 * 64 * 32 * 4


@pytest.fixture
def tiny(write_shape: Callable[..., Path]) -> str:
    """Return the file of a Qwen3-MoE of four small layers."""
    return str(write_shape(decoder_layers=4))


@pytest.mark.parametrize("name", models.names())
def test_a_model_of_a_shape_has_its_parameters(name: str) -> None:
    """A model built from the configuration has exactly what the formula counts."""
    shape = models.load(name)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config_of(shape))
    assert shape.parameters == sum(weights.numel() for weights in model.parameters())


def test_an_unknown_family_is_refused(write_shape: Callable[..., Path]) -> None:
    """The line names the hub id and the families that are known."""
    path = write_shape(hf_id="nobody/Strange-MoE")
    with pytest.raises(ModelError, match="no family is known for hf_id nobody/Strange-MoE"):
        config_of(models.load(path))


def test_only_what_is_no_expert_is_made(tiny: str) -> None:
    """Experts are in the store, the rest has ordinary numbers, and positions are rotated."""
    opened = open_model(Source(tiny, "random"), torch.device("cpu"))
    model = opened.checkpoint.model
    assert opened.store.sizes_L == (EXPERT_BYTES,) * 4
    assert opened.store.held_bytes == opened.store.total_bytes == 4 * 8 * EXPERT_BYTES
    assert not any("experts" in name for name, _ in model.named_parameters())
    assert {"cpu"} == {weights.device.type for weights in model.parameters()}
    assert all(weights.isfinite().all() for weights in model.state_dict().values())
    assert pytest.approx(0.02, rel=0.2) == float(model.lm_head.weight.detach().std())
    assert float(model.model.rotary_emb.inv_freq[0]) == 1.0
    assert opened.kv_bytes_per_token == 4 * 2 * 2 * 16 * 4
    numbers = opened.store.matrices(9)["down_proj"]
    assert pytest.approx(0.02, rel=0.2) == float(numbers.std())


def test_layers_may_share_host_memory(tiny: str) -> None:
    """A pool of two and a half layers holds two; the layers take turns, experts keep their size."""
    layer_bytes = 8 * EXPERT_BYTES
    source = Source(tiny, "random", pinned_pool=f"{layer_bytes * 5 // 2}B")
    store = open_model(source, torch.device("cpu")).store
    assert store.held_bytes == 2 * layer_bytes
    assert store.total_bytes == 4 * layer_bytes
    assert store.blob(0).data_ptr() == store.blob(16).data_ptr() != store.blob(8).data_ptr()


def test_a_shape_can_be_cut_to_its_first_layers() -> None:
    """The name says so; dense layers before a kept one stay, and more than all is refused."""
    shape = cut(models.load("deepseek-v2-lite"), 2)
    assert (shape.name, shape.decoder_layers) == ("deepseek-v2-lite-2-layers", 3)
    assert shape.moe_layers == (1, 2)
    assert cut(models.load("gpt-oss-20b"), 3).attention.windowed_layers == (0, 2)
    with pytest.raises(InputError, match="--layers 17: olmoe has 16 MoE layers"):
        cut(models.load("olmoe"), 17)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (Source("olmoe"), "olmoe: is a shape and has no weights; add --weights random"),
        (Source("olmoe", "randm"), "no kind of weights 'randm'; did you mean 'random'?"),
        (
            Source("folder", layers=2),
            "--layers, --pinned-pool and --format go with --weights random",
        ),
        (Source("olmoe", "random", pinned_pool="lots"), "--pinned-pool lots: give a size"),
    ],
)
def test_what_contradicts_itself_is_one_line(source: Source, line: str) -> None:
    """It is refused before anything is loaded."""
    with pytest.raises(InputError) as told:
        source.check()
    assert line in str(told.value)
    assert "\n" not in str(told.value)
