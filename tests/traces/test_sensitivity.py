"""A sensitivity profile becomes a signal by request, which eMoE's held set reads."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moesim.simulator.testing import tiny_trace
from moesim.traces import ClosedLoop, TraceError, read, write
from moesim.traces.sensitivity import read_flags, with_sensitivity


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """Return a profile of the two tasks of the tiny trace, which has three layers."""
    path = tmp_path / "profile.json"
    tasks = {
        "alpha": {"matters_L": [True, False, True], "agreement_L": [0.8, 0.9, 0.3]},
        "beta": {"matters_L": [False, True, True], "agreement_L": [0.95, 0.5, 0.2]},
    }
    path.write_text(json.dumps({"tasks": tasks}))
    return path


def test_each_request_gets_the_flags_of_its_task(profile: Path, tmp_path: Path) -> None:
    """The signal is declared, known when the request arrives, and survives a file."""
    trace = with_sensitivity(tiny_trace(), read_flags(profile), "tiny")
    path = tmp_path / "with.safetensors"
    write(trace, path)
    found = read(path)
    assert found.signals["sensitivity_RL"].tolist() == [[1, 0, 1], [0, 1, 1]]
    assert found.header.signals["sensitivity_RL"].known_at == "request_arrived"


def test_another_threshold_sets_other_flags(profile: Path) -> None:
    """A layer matters where agreement is below the threshold given."""
    flags = read_flags(profile, 0.4)
    assert flags == {"alpha": [0, 0, 1], "beta": [0, 0, 1]}


def test_a_task_without_a_profile_is_refused(profile: Path) -> None:
    """The message names the request, its task and those that there are."""
    flags = {"alpha": read_flags(profile)["alpha"]}
    with pytest.raises(TraceError, match=r"tiny: request 1: no profile of task 'beta'; .* alpha"):
        with_sensitivity(tiny_trace(), flags, "tiny")


def test_a_profile_of_another_model_is_refused(profile: Path) -> None:
    """The profile has three layers, the trace two."""
    with pytest.raises(TraceError, match="has 3 layers, not 2"):
        with_sensitivity(tiny_trace(layers=2), read_flags(profile), "tiny")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tasks": {"a": {}}}', '{"tasks": {"a": 3}}'])
def test_what_is_no_profile_is_refused(text: str, tmp_path: Path) -> None:
    """One line says what is missing and how such a file is made."""
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(TraceError, match=r"other.json: tasks: .*moesim.backends.sensitivity"):
        read_flags(path)
    with pytest.raises(TraceError, match=r"none.json: file: "):
        read_flags(tmp_path / "none.json")


def test_a_closed_loop_survives_a_file_and_changes_the_hash(tmp_path: Path) -> None:
    """What binds a trace to a lossy run is part of it; the hash of others is what it ever was."""
    trace = tiny_trace()
    assert "closed_loop" not in trace.document()
    loop = ClosedLoop(
        system="emoe",
        policies={"cache": "lru"},
        budget_bytes=3,
        slots=1,
        order=trace.order_hash(),
    )
    bound = replace(trace, header=trace.header.model_copy(update={"closed_loop": loop}))
    path = tmp_path / "closed.npz"
    write(bound, path)
    assert read(path).header.closed_loop == loop
    assert trace.content_hash() != bound.content_hash()


def test_the_order_of_requests_binds() -> None:
    """Another order, or fewer requests, has another hash; the same has the same."""
    trace = tiny_trace()
    assert trace.order_hash() == tiny_trace().order_hash()
    assert trace.order_hash() != trace.select_requests([1, 0]).order_hash()
    assert trace.order_hash() != trace.head(requests=1).order_hash()
    assert np.array_equal(trace.expert_TLK, trace.select_requests([0, 1]).expert_TLK)
