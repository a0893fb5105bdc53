"""Decode in graphs on a CPU, where a graph is the list of its operations, done again in place.

All of it is the GPU's code but for what replays, what posts and what computes experts.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="executions run a real model")
pytest.importorskip("transformers", reason="they are models of transformers")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402 - after the skip

from moesim.backends.controllers import LOOK_IN  # noqa: E402
from moesim.backends.drivers.cuda import captured, graphed_batch, graphs  # noqa: E402
from moesim.backends.drivers.cuda.captured import Pieces  # noqa: E402
from moesim.backends.drivers.cuda.graphed_batch import BatchedDecode, sizes_to  # noqa: E402
from moesim.backends.drivers.cuda.graphed_experts import TorchExperts  # noqa: E402
from moesim.backends.drivers.cuda.graphs import GraphedDecode  # noqa: E402
from moesim.backends.drivers.threads import ThreadsDriver  # noqa: E402
from moesim.backends.forcing import requests_of  # noqa: E402
from moesim.backends.generation import Request  # noqa: E402
from moesim.backends.testing import first_difference  # noqa: E402
from moesim.simulator.engines.counts import count  # noqa: E402
from moesim.simulator.errors import CapabilityError, OutOfMemoryError  # noqa: E402
from moesim.simulator.serving.arrivals import OpenLoop  # noqa: E402
from moesim.simulator.serving.recorded import RecordedRequests  # noqa: E402

FAMILIES = ("Mixtral", "Qwen3Moe", "Olmoe", "DeepseekV2", "DeepseekV3")
NOISE = 2e-5
"""Of the largest logit, in float32: products and attention of other sizes."""
PROMPTS = ((5, 9, 200, 17, 33, 4), (7, 8, 9, 10), tuple(range(40, 61)), (250, 3, 3), (11,))
LENGTHS = (6, 3, 5, 8, 2)
SLOTS = 12
POLICIES = ("lru none resident_first", "lru next_gate:horizon=2 resident_first")


class RecordedGraph:
    """What a CUDA graph does, on a CPU: notes every operation, and does it again in place."""

    def __init__(self) -> None:
        self._done: list[Any] = []

    def capture_begin(self, **_: object) -> None:
        recorded = self._done

        class Recording(TorchDispatchMode):
            def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
                out = operation(*args, **(kwargs or {}))
                recorded.append((operation, args, kwargs or {}, out))
                return out

        self._mode = Recording()
        self._mode.__enter__()

    def capture_end(self) -> None:
        self._mode.__exit__(None, None, None)

    def replay(self) -> None:
        for operation, args, kwargs, out in self._done:
            again = operation(*args, **kwargs)
            pairs = zip(out, again, strict=True) if isinstance(out, tuple) else [(out, again)]
            for kept, new in pairs:
                if isinstance(kept, torch.Tensor) and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


class PlainPosted:
    """What the GPU posts, there at once."""

    def __init__(self, count: int, device: Any) -> None:
        self._values_S = torch.zeros(count, dtype=torch.long, device=device)
        self._gates_S = torch.zeros(count, dtype=torch.float16, device=device)

    def post(self, values: Any, gates: Any = None) -> None:
        self._values_S.copy_(values.reshape(-1))
        if gates is not None:
            self._gates_S.copy_(gates.reshape(-1))

    def expect(self) -> None:
        """Nothing: a replay has ended when it returns."""

    def has_come(self) -> bool:
        return True

    def values(self) -> list[int]:
        return self._values_S.tolist()

    def gates(self, top_k: int) -> Any:
        return self._gates_S.view(-1, top_k)


class RowsDriver(ThreadsDriver):
    """Threads, with decode by rows."""

    made: Any

    def decoder(self, model: Any, longest: int, look: Any = None, batch: int = 1) -> Any:
        parts, pieces = self._store.parts, self._store.pieces
        if batch == 1:
            decode = GraphedDecode(model, parts, longest, TorchExperts(pieces), look)
        else:
            decode = BatchedDecode(
                model, parts, longest, batch, lambda _: TorchExperts(pieces), look
            )
        RowsDriver.made = decode
        return decode


@pytest.fixture(autouse=True)
def _without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let plain memory stand for page-locked memory, and recorded operations for graphs."""
    stream = SimpleNamespace(wait_stream=lambda _: None)
    for module in (graphs, graphed_batch):
        monkeypatch.setattr(
            module, "pinned_bytes", lambda size: torch.zeros(size, dtype=torch.uint8)
        )
        monkeypatch.setattr(module, "mapped", lambda pinned: pinned)
    monkeypatch.setattr(captured, "Posted", PlainPosted)
    monkeypatch.setattr(captured, "new_stream", lambda: stream)
    for name, stand_in in {
        "CUDAGraph": RecordedGraph,
        "graph_pool_handle": object,
        "current_stream": lambda: stream,
        "stream": nullcontext,
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)


def requests() -> list[Request]:
    """Return requests that are fed tokens of their own."""
    return [
        Request(prompt=prompt, forced=[50 * number + at + 3 for at in range(length)])
        for number, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True))
    ]


