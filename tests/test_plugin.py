"""A plug-in outside the tree is found by name, checked by its own tests, and runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def plugin(repository: Path, tmp_path: Path) -> dict[str, str]:
    """Install the sample plug-in as an installer would, and return the environment that sees it.

    A distribution is a folder on the path with a ``dist-info`` beside its packages; making that by
    hand needs no network.
    """
    sample = repository / "tests" / "plugin_sample"
    site = tmp_path / "site"
    site.mkdir()
    (site / "stamp_collector").symlink_to(sample / "stamp_collector")
    info = site / "stamp_collector-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stamp-collector\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[moesim.policies.cache]\nsecond_chance = stamp_collector.second_chance:SecondChance\n"
    )
    return {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "100"}


def run(words: list[str], environment: dict[str, str], cwd: Path) -> str:
    """Run a command in the plug-in's environment and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        check=False,
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_entry_point_is_listed_and_runs(plugin, repository: Path, tmp_path: Path) -> None:
    """Once installed, a plug-in's policy is named like a built-in, options and all."""
    cli = "moesim.simulator.cli"
    assert "second_chance" in run([cli, "policy", "list", "cache"], plugin, tmp_path)
    assert "chances" in run([cli, "policy", "show", "second_chance"], plugin, tmp_path)
    sample = repository / "traces" / "samples" / "reference-12x32.npz"
    words = [cli, "simulate", str(sample), "--hardware", "rtx4090", "--slots", "25%"]
    options = ["--cost-of", "mixtral-8x7b", "--format", "int4", "--requests", "1"]
    table = run([*words, *options, "--cache", "second_chance:chances=2"], plugin, tmp_path)
    assert "second_chance:chances=2" in table


def test_its_own_tests_pass_with_the_fixtures_of_moesim(
    plugin, repository: Path, tmp_path: Path
) -> None:
    """Pytest finds ``tiny_trace``, ``view`` and ``adversarial_driver`` through moesim's plug-in."""
    name = "test_second_chance.py"
    shutil.copy(repository / "tests" / "plugin_sample" / name, tmp_path / name)
    out = run(["pytest", "-q", "-p", "no:cacheprovider", name], plugin, tmp_path)
    assert "4 passed" in out
