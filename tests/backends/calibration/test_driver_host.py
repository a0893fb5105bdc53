"""What the probes of the driver hand over, and what they read off; the driver is a fake."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moesim.backends.calibration import driver_host
from moesim.backends.calibration.driver_host import BEHIND, CALLS, PROMPT_TOKENS, DriverHost
from moesim.simulator.messages import Copy, Run

COPY_MS, GAP_MS, AFTER_MS, RUN_MS = 0.2, 0.001, 0.008, 0.02


class Event:
    """A moment of a fake device, in ms; the host asks twice before it has come."""

    def __init__(self, at_ms: float) -> None:
        self.at_ms = at_ms
        self.asked = 0

    def query(self) -> bool:
        """Return whether it has come."""
        self.asked += 1
        return self.asked > 1

    def elapsed_time(self, later: "Event") -> float:
        """Return the time until another."""
        return later.at_ms - self.at_ms


class Driver:
    """Takes fixed times, notes what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.marks: dict[int, Any] = {}
        self.free_ms = 0.0

    def open_layer(self, work: object) -> None:
        """Note it."""
        self.told.append(work)

    def start_copy(self, command: Copy, _offset_bytes: int) -> None:
        """Put a copy behind the last."""
        began_ms = self.free_ms + GAP_MS
        self.free_ms = began_ms + COPY_MS
        self.marks[command.n] = SimpleNamespace(began=Event(began_ms), ended=Event(self.free_ms))
        self.told.append(command)

    def start_run(self, command: Run, _offsets_bytes: Sequence[int]) -> None:
        """Have a run begin a while after the copy that it waits for."""
        if command.after:
            ended_ms = self.marks[command.after[0]].ended.at_ms + AFTER_MS + RUN_MS
            self.marks[command.n] = SimpleNamespace(ended=Event(ended_ms))
        self.told.append(command)

    def marks_of(self, numbers: Sequence[int]) -> list[Any]:
        """Return what was noted."""
        return [self.marks[n] for n in numbers]

    def poll(self) -> list[Any]:
        """Report nothing."""
        return []

    def forget_step(self) -> None:
        """Note it."""
        self.told.append("step ended")

    def drain(self) -> None:
        """Note it."""
        self.told.append("drained")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the probes on a fake driver of 64 experts, 8 chosen."""
    monkeypatch.setattr(driver_host.torch.cuda, "synchronize", lambda: None)
    found: Any = object.__new__(DriverHost)
    found._driver, found._number = Driver(), 0
    found._experts, found._top_k, found._blob_bytes = 64, 8, 1_000
    found._work, found._prompt = "decode", "prompt"
    return found


@pytest.mark.parametrize("behind", [0, BEHIND])
def test_a_run_waits_for_the_first_of_some_copies(host: Any, behind: int) -> None:
    """The time is from that copy's end to the run's, whatever follows."""
    assert host._waited_ns(behind) == pytest.approx(1e6 * (AFTER_MS + RUN_MS))
    copies = [one for one in host._driver.told if isinstance(one, Copy)]
    (run,) = [one for one in host._driver.told if isinstance(one, Run)]
    assert len(copies) == 1 + behind
    assert run.after == (copies[0].n,)
    assert host._driver.told[0] == "decode"
    assert host._driver.told[-1] == "step ended"


def test_the_gap_is_between_copies_handed_over_together(host: Any) -> None:
    """The mean over all of them."""
    assert host._gap_ns() == pytest.approx(1e6 * GAP_MS)
    assert sum(isinstance(one, Copy) for one in host._driver.told) == CALLS


def test_copies_follow_one_another_at_their_pace(host: Any) -> None:
    """From one begin to the next: a copy and a gap."""
    assert host._each_ns() == pytest.approx(1e6 * (COPY_MS + GAP_MS))


def test_a_lone_copy_is_watched_to_its_end(host: Any) -> None:
    """The host asks until it has come."""
    assert host._lone_ns() > 0
    (copy,) = [one for one in host._driver.told if isinstance(one, Copy)]
    assert host._driver.marks[copy.n].ended.asked == 2


def test_the_end_of_a_step_is_timed_and_its_events_are_read(host: Any) -> None:
    """Reading them comes after the clock was stopped."""
    assert host._end_ns(5) > 0
    assert host._driver.told[-2:] == ["step ended", "drained"]
    assert sum(isinstance(one, Copy) for one in host._driver.told) == 5


def test_a_prompt_is_run_expert_by_expert(host: Any) -> None:
    """Each run has another expert and as many tokens as such a prompt gives it."""
    assert host._prompt_run_ns() > 0
    runs = [one for one in host._driver.told if isinstance(one, Run)]
    assert [run.experts for run in runs] == [(expert,) for expert in range(CALLS)]
    assert {run.tokens for run in runs} == {(PROMPT_TOKENS * 8 // 64,)}
    assert host._driver.told[0] == "prompt"


def test_a_prompts_layer_uses_every_expert_alike() -> None:
    """128 tokens of 2 choices give 8 experts 32 each."""
    work = driver_host.prompt_work(None, 16, 8, 2, 128, torch.device("cpu"))
    assert work.hidden_TD.shape == (128, 16)
    counts = torch.bincount(work.ids_TK.reshape(-1)).tolist()
    assert counts == [32] * 8
