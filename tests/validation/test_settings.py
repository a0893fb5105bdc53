"""Prompts, batches, arrivals and changes of the machine: every combination has cells of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("torch", reason="it runs a real model")

from moesim.simulator.errors import InputError
from moesim.traces import RoutingTrace
from moesim.validation.beside import Check
from moesim.validation.commands import validate
from moesim.validation.evidence import Evidence
from moesim.validation.evidence_files import read_checks, read_folder
from moesim.validation.experienced import both
from moesim.validation.explain import explain
from moesim.validation.loads import load_of, rest_of
from moesim.validation.own_routes import Trying
from moesim.validation.protocol import Pace, run_cells
from moesim.validation.settings import settings_of

ARRIVALS = "poisson:rate=20,requests=5,prompt=6,output=5"
app = typer.Typer()
app.command()(validate)


def run(options: list[str], *more: object) -> str:
    """Return what the command prints."""
    words = [*options, *map(str, more)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_settings_are_all_combinations() -> None:
    """Values of one option are taken in their order, each with those of the others."""
    found = settings_of(prompt="9,20", intervene="none,link=0.5", chunk=8)
    assert [one.told for one in found] == [
        "prompts of 9",
        "prompts of 9, link=0.5",
        "prompts of 20",
        "prompts of 20, link=0.5",
    ]
    assert {one.batching for one in found} == {(None, 8)}
    assert [one.told for one in settings_of()] == [""]


def test_options_of_arrivals_keep_their_commas() -> None:
    """Two streams are told apart though each has commas of its own."""
    found = settings_of(max_batch="2", arrivals=f"{ARRIVALS},users:users=2,requests=3", seed=7)
    assert [one.arrivals for one in found] == [ARRIVALS, "users:users=2,requests=3"]
    assert {one.seed for one in found} == {7}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--prompt", "0"], "--prompt 0: give a number above 0"),
        (["--max-batch", "4,x"], "--max-batch x: give a number above 0"),
        (["--max-batch", "4,4"], "'4' is given twice"),
        (["--arrivals", ARRIVALS], "how many run together? Add --max-batch"),
        (
            ["--arrivals", ARRIVALS, "--max-batch", "2", "--prompt", "9"],
            "--prompt 9: say prompt=N,output=N in --arrivals instead",
        ),
        (
            ["--arrivals", ARRIVALS, "--max-batch", "2", "--routing", "own"],
            "--arrivals makes requests of recorded rows; use --routing forced",
        ),
    ],
)
def test_what_cannot_be_is_refused(options: list[str], line: str) -> None:
    """The line names the option, its value and the way out."""
    with pytest.raises(InputError, match=line.replace("?", r"\?")):
        CliRunner().invoke(app, options, catch_exceptions=False)


def test_requests_that_arrive_are_drawn_from_what_was_not_fitted(
    trace_of: Callable[..., RoutingTrace],
) -> None:
    """The fitted request is not among them; every token counts; the seed says who comes when."""
    trace = trace_of(requests=3)
    fitted = trace.select_requests([1])
    first, same, other = (
        load_of(settings_of(max_batch="2", arrivals=ARRIVALS, seed=seed)[0], trace, "t", fitted, 99)
        for seed in (1, 1, 2)
    )
    assert first.trace.content_hash() == same.trace.content_hash()
    assert first.trace.content_hash() != other.trace.content_hash()
    assert first.drawn_from is not None
    assert first.drawn_from.requests == 2
    assert first.lengths((20, 100, 5)) == (0, 5 * (5 - 1), 5)
    assert (first.trace.requests, first.trace.tokens) == (5, 5 * (6 + 5 - 1))
    assert first.name == f"t, {ARRIVALS}, seed 1, batch 2"


def test_offline_profiles_are_made_of_what_nothing_else_uses(
    trace_of: Callable[..., RoutingTrace],
) -> None:
    """Neither the fitted request nor a served one is looked at; there may be none left."""
    trace = trace_of(requests=4)
    fitted = trace.select_requests([0])
    few, many = (
        [load_of(setting, trace, "t", fitted, 20) for setting in settings_of(max_batch=batches)]
        for batches in ("1,2", "3")
    )
    rest = rest_of(trace, fitted, few)
    assert rest is not None
    assert rest.content_hash() == trace.select_requests([3]).content_hash()
    assert rest_of(trace, fitted, many) is None


def test_a_profile_that_is_served_too_is_refused(tmp_path: Path, options: list[str]) -> None:
    """The request is named before anything runs."""
    trace = options[options.index("--trace") + 1]
    words = [*options, "--system", "fiddler", "--profile-trace", trace]
    with pytest.raises(InputError, match="request 0 of the tested trace was fitted on"):
        run(words, "-o", tmp_path / "evidence")


def test_a_system_is_profiled_on_the_other_requests(tmp_path: Path, options: list[str]) -> None:
    """Its cell names what it looked at by hash, and is decided as predicted."""
    folder = tmp_path / "evidence"
    run(options, "--system", "fiddler", "--tokens", 3, "--repeats", 1, "-o", folder)
    (one,) = read_folder(folder)
    assert len(one.prediction.cell.fit_traces) == 2
    assert one.judged.decisions_right


def test_settings_share_one_clock(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """When the first one's cells used the time up, the second one's are left for another day."""
    pace, said = Pace(0.0), []
    for slots in (12, 18):
        run_cells(
            machine,
            cells_of(machine, slots=(slots,)),
            folder,
            origin,
            anchors_ns={"copy": 1000, "loop": 500},
            pace=pace,
            say=said.append,
        )
    assert {one.prediction.cell.budget for one in read_folder(folder)} == {"12 slots"}
    assert said[-1].startswith("18 slots: left for another time")


def test_one_command_has_cells_of_every_setting(tmp_path: Path, options: list[str]) -> None:
    """Machines and prompts take turns in one session, and the folder tells them apart."""
    folder = tmp_path / "evidence"
    run(options, "-o", folder, "--prompt", "3,9", "--intervene", "none,link=0.5", "--repeats", 1)
    found = read_folder(folder)
    told = {(one.prediction.cell.trace, one.prediction.cell.hardware) for one in found}
    assert len(found) == len(told) == 4
    copied = {
        one.prediction.cell.hardware: one.prediction.outcome.busy.link
        for one in found
        if "prompts of 3" in one.prediction.cell.trace
    }
    whole, half = sorted(copied.values())
    assert half == pytest.approx(2 * whole, rel=0.01)
    assert all(one.judged.decisions_right for one in found)


@pytest.fixture
def arrived(tmp_path: Path, options: list[str]) -> tuple[Evidence, str]:
    """Return the evidence of one cell of requests that arrived, and what was printed."""
    folder = tmp_path / "evidence"
    printed = run(options, "-o", folder, "--max-batch", 2, "--arrivals", ARRIVALS, "--seed", 3)
    (one,) = read_folder(folder)
    return one, printed


def test_arrivals_are_predicted_executed_and_compared(arrived: tuple[Evidence, str]) -> None:
    """Each request has its times on both sides; nobody is lost, nobody ends before he begins."""
    one, printed = arrived
    cell = one.prediction.cell
    assert (cell.arrivals, cell.seed, cell.warm_tokens, cell.tokens) == (ARRIVALS, 3, 0, 20)
    assert not cell.timing_free
    for outcome in (one.prediction.outcome, *(each.outcome for each in one.executions)):
        guests = outcome.guests
        assert guests is not None
        times = zip(guests.queue_ms, guests.ttft_ms, guests.e2e_ms, strict=True)
        assert all(0 <= queue < first < last for queue, first, last in times)
        assert len(guests.e2e_ms) == len(guests.tpot_ms) == 5
        assert 1 <= guests.mean_batch <= 2
    assert "requests that arrived at 50%: predicted / measured in ms" in printed
    assert any("in a step, at most" in line for line in explain(one))


def test_errors_of_arrivals_are_of_percentiles_over_requests(
    arrived: tuple[Evidence, str],
) -> None:
    """They follow from the requests' times; waiting has an error in ms alone."""
    one, _ = arrived
    found = both(one)
    assert found is not None
    ours, theirs = found
    for kind in ("ttft", "e2e", "tpot"):
        for percent in (50, 90):
            name = f"p{percent}_request_{kind}"
            assert one.judged.error_ms[name] == pytest.approx(ours[name] - theirs[name], abs=1e-5)
            assert one.judged.error[name] == pytest.approx(ours[name] / theirs[name] - 1, abs=1e-5)
    assert "p50_request_queue" in one.judged.error_ms
    assert "p50_request_queue" not in one.judged.error


