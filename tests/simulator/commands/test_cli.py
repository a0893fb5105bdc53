"""The command line as a whole: help, lists, light imports."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from moesim.simulator import registry


def test_help_imports_nothing_heavy():
    """``moesim --help`` imports neither numpy nor simpy, torch, pandas or matplotlib."""
    code = (
        "import sys; sys.argv=['moesim','--help']\n"
        "from moesim.simulator.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy={'numpy','simpy','torch','transformers','pandas','matplotlib','pydantic','yaml'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "simulate" in done.stdout


def test_version_is_the_distribution(cli):
    """``--version`` prints the installed version."""
    assert cli("--version").out.strip() == f"moesim {version('moesim')}"


def test_policies_are_listed_and_shown(cli):
    """Every policy of every axis is listed; showing one prints options, needs and source."""
    listed = cli("policy", "list").out
    for axis in registry.AXES:
        for name in registry.names(axis):
            assert f"\n{name} " in listed
            shown = cli("policy", "show", name)
            assert shown.code == 0
            assert "source" in shown.out
    assert "option scope" in cli("policy", "show", "lru").out


def test_systems_are_listed_and_shown(cli):
    """The four systems are listed; showing one prints its policies and departures."""
    listed = cli("system", "list").out
    for name in ("mixtral-offloading", "moe-infinity-oss", "on-demand", "accelerate-like"):
        assert name in listed
        shown = cli("system", "show", name).out
        assert "departures" in shown
        assert "cache" in shown


def test_profiles_are_listed_and_shown(cli):
    """All machines are listed; a profile prints as the file that it is."""
    listed = cli("profile", "list").out
    for name in [
        "h100-sxm",
        "h200-sxm",
        "a100-40gb",
        "a100-80gb",
        "rtx3090",
        "rtx4090",
        "rtx5090",
        "a6000",
        "l40s",
    ]:
        assert f"\n{name} " in listed
    assert "memory_bandwidth: [1008 GB/s, datasheet]" in cli("profile", "show", "rtx4090").out
    runtimes = cli("profile", "list", "--runtimes").out
    assert all(name in runtimes for name in ("moesim-graph", "hf-eager", "accelerate"))


def test_a_new_profile_passes_its_check(cli, tmp_path: Path):
    """``profile new`` writes an estimated profile that ``profile check`` and a run accept."""
    words = ("--like", "rtx4090", "--vram", "32GiB", "--h2d", "28 GB/s", "--folder", tmp_path)
    assert cli("profile", "new", "mine", *words).code == 0
    path = tmp_path / "mine.yaml"
    assert cli("profile", "check", path).code == 0
    text = path.read_text()
    assert "32GiB" in text
    assert "estimated" in text
    assert "band" in text


def test_a_trace_goes_there_and_back(cli, sample: Path, tmp_path: Path):
    """Conversion to safetensors and back keeps every field; info says the same of both."""
    there, back = tmp_path / "t.safetensors", tmp_path / "b.npz"
    assert cli("trace", "convert", sample, there).code == 0
    assert cli("trace", "convert", there, back).code == 0
    assert back.read_bytes() == sample.read_bytes()
    info = cli("trace", "info", there, "--json").out
    assert info == cli("trace", "info", back, "--json").out
    assert '"evidence": "recorded"' in info
    assert "router_probs_TLE" in info


def test_any_csv_is_read_by_a_map(cli, tmp_path: Path):
    """``--map`` tells which column of a CSV is what."""
    table = tmp_path / "mine.csv"
    table.write_text("tok,lay,ids\n0,0,1 2\n0,1,0 3\n1,0,2 1\n1,1,3 2\n")
    outcome = cli("trace", "info", table, "--map", "token=tok,layer=lay,experts=ids", "--json")
    assert outcome.code == 0
    assert '"tokens": 2' in outcome.out


@pytest.mark.parametrize("command", ["plan", "frontier"])
def test_help_speaks_of_what_the_command_does(cli, command: str) -> None:
    """Where nothing arrives, nobody is told how many may arrive."""
    shown = cli(command, "--help").out
    assert "Replay the first N requests" in shown
    assert "arrive" not in shown
    assert "Who is served" not in shown


def test_help_counts_the_ways_to_say_memory_right(cli) -> None:
    """Calibrating from a log takes two of them, simulating three: the heading suits both."""
    for command in ("calibrate", "simulate"):
        assert "How much memory (one of these;" in cli(command, "--help").out
