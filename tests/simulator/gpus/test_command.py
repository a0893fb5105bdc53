"""``moesim simulate --gpus``: files, errors, and the machine with six."""

import csv
import json
import sys
from pathlib import Path

import pytest

from moesim.hardware_profiles import HardwareProfile, load
from moesim.hardware_profiles.round_numbers import round_machine
from moesim.simulator.cli import main
from moesim.simulator.costs import CostModel
from moesim.simulator.gpus.hands import limits_of

SAMPLE = Path(__file__).resolve().parents[3] / "traces" / "samples" / "reference-12x32.npz"


def simulate(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run the command in this process and return its exit code."""
    given = ["moesim", "simulate", str(SAMPLE), "--hardware", "rtx3090x6", "--requests", "1"]
    monkeypatch.setattr(sys, "argv", [*given, *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_run_is_written_with_each_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table names each GPU, the CSV has them as JSON, the timeline a lane for each."""
    table, lanes = tmp_path / "runs.csv", tmp_path / "lanes.json"
    assert simulate(monkeypatch, "--gpus", 3, "--csv", table, "--timeline", lanes) == 0
    assert "GPU 2" in capsys.readouterr().out
    with table.open(encoding="utf-8") as lines:
        row = next(csv.DictReader(lines))
    assert len(json.loads(row["by_gpu"])) == 3
    titles = [
        event["args"]["name"]
        for event in json.loads(lanes.read_text())["traceEvents"]
        if event["name"] == "thread_name"
    ]
    assert titles[0] == "host thread"
    assert [title for title in titles if title.endswith(": compute")] == [
        f"GPU {gpu}: compute" for gpu in range(3)
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", 7], "--gpus 7: rtx3090x6 has 6"),
        (["--gpus", 2, "--placement", "by_load"], "--profile-trace"),
        (["--gpus", 2, "--placement", "by_lode"], "did you mean 'by_load'"),
        (["--placement", "by_lode"], "did you mean 'by_load'"),
        (["--gpus", 2, "--cache", "lcp"], None),
        (["--gpus", 2, "--cache", "split/lru"], "--gpus 1"),
        (["--gpus", 2, "--engine", "compiled"], "--engine clock"),
        (["--gpus", 2, "--peer-cache", "1GiB"], "one GPU alone"),
        (["--gpus", 2, "--ram", "1MiB", "--slots", "50%"], "1MiB of it for experts"),
    ],
)
def test_what_cannot_be_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[object],
    message: str | None,
) -> None:
    """A wrong request names the way out."""
    code = simulate(monkeypatch, *words)
    error = capsys.readouterr().err
    if message is None:
        assert code == 0
        return
    assert code == 1
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_placement_on_one_gpu_is_said_to_decide_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is the one without the option, and its notes say so."""
    rows = []
    for words in ([], ["--placement", "by_layer"]):
        assert simulate(monkeypatch, "--json", "-", *words) == 0
        rows.append(json.loads(capsys.readouterr().out))
    assert rows[0]["run_id"] == rows[1]["run_id"]
    assert "placement by_layer decides nothing" in rows[1]["notes"]
    assert "placement" not in rows[0]["notes"]


def test_six_cards_share_the_host_and_four_do_not() -> None:
    """130 GB/s for all bind six links of 25 GB/s, and not five."""
    costs = CostModel.for_tests()
    costs.profile = load("rtx3090x6")
    assert limits_of(costs, 5) == []
    assert [(len(engines), most) for engines, most in limits_of(costs, 6)] == [(6, 130 * 10**9)]


def test_without_a_word_links_share_the_dram() -> None:
    """A profile that names nothing all GPUs cross leaves them the DRAM's bandwidth together."""
    costs = CostModel.for_tests(machine={"gpus": 4, "dram_bytes_per_s": 25 * 10**9})
    assert [most for _, most in limits_of(costs, 3)] == [25 * 10**9]
    assert limits_of(costs, 2) == []


def test_a_profile_shares_among_gpus_that_there_are() -> None:
    """A GPU that the machine lacks is named."""
    with pytest.raises(ValueError, match="different GPUs of 0 to 1"):
        round_machine(gpus=2, shared=[([0, 2], 10**9)])
    assert isinstance(round_machine(gpus=3, shared=[([0, 2], 10**9)]), HardwareProfile)
