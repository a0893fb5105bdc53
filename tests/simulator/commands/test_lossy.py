"""Lossy systems on the command line: the loop of a row, sensitivity added to a trace, asks."""

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def ranked(repository: Path) -> Path:
    """Return the sample that has what routers thought of all experts."""
    return repository / "traces" / "samples" / "reference-12x32-signals.npz"


def row(cli: Any, trace: Path, *words: object) -> dict[str, Any]:
    """Return the row of a replay at half the room."""
    done = cli("simulate", trace, "--hardware", "rtx4090", "--slots", "50%", *words, "--json", "-")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_a_replay_of_a_lossy_system_says_that_it_is_open(cli, ranked: Path) -> None:
    """The table and the row name the loop and the changes; nothing says how good the text is."""
    found = row(cli, ranked, "--system", "emoe")
    assert found["loop"] == "open"
    assert found["rerouted"] > 0
    told = cli("simulate", ranked, "--hardware", "rtx4090", "--slots", "50%", "--system", "emoe")
    assert f"{found['rerouted']} choices rerouted, 0 skipped; open loop" in told.out


def test_a_sensitivity_profile_is_read_by_the_held_set(
    cli, ranked: Path, sample: Path, tmp_path: Path
) -> None:
    """Where no layer matters no set changes; where all do, each prompt's task decides."""
    cache = "periodic:period=1,predictor=task,first=profile,staging=0,sensitivity=sensitivity_RL"
    moved = []
    for agreement in (0.9, 0.1):
        profile, trace = tmp_path / "profile.json", tmp_path / f"{agreement}.npz"
        flags = {"matters_L": [agreement < 0.85] * 12, "agreement_L": [agreement] * 12}
        tasks = dict.fromkeys(("python", "metamath", "dialogue", "go", "intent"), flags)
        profile.write_text(json.dumps({"tasks": tasks}))
        done = cli("trace", "annotate", ranked, "--sensitivity", profile, "-o", trace)
        assert (done.code, done.err) == (0, f"{trace}: 5 requests with sensitivity_RL\n")
        words = ("--system", "emoe-task", "--cache", cache, "--profile-trace", sample)
        moved.append(row(cli, trace, *words)["bytes_rebalance"])
    assert moved[0] == 0 < moved[1]


def test_an_asked_prediction_has_its_time(cli, ranked: Path) -> None:
    """The longer it takes the later the set changes; a time that is none is one line."""
    cache = "periodic:period=1,window=1,staging=0,ask=true"
    words = ("--system", "emoe", "--cache", cache, "--ask")
    early, late = (
        row(cli, ranked, *words, f"predict_use={time}")["bytes_rebalance"] for time in ("1us", "9s")
    )
    assert early > late == 0
    done = cli("simulate", ranked, "--hardware", "rtx4090", *words, "predict_use=soon")
    assert done.code != 0
    assert "predict_use=soon: expected NAME=TIME, such as predict_use=380ms\n" in done.err
