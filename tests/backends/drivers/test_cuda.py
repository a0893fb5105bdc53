"""The CUDA driver says what the resident model says, fails in one line, returns what it took.

Run them on a machine with a GPU: ``pytest -m gpu tests/backends/drivers``.
"""

import _thread
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="drivers move tensors")
transformers = pytest.importorskip("transformers", reason="they are models of transformers")

from moesim.backends.controllers import Deciding  # noqa: E402 - after the skip
from moesim.backends.drivers.cuda.driver import CudaDriver  # noqa: E402
from moesim.backends.drivers.cuda.machine import gpu, vram  # noqa: E402
from moesim.backends.drivers.cuda.pinned import mapped, pinned_bytes  # noqa: E402
from moesim.backends.execution import Keep, execute  # noqa: E402
from moesim.backends.generation import Request, Sampling  # noqa: E402
from moesim.backends.store import ExpertStore  # noqa: E402
from moesim.backends.testing import check_backend, resident_logits  # noqa: E402
from moesim.simulator.errors import MoesimError, OutOfMemoryError  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

FAMILIES = ("Mixtral", "Qwen3Moe", "Olmoe", "DeepseekV2", "Phimoe", "GptOss", "DeepseekV3")
PROMPTS = ((5, 9, 200, 17, 33, 4), (7, 8, 9, 10))
NEW_TOKENS = 6
AXES = ("cache", "prefetch", "schedule")
SYSTEMS = {
    "per-layer LRU": ("lru:scope=per_layer none resident_first", 9),
    "waves": ("lru none resident_first", 3),
    "gates ahead": ("lru next_gate:horizon=2 resident_first", 12),
}
ALL = 10**4
NOISE = 1e-4
"""Of the largest logit, in float32: other kernels than torch's, or a CPU's."""


def deciding(policies: str, slots: int, store: Any) -> Deciding:
    """Return policies by ``cache prefetch schedule`` with room for so many experts."""
    return Deciding(
        policies=dict(zip(AXES, policies.split(" "), strict=True)),
        budget_bytes=min(slots * max(store.sizes_L), store.total_bytes),
    )


def run(model: Any, store: Any, policies: str, slots: int, driver: Any = CudaDriver) -> Any:
    """Execute the prompts on the GPU, keeping logits."""
    return execute(
        model,
        store,
        [Request(prompt=prompt) for prompt in PROMPTS],
        deciding(policies, slots, store),
        Sampling(new_tokens=NEW_TOKENS, ignore_eos=True),
        keep=Keep(logits=True, spans=True),
        make_driver=driver,
    )


@pytest.fixture(scope="module")
def offloaded(make_model: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a function that gives a family's model on the GPU, its store, its logits.

    The logits are those with room for every expert, and were compared with those of the model
    before its experts were taken.
    """
    made: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in made:
            model = make_model(family).to("cuda")
            in_place = resident_logits(model, PROMPTS, NEW_TOKENS)
            store = ExpertStore.take_from(model, pin=True)
            expected = run(model, store, "lru none resident_first", ALL).logits
            assert_close_logits(expected, in_place)
            made[family] = (model, store, expected)
        return made[family]

    return get


def assert_equal_logits(ours: Any, theirs: Any) -> None:
    """Compare every step's logits bit by bit."""
    for mine, yours in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, yours, strict=True))


def assert_close_logits(ours: Any, theirs: Any) -> None:
    """Compare every step's logits within noise, and the text that they make."""
    for mine, yours in zip(ours, theirs, strict=True):
        for a, b in zip(mine, yours, strict=True):
            assert float((a - b).abs().max() / b.abs().max()) <= NOISE
            assert int(a.argmax()) == int(b.argmax())


def test_the_cuda_driver_passes_the_check() -> None:
    """The driver does what every backend has to."""
    check_backend(CudaDriver, torch.device("cuda"))


