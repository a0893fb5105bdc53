"""A timeline is valid JSON whose every job lies on its track, in order, to the ns."""

import gzip
import json
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.simulator.controller import Controller
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.machine import Span
from moesim.simulator.engines.simpy import SimpyEngine
from moesim.simulator.errors import InputError
from moesim.simulator.ledger import Timings
from moesim.simulator.messages import Copy, Move, Run
from moesim.simulator.policies.base import RunInfo
from moesim.simulator.policies.cache.lru import LeastRecentlyUsed
from moesim.simulator.policies.prefetch.none import NoPrefetch
from moesim.simulator.policies.schedule.resident_first import ResidentFirst
from moesim.simulator.results.timeline import events, write_timeline
from moesim.simulator.terms import CPU, GPU, RAM, Cause, Place, Tier
from moesim.simulator.testing.tiny import tiny_trace
from moesim.simulator.workload.demands import Workload

SIZE = 1_000_000
SLOT = Place(Tier.VRAM, 0, 0, 5)


def replay() -> tuple[list[Span], Timings]:
    """Return the spans and timings of a small run."""
    trace = tiny_trace()
    costs = CostModel.for_tests(layers=3, experts=6, top_k=2, expert_bytes=SIZE)
    run = RunInfo(3, 6, 2, (SIZE,) * 3, 6 * SIZE, costs, np.random.default_rng(0))
    controller = Controller(run, LeastRecentlyUsed(run), NoPrefetch(run), ResidentFirst(run))
    engine = SimpyEngine(
        controller,
        Workload(trace),
        costs,
        expert_bytes=lambda *_: SIZE,
        budget_bytes=6 * SIZE,
        keep_spans=True,
    )
    timings = engine.run()
    assert engine.spans is not None
    return engine.spans, timings


def jobs_of(document: Any) -> dict[str, list[tuple[Decimal, Decimal]]]:
    """Return begin and end of every job in µs, by the title of its track."""
    names = {
        event["tid"]: event["args"]["name"]
        for event in document["traceEvents"]
        if event["name"] == "thread_name"
    }
    jobs: dict[str, list[tuple[Decimal, Decimal]]] = {name: [] for name in names.values()}
    for event in document["traceEvents"]:
        if event["ph"] == "X":
            jobs[names[event["tid"]]].append((event["ts"], event["ts"] + event["dur"]))
    return jobs


def test_jobs_keep_their_order_and_their_nanoseconds(tmp_path: Path) -> None:
    """On each track no job begins before the one before has ended, and busy times are exact."""
    spans, timings = replay()
    path = tmp_path / "run.json"
    write_timeline(path, spans, experts=6)
    jobs = jobs_of(json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal))
    assert set(jobs) == {"host thread", "GPU compute", "copies host to GPU"}
    for track in jobs.values():
        assert all(one[1] <= other[0] for one, other in pairwise(track))
    busy_ns = {
        name: sum(end - begin for begin, end in track) * 1000 for name, track in jobs.items()
    }
    assert busy_ns == {
        "host thread": timings.host_busy_ns,
        "GPU compute": timings.gpu_busy_ns,
        "copies host to GPU": timings.link_busy_ns,
    }


def test_equal_runs_give_equal_files(tmp_path: Path) -> None:
    """Two replays give the same bytes, compressed or not, and both hold the same text."""
    names = ["a.json", "b.json", "c.json.gz", "d.json.gz"]
    for name in names:
        write_timeline(tmp_path / name, replay()[0], experts=6)
    one, other, packed, packed_too = ((tmp_path / name).read_bytes() for name in names)
    assert one == other
    assert packed == packed_too
    assert gzip.decompress(packed) == one
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())


def test_every_kind_of_job_has_a_name() -> None:
    """Copies, moves, runs, attention and texts are named by layer and expert."""
    spans: list[Span] = [
        ("h2d", Copy(1, 13, 0, RAM, SLOT, Cause.DEMAND), 0, 5),
        ("h2d", Copy(2, 7, 0, RAM, SLOT, Cause.PREFETCH), 5, 9),
        ("peer", Move(3, 12, 0, SLOT, SLOT), 5, 6),
        ("gpu", Run(4, (13, 14), (1, 2), GPU, (1,)), 5, 8),
        ("cpu", Run(5, (17,), (1,), CPU), 5, 25),
        ("gpu", 2, 9, 10),
        ("gpu", "head", 10, 10),
    ]
    named = [event["name"] for event in events(spans, experts=6) if event["ph"] == "X"]
    assert named == [
        "copy L2 E1 (demand)",
        "copy L1 E1 (prefetch)",
        "move L2 E0",
        "run L2 2 experts",
        "run L2 1 expert",
        "attention L2",
        "head",
    ]


@pytest.mark.parametrize(
    ("sizes_L", "name", "last"),
    [
        (None, "experts copied", {"demand": 2, "prefetch": 1}),
        ([100, 30], "bytes copied", {"demand": 130, "prefetch": 30}),
    ],
)
def test_counters_grow_by_cause(sizes_L: list[int] | None, name: str, last: dict[str, int]) -> None:
    """What was copied so far is told at each end of a copy, in order of time, by cause."""
    spans: list[Span] = [
        ("h2d", Copy(1, 0, 0, RAM, SLOT, Cause.DEMAND), 0, 5),
        ("h2d", Copy(2, 7, 0, RAM, SLOT, Cause.PREFETCH), 5, 9),
        ("nvme", Copy(3, 8, 0, RAM, SLOT, Cause.DEMAND), 1, 7),
    ]
    counters = [e for e in events(spans, experts=6, expert_bytes_L=sizes_L) if e["ph"] == "C"]
    assert [counter["ts"] for counter in counters] == [5, 7, 9]
    assert {counter["name"] for counter in counters} == {name}
    assert counters[-1]["args"] == last


def test_a_run_without_jobs_is_still_a_timeline(tmp_path: Path) -> None:
    """No span gives a document that names the run and has no jobs."""
    write_timeline(tmp_path / "empty.json", [], experts=6, about={"model": "müll"})
    document = json.loads((tmp_path / "empty.json").read_text(encoding="utf-8"))
    assert document["otherData"] == {"model": "müll"}
    assert [event["name"] for event in document["traceEvents"]] == ["process_name"]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    """A folder that is not there is one line that names the file, and nothing is left behind."""
    with pytest.raises(InputError, match=r"gone/run\.json: No such file or directory"):
        write_timeline(tmp_path / "gone" / "run.json", [], experts=6)
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(InputError, match=r"taken\.json: Is a directory"):
        write_timeline(tmp_path / "taken.json", [], experts=6)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.json"]
