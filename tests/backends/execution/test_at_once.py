"""Executions without threads: the same answers and decisions, whatever the machine is busy with."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch", reason="executions run a real model")

from moesim.backends.drivers.threads import AtOnceDriver
from moesim.simulator.errors import MoesimError

HELD = "periodic:period=1,window=1,staging=0 none fallback/resident_first"
CACHED = "lru none resident_first"


@pytest.mark.parametrize("policies", [HELD, CACHED])
def test_what_is_done_at_once_is_what_threads_do(
    offloaded: Callable[[str], Any], policies: str
) -> None:
    """Tokens, routes, logits and counts are those of threads; but no copy comes late."""
    served = offloaded("Qwen3Moe")
    deciding = served.deciding(policies, 12)
    threads = served.run(deciding)
    at_once = served.run(deciding, make_driver=AtOnceDriver)
    assert threads.tokens == at_once.tokens
    assert threads.trace.content_hash() == at_once.trace.content_hash()
    counts = at_once.counts
    assert counts.late_hits == 0
    assert replace(threads.counts, hits=counts.hits, late_hits=0) == counts
    assert all(
        bool((ours == theirs).all())
        for one, other in zip(threads.logits, at_once.logits, strict=True)
        for ours, theirs in zip(one, other, strict=True)
    )


def test_what_fails_at_once_is_told(
    offloaded: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that fails ends the run with its cause, and what was to follow is not done."""
    served = offloaded("Qwen3Moe")

    def fail(_self: object, _expert: int, _stretch: object, offset_bytes: int) -> None:
        raise RuntimeError(f"no memory at {offset_bytes}")

    monkeypatch.setattr(AtOnceDriver, "copy_bytes", fail)
    monkeypatch.setattr(AtOnceDriver, "place", lambda *_: None)
    with pytest.raises(MoesimError, match=r"^command \d+ failed: no memory at"):
        served.run(served.deciding(CACHED, 12), make_driver=AtOnceDriver)
