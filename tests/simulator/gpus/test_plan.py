"""VRAM of several GPUs: what each keeps, and how room for experts is shared out."""

import pytest

from moesim.simulator.costs import CostModel
from moesim.simulator.errors import OutOfMemoryError
from moesim.simulator.gpus.plan import plan_gpus
from moesim.simulator.memory import MemorySpec, Server, plan

MB = 10**6
GIB = 2**30


def costs(vram_bytes: int = 2 * GIB) -> CostModel:
    """Return a model of 4 layers x 4 experts of 1 MB, 0.5 MB dense each and a head of 1 MB."""
    return CostModel.for_tests(layers=4, machine={"vram_bytes": vram_bytes, "gpus": 4})


def test_dense_weights_are_on_the_first_gpu() -> None:
    """Of spread experts the first GPU keeps layers and head, and all keep the workspace."""
    plan, memory = plan_gpus(2, "round_robin", MemorySpec(), costs(), 1)
    assert [fixed.dense_bytes for fixed in plan.fixed_G] == [3 * MB, 0]
    assert [fixed.workspace_bytes for fixed in plan.fixed_G] == [GIB, GIB]
    assert plan.rooms_G == (8 * MB, 8 * MB)
    assert memory.expert_bytes == 16 * MB
    assert memory.dense_bytes == 3 * MB


def test_whole_layers_take_their_dense_weights_along() -> None:
    """Two layers on each GPU, and the head on the last."""
    plan, _ = plan_gpus(2, "by_layer", MemorySpec(), costs(), 1)
    assert plan.router_L == (0, 0, 1, 1)
    assert [fixed.dense_bytes for fixed in plan.fixed_G] == [1 * MB, 2 * MB]


def test_vram_is_what_each_gpu_gives() -> None:
    """With 5 MB beside the workspace the first has 2 MB for experts and the second all 5."""
    plan, _ = plan_gpus(2, "round_robin", MemorySpec(vram=f"{GIB + 5 * MB}B"), costs(), 1)
    assert plan.rooms_G == (2 * MB, 5 * MB)


def test_slots_are_shared_out_evenly_as_far_as_there_is_room() -> None:
    """Seven slots on two GPUs are 4 and 3; where the first has room for one, 1 and 6."""
    plan, _ = plan_gpus(2, "round_robin", MemorySpec(slots="7"), costs(), 1)
    assert plan.rooms_G == (4 * MB, 3 * MB)
    tight = costs(GIB + 6 * MB)
    plan, _ = plan_gpus(2, "round_robin", MemorySpec(slots="9"), tight, 1)
    assert plan.rooms_G == (3 * MB, 6 * MB)
    with pytest.raises(OutOfMemoryError, match="2 GPUs have room"):
        plan_gpus(2, "round_robin", MemorySpec(slots="10"), tight, 1)


def test_ram_that_cannot_hold_all_experts_is_refused() -> None:
    """What is copied from RAM must lie there: NVMe below it is simulated for one GPU alone."""
    spec = MemorySpec(slots="8", ram=f"{5 * MB}B")
    with pytest.raises(OutOfMemoryError, match="RAM of round .* NVMe is simulated for one GPU"):
        plan_gpus(2, "round_robin", spec, costs(), 1)


SERVER = Server(kv_bytes=6 * MB, step_tokens=0)


def test_kv_caches_get_what_experts_leave_them_as_on_one_gpu() -> None:
    """Of 6 MB that requests would take, 3 beside 8 of experts; one GPU has the same rule."""
    one = costs(GIB + 14 * MB)
    alone = plan(MemorySpec(slots="8"), one, 1, SERVER)
    assert (alone.kv_bytes, alone.expert_bytes) == (3 * MB, 8 * MB)
    two = costs(GIB + 10 * MB)  # 3 MB of dense weights on the first, and the second has 4 MB of 8
    spread, memory = plan_gpus(2, "round_robin", MemorySpec(slots="9"), two, 1, SERVER)
    assert memory.kv_bytes == 6 * MB
    assert spread.rooms_G == (1 * MB, 8 * MB)
    spread, memory = plan_gpus(2, "round_robin", MemorySpec(slots="12"), two, 1, SERVER)
    assert memory.kv_bytes == 3 * MB
    assert [fixed.kv_bytes for fixed in spread.fixed_G] == [3 * MB, 0]
    assert spread.rooms_G == (4 * MB, 8 * MB)


def test_kv_caches_of_placed_layers_shrink_alike() -> None:
    """Two GPUs have 6 and 5 MB beside their layers: 9 of experts leave each 1 MB of KV caches."""
    tight = costs(GIB + 7 * MB)
    spread, memory = plan_gpus(2, "by_layer", MemorySpec(slots="9"), tight, 1, SERVER)
    assert [fixed.dense_bytes for fixed in spread.fixed_G] == [1 * MB, 2 * MB]
    assert memory.kv_bytes == 2 * MB
    assert [fixed.kv_bytes for fixed in spread.fixed_G] == [1 * MB, 1 * MB]
    assert spread.rooms_G == (5 * MB, 4 * MB)


def test_kv_caches_that_were_given_room_keep_it() -> None:
    """What ``--kv`` says is not shrunk: what does not fit beside it is refused."""
    with pytest.raises(OutOfMemoryError, match="give fewer slots, or KV caches less room"):
        plan_gpus(
            2, "round_robin", MemorySpec(slots="12", kv="6MB"), costs(GIB + 10 * MB), 1, SERVER
        )
