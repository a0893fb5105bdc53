"""VRAM as one budget: experts, KV caches of all requests, activations, dense weights."""

import pytest

from moesim.hardware_profiles import load as load_hardware
from moesim.hardware_profiles import load_runtime
from moesim.simulator import models
from moesim.simulator.capacity import largest_batch, longest_prompt
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import BudgetError, OutOfMemoryError
from moesim.simulator.memory import MemorySpec, Server, activation_bytes, plan
from moesim.simulator.models.cost_shape import CostShape
from moesim.simulator.serving.kv import KvRoom, KvShape

GIB = 2**30


def shape_of(name: str) -> CostShape:
    """Return a shipped model in its usual format."""
    return models.load(name).cost_shape(None)


def costs_of(name: str, hardware: str = "rtx4090", weights: str | None = "int4") -> CostModel:
    """Return what a shipped model costs on a machine."""
    shape = models.load(name).cost_shape(weights)
    return CostModel(load_hardware(hardware), load_runtime("moesim-graph"), shape)


@pytest.mark.parametrize(
    ("model", "token_bytes"),
    [
        # 48 layers x (4 KV heads x 128) x keys and values x 2 bytes
        ("qwen3-30b-a3b", 48 * 4 * 128 * 2 * 2),
        # 32 layers x (8 x 128) x 2 x 2
        ("mixtral-8x7b", 32 * 8 * 128 * 2 * 2),
        # 27 layers, the dense first among them, x (rank 512 + rotary 64) x 2 bytes: MLA
        ("deepseek-v2-lite", 27 * (512 + 64) * 2),
    ],
)
def test_a_position_takes_what_the_shape_says(model: str, token_bytes: int) -> None:
    """Grouped-query and latent attention, over all decoder layers."""
    shape = KvShape.of(shape_of(model))
    assert shape.size_bytes(1) == token_bytes
    assert shape.size_bytes(1000) == 1000 * token_bytes


def test_layers_with_a_window_keep_the_window() -> None:
    """gpt-oss grows in half of its layers once the window of 128 is full."""
    shape = KvShape.of(shape_of("gpt-oss-20b"))
    assert shape.window_tokens == 128
    assert shape.size_bytes(129) - shape.size_bytes(128) == shape.token_bytes
    assert shape.size_bytes(2) == 2 * (shape.token_bytes + shape.windowed_token_bytes)


def test_what_a_request_reserves() -> None:
    """Its whole length but the last token, which is never fed back; or its prompt."""
    shape = KvShape(10, 0, None)
    assert KvRoom(shape, 999).reserved_bytes(7, 5) == 110
    assert KvRoom(shape, 999, "prompt").reserved_bytes(7, 5) == 70


def test_the_parts_add_up_to_what_there_is() -> None:
    """Without a figure for experts they get what KV caches, activations and dense weights leave."""
    costs = costs_of("mixtral-8x7b")
    divided = plan(MemorySpec(), costs, 4096, Server(8 * GIB, 544))
    assert divided.kv_bytes == 8 * GIB
    extra = activation_bytes(costs.shape, 544)
    assert divided.workspace_bytes == costs.workspace_bytes + extra
    assert extra == 544 * (2 + 4) * 4096 * 2
    assert divided.used_bytes == divided.total_bytes


def test_given_experts_leave_the_rest_for_kv_caches() -> None:
    """A room for experts that was asked for is kept; KV caches get the rest, or what they need."""
    costs = costs_of("mixtral-8x7b")
    much = plan(MemorySpec(slots="50%"), costs, 4096, Server(80 * GIB, 544))
    assert 0 < much.kv_bytes < 80 * GIB
    assert much.used_bytes == much.total_bytes
    little = plan(MemorySpec(slots="50%"), costs, 4096, Server(GIB, 544))
    assert little.kv_bytes == GIB
    assert little.expert_bytes == much.expert_bytes


def test_too_much_for_kv_caches_is_told() -> None:
    """Neither experts nor KV caches are clamped where both were given."""
    costs = costs_of("mixtral-8x7b")
    with pytest.raises(OutOfMemoryError, match="KV cache 20GiB"):
        plan(MemorySpec(slots="50%", kv="20GiB"), costs, 4096, Server(GIB, 544))
    with pytest.raises(BudgetError, match="hold no experts"):
        plan(MemorySpec(kv="40GiB"), costs, 4096, Server(GIB, 544))


@pytest.mark.parametrize("spec", [MemorySpec(), MemorySpec(slots="25%"), MemorySpec(vram="16GiB")])
@pytest.mark.parametrize("chunk", [None, 512])
def test_one_token_more_does_not_fit(spec: MemorySpec, chunk: int | None) -> None:
    """The longest prompt fits and one token more does not; the same of the largest batch."""
    costs = costs_of("qwen3-30b-a3b")
    kv = KvShape.of(costs.shape)

    def fits(context: int, batch: int) -> bool:
        step_tokens = min(context, chunk or context) + batch - 1
        wanted = batch * kv.size_bytes(context)
        try:
            divided = plan(spec, costs, context, Server(wanted, step_tokens))
        except (BudgetError, OutOfMemoryError):
            return False
        least = costs.shape.top_k * costs.shape.layers[0].expert_bytes
        return divided.kv_bytes >= wanted and divided.expert_bytes >= least

    prompt, divided = longest_prompt(spec, costs, batch=2, chunk=chunk)
    assert divided is not None
    assert divided.used_bytes <= divided.total_bytes
    assert (fits(prompt, 2), fits(prompt + 1, 2)) == (True, False)
    batch, _ = largest_batch(spec, costs, context_tokens=4096, chunk=chunk)
    assert (fits(4096, batch), fits(4096, batch + 1)) == (True, False)


def test_where_not_one_token_fits_nothing_does() -> None:
    """All experts of Mixtral in bf16 leave no room on a small GPU."""
    costs = costs_of("mixtral-8x7b", weights="bf16")
    assert longest_prompt(MemorySpec(slots="100%"), costs) == (0, None)
