"""Experts live and run on two GPUs, in eager mode, and the model says what it says on one.

Run them on a machine with two GPUs: ``pytest -m gpu tests/backends/drivers/test_cuda_gpus.py``.
"""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="drivers move tensors")
pytest.importorskip("transformers", reason="they are models of transformers")

from moesim.backends.controllers import Deciding  # noqa: E402 - after the skip
from moesim.backends.drivers.cuda.driver import CudaDriver  # noqa: E402
from moesim.backends.drivers.cuda.gpus_driver import GpusCudaDriver, check_gpus  # noqa: E402
from moesim.backends.drivers.cuda.graph_driver import GraphDriver  # noqa: E402
from moesim.backends.execution import Keep, execute  # noqa: E402
from moesim.backends.generation import Request, Sampling  # noqa: E402
from moesim.backends.store import ExpertStore  # noqa: E402
from moesim.backends.testing import first_difference  # noqa: E402
from moesim.simulator.errors import CapabilityError, UnavailableError  # noqa: E402
from moesim.simulator.messages import Copy, Run  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs"),
]

PROMPTS = ((5, 9, 200, 17, 33, 4), (7, 8, 9, 10))
NEW_TOKENS = 12
AXES = ("cache", "prefetch", "schedule")
LRU = "lru none resident_first"
SLOTS = 12


def run(model: Any, store: Any, policies: str, slots: int, driver: Any, gpus: int = 1) -> Any:
    """Execute the prompts, and have a fresh controller answer the log."""
    budget = min(slots * max(store.sizes_L), store.total_bytes)
    chosen: Any = dict(zip(AXES, policies.split(" "), strict=True))
    deciding = Deciding(policies=chosen, budget_bytes=budget, gpus=gpus)
    done = execute(
        model,
        store,
        [Request(prompt=prompt) for prompt in PROMPTS],
        deciding,
        Sampling(new_tokens=NEW_TOKENS, ignore_eos=True),
        keep=Keep(logits=True, log=True, spans=True),
        make_driver=driver,
    )
    parts = store.parts
    fresh = deciding.controller(experts=parts.experts, top_k=parts.top_k, sizes_L=store.sizes_L)
    assert first_difference(done.log, fresh) is None
    return done


@pytest.fixture(scope="module")
def offloaded(make_model: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a function that gives a family's model on GPU 0, its store, its logits on one GPU."""
    made: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in made:
            model = make_model(family).to("cuda:0")
            store = ExpertStore.take_from(model, pin=True)
            made[family] = model, store, run(model, store, LRU, 10**4, CudaDriver).logits
        return made[family]

    return get


@pytest.mark.parametrize("family", ["Olmoe", "Mixtral", "GptOss"])
@pytest.mark.parametrize(
    "policies",
    [LRU, "transient none on_demand", "lru next_gate:horizon=2 resident_first"],
)
def test_logits_are_those_of_one_gpu(
    offloaded: Callable[[str], Any], policies: str, family: str
) -> None:
    """Wherever experts live, logits are equal bit by bit and each runs on its home."""
    model, store, expected = offloaded(family)

    done = run(model, store, policies, SLOTS, GpusCudaDriver, gpus=2)

    for ours, theirs in zip(done.logits, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    commands = [command for _, _, answer in done.log for command in answer]
    runs = [command for command in commands if isinstance(command, Run)]
    assert all(expert % 2 == run.device.number for run in runs for expert in run.experts)
    for gpu, own in enumerate(done.timings.by_gpu):
        assert own.gpu_busy_ns > 0
        mine = [one for one in commands if isinstance(one, Copy) and one.dst.device == gpu]
        assert own.copies == len(mine)


def test_what_is_not_there_is_refused() -> None:
    """More GPUs than the machine has, and graphs on several, are one line each."""
    count = torch.cuda.device_count()
    with pytest.raises(UnavailableError, match=f"this machine has {count}"):
        check_gpus(torch.device("cuda", 0), count + 1)


def test_graphs_are_on_one(offloaded: Callable[[str], Any]) -> None:
    """Decode in graphs says that it computes on one GPU."""
    model, store, _ = offloaded("Olmoe")
    with pytest.raises(CapabilityError, match="computes on one GPU"):
        run(model, store, LRU, SLOTS, GraphDriver, gpus=2)
