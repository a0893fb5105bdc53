"""Miss counts of libcachesim 0.3.5 on its four reference streams, to the last miss.

One access is one event of one layer. Conventions that have to agree: LFU counts anew at every
insertion and breaks ties by age; Belady keeps what it copies.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.simulator.testing import small_run
from moesim.traces import RoutingTrace, TraceHeader
from moesim.traces.assemble import RequestRows, assemble

Replay = Callable[..., Any]
Rows = Mapping[tuple[str, str, int], Mapping[int, int]]

POLICIES = {"LRU": "lru", "LFU": "lfu:count=in_cache", "FIFO": "fifo", "Belady": "belady"}
STREAMS = ("zipf256", "zipf6144", "moe256", "moe6144")
ROWS_PER_REQUEST = 20_000


@pytest.fixture(scope="module")
def streams(shared_data: Path) -> ModuleType:
    """Return the module that makes the streams."""
    spec = importlib.util.spec_from_file_location(
        "reference_streams", shared_data / "libcachesim" / "streams.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> dict[str, Any]:
    """Return what libcachesim counted, and the first accesses of each stream."""
    content = (shared_data / "libcachesim" / "reference.json").read_text()
    return dict(json.loads(content))


@pytest.fixture(scope="module")
def rows(reference: dict[str, Any]) -> Rows:
    """Return misses by capacity, for each (stream, algorithm, length of the prefix)."""
    found: dict[tuple[str, str, int], dict[int, int]] = {}
    for run in reference["runs"]:
        key = (run["stream"], run["alg"], run["n"])
        found.setdefault(key, {})[run["cap"]] = run["misses"]
    return found


@pytest.mark.parametrize("algorithm", ["LRU", "LFU", "Belady"])
@pytest.mark.parametrize("stream", STREAMS)
def test_a_prefix_of_100_000_misses_exactly_as_often(
    streams: ModuleType,
    reference: dict[str, Any],
    rows: Rows,
    replay: Replay,
    stream: str,
    algorithm: str,
) -> None:
    """Every capacity recorded for the prefix gives the recorded number of misses."""
    _compare(streams, reference, rows, replay, (stream, algorithm, 100_000))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["LRU", "LFU", "Belady"])
@pytest.mark.parametrize("stream", STREAMS)
def test_a_prefix_of_1_000_000_misses_exactly_as_often(
    streams: ModuleType,
    reference: dict[str, Any],
    rows: Rows,
    replay: Replay,
    stream: str,
    algorithm: str,
) -> None:
    """Ten times the accesses change nothing."""
    _compare(streams, reference, rows, replay, (stream, algorithm, 1_000_000))


@pytest.mark.slow
@pytest.mark.parametrize("stream", STREAMS)
def test_fifo_misses_exactly_as_often_over_the_whole_stream(
    streams: ModuleType,
    reference: dict[str, Any],
    rows: Rows,
    replay: Replay,
    stream: str,
) -> None:
    """FIFO, which is recorded for whole streams only, agrees over five million accesses."""
    _compare(streams, reference, rows, replay, (stream, "FIFO", 5_000_000))


@pytest.mark.parametrize(
    "algorithm", ["LRU", "LFU", "Belady", pytest.param("FIFO", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("stream", STREAMS)
def test_the_compiled_counter_misses_exactly_as_often_over_millions(
    streams: ModuleType, reference: dict[str, Any], rows: Rows, stream: str, algorithm: str
) -> None:
    """The loops under numba, which are a derivation of their own, agree to the last miss too."""
    counting = pytest.importorskip(
        "moesim.simulator.engines.compiled.counting", reason="needs numba"
    )

    def replay(trace: RoutingTrace, cache: str, **options: Any) -> Any:
        return counting.count(small_run(trace, cache=cache, **options))

    accesses = 5_000_000 if algorithm == "FIFO" else 1_000_000
    _compare(streams, reference, rows, replay, (stream, algorithm, accesses))


def _compare(
    streams: ModuleType,
    reference: dict[str, Any],
    rows: Rows,
    replay: Replay,
    key: tuple[str, str, int],
) -> None:
    stream, algorithm, accesses = key
    ids = streams.SPECS[stream](accesses)
    assert reference["streams"][stream]["first"] == ids[:16].tolist()
    trace = _as_trace(ids, streams.N_OBJ[stream])
    expected = rows[key]
    assert expected
    actual = {
        slots: replay(trace, POLICIES[algorithm], slots=slots, expert_bytes_L=[1]).misses
        for slots in expected
    }
    assert expected == actual


def _as_trace(ids: NDArray[np.uint16], objects: int) -> RoutingTrace:
    """Return the accesses as decode steps of one layer, cut into requests for their memory."""
    header = TraceHeader(
        model="stream", layer_ids=(0,), experts=objects, top_k=1, evidence="synthetic"
    )
    requests = []
    for begin in range(0, len(ids), ROWS_PER_REQUEST):
        some = ids[begin : begin + ROWS_PER_REQUEST]
        requests.append(
            RequestRows(
                expert_TLK=some.astype(np.int16).reshape(-1, 1, 1),
                is_prefill_T=np.zeros(len(some), dtype=np.bool_),
            )
        )
    return assemble("stream", header, requests)
