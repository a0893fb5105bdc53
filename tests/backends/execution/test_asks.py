"""What is asked is computed beside the host thread, and its answer is a fact like any other."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="executions run a real model")

from moesim.backends.testing import first_difference
from moesim.simulator.errors import MoesimError
from moesim.simulator.messages import Answered, Ask

POLICY = '''
import threading
from moesim.simulator.policies.base import PrefetchPolicy, Question, Wish

class Asking(PrefetchPolicy):
    """Ask which experts to copy; wish for what the answer says."""

    def __init__(self, run, *, breaks: bool = False):
        super().__init__(run)
        self._breaks = breaks
        self.asked_in = set()

    def asks(self, demand, view):
        if demand is not None:
            yield Question("next", demand.layer)

    def compute(self, name, question):
        if self._breaks:
            raise ValueError("no map for this layer")
        first = (question + 1) % self.run.layers * self.run.experts
        return [first, first + 1, threading.current_thread().name]

    def on_answer(self, name, answer, view):
        assert answer[2] == "moesim asks"
        return [Wish(expert) for expert in answer[:2]]
'''


@pytest.fixture
def policy(tmp_path: Path) -> str:
    """Return the spec of a prefetch policy that asks."""
    path = tmp_path / "asking.py"
    path.write_text(POLICY, encoding="utf-8")
    return f"{path}:Asking"


def test_answers_lead_to_prefetches(offloaded: Callable[[str], Any], policy: str) -> None:
    """An answer comes from a thread of its own, its wishes are copied, the text stays the same."""
    it = offloaded("Qwen3Moe")
    deciding = it.deciding(f"lru {policy} resident_first", 12)

    done = it.run(deciding)

    answered = [fact for facts, _, _ in done.log for fact in facts if isinstance(fact, Answered)]
    asked = [each for _, _, answer in done.log for each in answer if isinstance(each, Ask)]
    assert len(asked) == len(answered) == 3 * done.counts.steps
    counts = done.counts
    prefetched = counts.bytes_prefetch_useful + counts.bytes_prefetch_late
    assert prefetched + counts.bytes_prefetch_wasted > 0
    assert it.text == done.tokens
    parts = it.store.parts
    fresh = deciding.controller(experts=parts.experts, top_k=parts.top_k, sizes_L=it.store.sizes_L)
    assert first_difference(done.log, fresh) is None


def test_an_ask_that_fails_ends_the_run(offloaded: Callable[[str], Any], policy: str) -> None:
    """A predictor that fails is a one-line error, and no thread stays."""
    it = offloaded("Qwen3Moe")
    with pytest.raises(MoesimError, match=r"^command \d+ failed: no map for this layer$"):
        it.run(it.deciding(f"lru {policy}:breaks=true resident_first", 12))
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if name.startswith("moesim ")] == []