def run(it: Any, policies: str, asked: Any, driver: Any, batch: int = 4, **options: Any) -> Any:
    """Execute all at once, some together."""
    cache, prefetch, schedule = policies.split(" ")
    deciding = it.deciding(f"{cache} {prefetch} fcfs:max_batch={batch}/{schedule}", SLOTS)
    done = it.run(
        deciding,
        requests=asked,
        arrivals=OpenLoop([0] * len(asked)),
        make_driver=driver,
        **options,
    )
    parts = it.store.parts
    fresh = deciding.controller(
        experts=parts.experts, top_k=parts.top_k, sizes_L=it.store.sizes_L, keep_log=True
    )
    return deciding, done, fresh


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policies", POLICIES)
@pytest.mark.parametrize("batch", [1, 4])
def test_graphs_say_what_the_forward_says(
    offloaded: Callable[[str], Any], family: str, policies: str, batch: int
) -> None:
    """Requests that come and go in slots say and decide as in packed steps."""
    it = offloaded(family)
    asked = requests()
    _, packed, _ = run(it, policies, asked, ThreadsDriver, batch)

    deciding, done, fresh = run(it, policies, asked, RowsDriver, batch)

    for mine, theirs in zip(done.logits, packed.logits, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert float((a - b).abs().max() / b.abs().max()) <= NOISE
    assert (done.trace.expert_TLK == packed.trace.expert_TLK).all()
    if deciding.policies["prefetch"] == "none":
        count(fresh, RecordedRequests(done.trace), budget_bytes=deciding.budget_bytes)
        ours = [command for _, _, answer in done.log for command in answer]
        assert [command for _, _, answer in fresh.log for command in answer] == ours
    else:
        assert first_difference(done.log, fresh) is None


@pytest.mark.parametrize("policies", [POLICIES[0], POLICIES[1]])
def test_forced_routes_go_to_the_rows_of_their_requests(
    offloaded: Callable[[str], Any], policies: str
) -> None:
    """Routes and looks of a trace are answered in the rows in which its requests are."""
    it = offloaded("Qwen3Moe")
    asked = requests()
    _, free, _ = run(it, POLICIES[1], asked, ThreadsDriver)
    trace = free.trace
    trace.expert_TLK[:] = (trace.expert_TLK + 1) % trace.experts  # not the model's own

    _, done, _ = run(it, policies, requests_of(trace, 300), RowsDriver, routes=trace)

    assert (done.trace.expert_TLK == trace.expert_TLK).all()
    if LOOK_IN in done.trace.signals:
        assert (done.trace.signals[LOOK_IN] == trace.signals[LOOK_IN]).all()


def test_each_step_takes_the_smallest_set(
    offloaded: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decode steps replay the smallest set that holds their slots; idle rows choose no expert."""
    it = offloaded("Mixtral")
    served: list[tuple[int, list[int]]] = []
    replay = Pieces.replay

    def noted(self: Any, rows: Sequence[int], *rest: Any) -> Any:
        served.append((len(self._rows), list(rows)))
        result = replay(self, rows, *rest)
        idle = sorted({*self._rows} - {*rows})
        for work in self.works:
            assert (work.ids_TK[idle] == it.store.parts.experts).all()
        return result

    monkeypatch.setattr(Pieces, "replay", noted)
    asked = requests()[:3]

    run(it, "lru none resident_first", asked, RowsDriver)

    sizes = sizes_to(4)
    assert all(max(slots) < rows for rows, slots in served)
    assert all(rows == next(s for s in sizes if s >= len(slots)) for rows, slots in served)
    assert any(len(slots) < rows for rows, slots in served)
    assert len(served) > 3


def test_sizes_are_powers_of_two_and_the_batch() -> None:
    """A batch is served by sets up to its own size."""
    assert sizes_to(1) == [1]
    assert sizes_to(32) == [1, 2, 4, 8, 16, 32]
    assert sizes_to(33) == [1, 2, 4, 8, 16, 32, 33]


def test_windows_that_move_on_the_host_are_refused(offloaded: Callable[[str], Any]) -> None:
    """A family with sliding windows is refused in one line, and runs without graphs."""
    it = offloaded("GptOss")
    with pytest.raises(CapabilityError, match=r"sliding windows.*--backend cuda-eager"):
        run(it, "lru none resident_first", [Request(prompt=PROMPTS[0])], RowsDriver)


@pytest.mark.parametrize("stage", ["warm up", "capture"])
def test_no_room_for_graphs_is_said_and_the_model_is_let_go(
    stage: str, offloaded: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory is not "cannot be captured", and nothing stays attached, at either stage."""
    it = offloaded("Olmoe")

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Pieces, "_warm_up" if stage == "warm up" else "_cut", fail)
    with pytest.raises(OutOfMemoryError, match="no room for its graphs"):
        run(it, "lru none resident_first", [Request(prompt=PROMPTS[0])], RowsDriver)
    for layer in it.store.parts.layers:
        assert not hasattr(layer.experts, "moesim_serve")
