"""Interventions: one figure is changed, and the machine is made so."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="it runs a real model")

from moesim.backends.drivers.threads import ThreadsDriver  # noqa: E402 - after the skip
from moesim.hardware_profiles.round_numbers import round_machine, round_runtime  # noqa: E402
from moesim.simulator.costs import CostModel  # noqa: E402
from moesim.simulator.errors import InputError, UnknownNameError  # noqa: E402
from moesim.simulator.models.cost_shape import CostShape  # noqa: E402
from moesim.traces import RoutingTrace, write  # noqa: E402
from moesim.validation.commands import validate  # noqa: E402
from moesim.validation.evidence_files import read_folder  # noqa: E402
from moesim.validation.intervening import (  # noqa: E402
    check_intervention,
    parse_intervention,
)
from moesim.validation.interventions import made_so, predicted  # noqa: E402

MB = 1_000_000
app = typer.Typer()
app.command()(validate)


def costs(text: str) -> tuple[CostModel, CostModel]:
    """Return the costs of round figures, and those under an intervention; 2 threads measured."""
    profiles = round_machine(), round_runtime()
    changed = predicted(parse_intervention(text), profiles, 2)
    assert changed[0].name == f"round with {text}"
    shape = CostShape.from_bytes([MB], [MB], experts=4, top_k=2, name="tiny")
    return CostModel(*profiles, shape), CostModel(*changed, shape)


def test_half_the_link_takes_twice_as_long() -> None:
    """Latency and bytes alike, and nothing else."""
    before, after = costs("link=0.5")
    assert (before.copy_ns(MB), after.copy_ns(MB)) == (105_000, 210_000)
    assert before.copy_ns(MB, "d2h") == after.copy_ns(MB, "d2h")
    assert before.experts_gpu_ns(0, [1]) == after.experts_gpu_ns(0, [1])


def test_other_interventions_change_their_figure() -> None:
    """Copies pay the latency each, threads the rate, pageable memory its own bandwidth."""
    _, pieces = costs("copies=8")
    assert pieces.copy_ns(MB) == 8 * 5_000 + 100_000
    before, threads = costs("cpu_threads=1")
    assert 2 * before.product_cpu_ns(0, 1) == threads.product_cpu_ns(0, 1)
    _, pageable = costs("pageable")
    assert pageable.copy_ns(MB) == 1_005_000
    assert pageable.copies_block_host


@pytest.mark.parametrize(
    "text", ["link=0.4", "link=0", "link", "copies=1", "copies=2.5", "cpu_threads=x", "pageable=2"]
)
def test_a_value_that_cannot_be_made_so_is_refused(text: str) -> None:
    """The line names the option."""
    with pytest.raises(InputError, match=f"--intervene {text}: "):
        parse_intervention(text)


def test_what_a_backend_cannot_do_is_refused() -> None:
    """So is what is unknown."""
    with pytest.raises(InputError, match="--backend cuda and a model with --weights random"):
        check_intervention(parse_intervention("pageable"), "cpu", None)
    with pytest.raises(UnknownNameError, match="no intervention 'lnk'; did you mean 'link'"):
        parse_intervention("lnk=0.5")


class Fake:
    """A driver of which copies are noted."""

    def __init__(self, _controller: object, store: Any, _budget: int, *, keep_spans: bool) -> None:
        self.copied: list[Any] = []
        self.keep_spans = keep_spans
        self._sources = [store.blob(expert).data_ptr() for expert in range(6)]

    def copy_bytes(self, expert: int, stretch: tuple[int, int], offset_bytes: int) -> None:
        """Note a copy."""
        self.copied.append((expert, stretch, offset_bytes))

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def made() -> Callable[[str], Any]:
    """Return a function that makes a fake driver under an intervention."""
    blobs = torch.arange(60, dtype=torch.uint8).view(6, 10)
    parts = SimpleNamespace(experts=6)
    store = SimpleNamespace(sizes_L=(10,), parts=parts, blob=lambda expert: blobs[expert])

    def make(text: str) -> Any:
        fake: Any = Fake
        none: Any = None
        return made_so(parse_intervention(text), fake)(none, store, 100, keep_spans=True)

    return make


def test_copies_are_made_again_or_in_pieces(made: Callable[[str], Any]) -> None:
    """Twice the same; or pieces that follow one another and cover the stretch."""
    twice, pieces = made("link=1/2"), made("copies=3")
    for driver in (twice, pieces):
        driver.copy_bytes(5, (10, 20), 40)
        assert driver.keep_spans
    assert twice.copied == [(5, (10, 20), 40)] * 2
    assert pieces.copied == [(5, (10, 13), 40), (5, (13, 16), 43), (5, (16, 20), 46)]


def test_threads_are_given_back(made: Callable[[str], Any]) -> None:
    """While the driver lives the number is the wished one."""
    before = torch.get_num_threads()
    driver = made("cpu_threads=3")
    assert torch.get_num_threads() == 3
    driver.close()
    assert torch.get_num_threads() == before


def test_pageable_memory_holds_a_few_experts(made: Callable[[str], Any]) -> None:
    """Four stand for all, one after another, with the weights of the first four."""
    driver = made("pageable")
    begin = driver._sources[0]
    assert [source - begin for source in driver._sources] == [0, 10, 20, 30, 0, 10]
    assert driver._stand_ins_B.tolist() == list(range(40))


@pytest.mark.parametrize("intervention", ["link=0.5", "copies=2"])
def test_a_machine_made_so_decides_as_before(
    tmp_path: Path,
    trace_of: Callable[..., RoutingTrace],
    write_shape: Callable[..., Path],
    intervention: str,
) -> None:
    """The cell says what was changed; bytes, counts and decisions are those predicted."""
    shape, trace, folder = write_shape(), tmp_path / "routes.npz", tmp_path / "evidence"
    write(trace_of(requests=3), trace)
    words = ["--model", shape, "--weights", "random", "--trace", trace, "-o", folder]
    cell = ["--warm", 2, "--tokens", 10, "--repeats", 1, "--slots", "50%", "--system", "on-demand"]
    options = [str(word) for word in [*words, *cell, "--intervene", intervention, "--prompt", 9]]
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    assert result.exit_code == 0
    (one,) = read_folder(folder)
    assert one.prediction.cell.hardware.endswith(f" with {intervention}")
    assert one.prediction.cell.trace == "routes.npz, prompts of 9 tokens, stitched"
    assert one.judged.decisions_right
    assert one.executions[0].outcome.counts == one.prediction.outcome.counts


def test_bytes_arrive_whole_in_pieces() -> None:
    """The real driver of the CPU has the same arena whether copied at once or in pieces."""
    blobs = torch.arange(200, dtype=torch.uint8).view(2, 100)
    found = []
    for text in ("copies=7", "link=0.5"):
        kind: Any = made_so(parse_intervention(text), ThreadsDriver)
        driver = object.__new__(kind)
        driver._store = SimpleNamespace(blob=lambda expert: blobs[expert])
        driver._arena_B = torch.zeros(120, dtype=torch.uint8)
        driver.copy_bytes(1, (20, 80), 30)
        found.append(driver._arena_B)
    assert found[0].tolist() == found[1].tolist()
    assert found[0][30:90].tolist() == list(range(120, 180))
