"""The scripts beside eMoE's paper: memory to the byte, who arrives, whose label is wrong."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Import a script of the folder by name, and forget it and its neighbours afterwards."""
    monkeypatch.syspath_prepend(SCRIPTS)
    known = set(sys.modules)

    def imported(name: str) -> ModuleType:
        return __import__(name)

    yield imported
    for name in set(sys.modules) - known:
        if (SCRIPTS / f"{name}.py").exists():
            del sys.modules[name]


class TestMemory:
    """`emoe_memory.py`."""

    def test_full_residency_fits_what_it_takes_and_no_more(self, script) -> None:
        """The budgets are those of one prompt of 512 and of a batch of 4."""
        memory = script("emoe_memory")
        costs = memory.costs_of(memory.spec("mixtral-8x7b", memory.twin(), "lru", 100))
        budgets = memory.used(costs, 512, batch=1), memory.used(costs, 512, batch=4)
        found = memory.fit(costs, 100, *budgets)
        assert (found["longest_prompt"], found["largest_batch"]) == (512, 4)

    def test_memory_agrees_with_the_paper_within_4_percent(self, script) -> None:
        """Mixtral-8x7B at a prompt of 512: 96 GB, and 59 GB with 60 % of the experts."""
        memory = script("emoe_memory")
        costs = memory.costs_of(memory.spec("mixtral-8x7b", memory.twin(), "lru", 100))
        found = [memory.fit(costs, share, 10**11, 10**11)["gb_of_a_prompt"] for share in (100, 60)]
        assert found == pytest.approx([96, 59], rel=0.04)

    def test_fewer_experts_than_a_token_chooses_are_refused(self, script) -> None:
        """At 20 % a layer holds one of the two experts of a token; the row says why it is empty."""
        memory = script("emoe_memory")
        row = memory.serve("mixtral-8x7b", memory.twin(), "emoe", 20, 1)
        assert row["tokens_per_s"] is None
        assert "2 experts of one token" in row["run_id"]


class TestArrivals:
    """`slo_stream.py` and `emoe_slo.py`."""

    @pytest.fixture
    def stream(self, script, shared_data: Path) -> object:
        """Return 200 requests."""
        return script("slo_stream").make(shared_data / "requests", 200, 4, poisson=False, seed=0)

    def test_tasks_differ_in_how_long_they_answer(self, stream) -> None:
        """The scheduler expects the order that the served requests have."""
        tasks = np.array(stream.task_R)
        expected = dict(zip(stream.profile.task_R, stream.profile.output_tokens_R, strict=True))
        order = ("intent", "metamath", "dialogue")
        served = [float(stream.output_R[tasks == task].mean()) for task in order]
        assert served == sorted(served)
        assert [expected[task] for task in order] == sorted(expected[task] for task in order)

    def test_one_request_a_second_on_average(self, stream) -> None:
        """Arrival times are scaled, in order, and begin after 0."""
        assert stream.arrived_s_R[-1] == pytest.approx(200)
        assert (np.diff(stream.arrived_s_R) >= 0).all()

    def test_a_fifth_of_the_labels_is_wrong_and_nothing_else(self, script, stream) -> None:
        """Lengths and routes stay; 40 of 200 labels differ."""
        found = script("emoe_slo").mislabelled(stream, 0)
        wrong = sum(a != b for a, b in zip(stream.task_R, found.task_R, strict=True))
        assert wrong == 40
        assert found.prompt_R is stream.prompt_R
        assert found.trace.expert_TLK is stream.trace.expert_TLK