def test_a_driver_that_ignores_dependencies_is_caught() -> None:
    """The check tells a driver whose runs begin before their copies have ended."""

    class Hasty(CudaDriver):
        def start_run(self, command: Any, offsets_bytes: Any) -> None:
            super().start_run(command._replace(after=()), offsets_bytes)

        def copy_bytes(self, expert: int, stretch: tuple[int, int], offset_bytes: int) -> None:
            with torch.cuda.stream(self._copies.stream):
                torch.cuda._sleep(5_000_000)  # slow enough for a run to overtake it
            super().copy_bytes(expert, stretch, offset_bytes)

    with pytest.raises(AssertionError, match="logits differ"):
        check_backend(Hasty, torch.device("cuda"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_logits_equal_those_of_the_resident_model(
    offloaded: Callable[[str], Any], family: str, system: str
) -> None:
    """A lossless system gives the logits of all experts resident bit by bit, and so its text."""
    model, store, expected = offloaded(family)
    policies, slots = SYSTEMS[system]

    done = run(model, store, policies, slots)

    assert done.counts.misses > 0
    assert_equal_logits(done.logits, expected)
    assert done.tokens == [[int(logits.argmax()) for logits in request] for request in expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_cpu_experts_agree_within_noise(offloaded: Callable[[str], Any], family: str) -> None:
    """Misses computed by the CPU give the same text, and logits within noise."""
    model, store, expected = offloaded(family)

    done = run(model, store, "lru transition_table:fit=online cpu_on_miss", 9)

    assert done.counts.cpu_experts > 0
    assert_close_logits(done.logits, expected)


@pytest.mark.parametrize(
    ("policies", "share"),
    [
        ("lru:scope=per_layer none resident_first", 0.25),
        ("lru next_gate:horizon=1 resident_first", 0.5),
        ("transient none on_demand", 0.25),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_trained_model_says_the_same(
    repository: Path, policies: str, share: float, dtype: str
) -> None:
    """The reference model's logits and greedy text are those of all experts resident."""
    transformers.utils.logging.disable_progress_bar()
    weights = repository / "backends" / "reference" / "weights"
    model = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=getattr(torch, dtype))
    model = model.eval().to("cuda")
    store = ExpertStore.take_from(model, pin=True)
    experts = store.parts.experts * len(store.sizes_L)
    expected = run(model, store, "lru none resident_first", ALL).logits

    done = run(model, store, policies, round(experts * share))

    assert_equal_logits(done.logits, expected)


def test_what_was_measured_fits_into_the_run(offloaded: Callable[[str], Any]) -> None:
    """Copies, products and gaps are measured by the GPU's own events, within the run."""
    model, store, _ = offloaded("Qwen3Moe")
    done = run(model, store, "lru none resident_first", 9)
    timings = done.timings
    assert 0 < timings.link_busy_ns < timings.span_ns
    assert 0 < timings.experts_busy_ns < timings.span_ns
    assert 0 < timings.longest_gap_ns < timings.span_ns
    assert {"h2d", "gpu"} == {resource for resource, *_ in done.spans}
    assert all(0 <= began <= ended <= timings.span_ns for _, _, began, ended in done.spans)


class Watched(CudaDriver):
    """Does harm at a copy, and keeps a reference to its arena that holds nothing."""

    harm: Callable[[], None]
    arenas: list[Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.copies = 0
        assert self._arena_B is not None
        type(self).arenas.append(weakref.ref(self._arena_B))

    def copy_bytes(self, expert: int, stretch: tuple[int, int], offset_bytes: int) -> None:
        self.copies += 1
        if self.copies == 20:
            type(self).harm()
        super().copy_bytes(expert, stretch, offset_bytes)


def harmed(harm: Callable[[], None]) -> type[Watched]:
    """Return a driver class of its own whose twentieth copy does a harm first."""
    return type("Harmed", (Watched,), {"arenas": [], "harm": staticmethod(harm)})


def break_link() -> None:
    """Fail."""
    raise RuntimeError("CUDA error: the link is down\nand many more lines")


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (break_link, MoesimError, r"^command \d+ failed: CUDA error: the link is down$"),
        (_thread.interrupt_main, KeyboardInterrupt, None),
    ],
)
def test_what_goes_wrong_leaves_nothing_behind(
    offloaded: Callable[[str], Any], harm: Any, error: type[BaseException], message: str | None
) -> None:
    """A failed copy and ctrl-C end the run; memory is released, the collector back, all usable."""
    model, store, expected = offloaded("Qwen3Moe")
    driver = harmed(harm)

    with pytest.raises(error, match=message):
        run(model, store, "lru none resident_first", 9, driver)

    assert gc.isenabled()
    gc.collect()
    assert [arena() for arena in driver.arenas] == [None]
    assert_equal_logits(run(model, store, "lru none resident_first", 9).logits, expected)


def test_an_arena_that_does_not_fit_is_refused() -> None:
    """More VRAM than there is is one line with the way out, and takes nothing."""
    before = torch.cuda.memory_allocated()
    with pytest.raises(OutOfMemoryError, match=r"of VRAM for experts, .* are free; give a smaller"):
        vram(2**44, gpu())
    assert before == torch.cuda.memory_allocated()


def test_pinned_memory_is_seen_by_the_gpu() -> None:
    """Page-locked memory is what it says, and the GPU reads what the host wrote."""
    host = pinned_bytes(3 * 2**20)
    assert host.is_pinned()
    seen = mapped(host[:1024].view(torch.float32))
    host[:1024].view(torch.float32).copy_(torch.arange(256.0))
    assert torch.equal(torch.arange(256.0), (seen + 0).cpu())