@pytest.mark.parametrize(
    ("checked", "now", "charged", "known"),
    [
        ("abc", "abc", ("lru",), True),
        ("abc", "def", ("lru",), False),
        ("abc", "abc", (), False),
        ("abc", "abc", None, True),
        ("abc-dirty", "abc-dirty", ("lru",), False),
        ("unknown", "unknown", ("lru",), False),
        (None, "abc", ("lru",), False),
    ],
)
def test_a_check_holds_for_its_commit(
    checked: str | None, now: str, charged: tuple[str, ...] | None, known: bool
) -> None:
    """It is not repeated where the code is known whole and what decisions cost is known."""
    check = Check(
        system="lru",
        timing_free=True,
        decisions=1,
        first=None,
        largest_logit_difference=0.0,
        lossless_on_gpu=True,
        same_text=True,
        commit=checked,
    )
    none: Any = None
    assert Trying(none, none, none, none, None, now, charged).knows(check) is known


@pytest.mark.slow
def test_checks_of_the_same_code_are_not_repeated(tmp_path: Path) -> None:
    """Who goes on in a folder checks again only what another commit had checked."""
    reference = ["--warm", "1", "--tokens", "4", "--repeats", "1", "--slots", "50%"]
    reference += ["--system", "lru", "-o", str(tmp_path / "real"), "--prompt", "8"]
    run(reference, "--commit", "abc")
    assert "lru: own routes checked before" in run(reference, "--commit", "abc")
    assert "lru: own routes checked before" not in run(reference, "--commit", "def")
    assert [check.commit for check in read_checks(tmp_path / "real")] == ["def"]
