"""``validate --check`` reads a fitted log too: its errors follow from its tokens."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from moesim.simulator.errors import InputError
from moesim.validation.commands import validate

app = typer.Typer()
app.command()(validate)


def check(*options: object) -> Any:
    """Run the command; a user's error is raised."""
    result = CliRunner().invoke(app, ["--check", *map(str, options)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def folder(repository: Path, tmp_path: Path) -> Path:
    """Return a copy of the phone's evidence."""
    path = tmp_path / "phone"
    shutil.copytree(repository / "validation" / "results" / "bigmoe-phone", path)
    return path


def edited(folder: Path, change: Any) -> Path:
    """Change the evidence and return its folder."""
    path = folder / "fit.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    return folder


def test_the_phone_is_judged_by_its_own_noise(folder: Path) -> None:
    """The claim's mean is within twice the spread of the phone's own passes; its p99 is told."""
    result = check(folder)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "mean of the first half's claim -3.8%, 4.6% is allowed: within target" in lines
    assert any("-32.6%: two passes of the phone differ by 8.7%" in line for line in lines)
    assert sum(line.startswith(("first ", "second ", "even ")) for line in lines) == 3


def test_a_claim_beyond_the_noise_exits_1(folder: Path) -> None:
    """Were the phone to repeat its mean better, 3.8 % would miss."""

    def change(tree: Any) -> None:
        tree["noise"]["spread_of_mean"] = 0.001

    result = check(edited(folder, change))
    assert result.exit_code == 1
    assert "-3.8%, 3.0% is allowed: missed" in result.stdout


def test_an_error_that_does_not_follow_is_refused(folder: Path) -> None:
    """The split, the figure and both values are named."""

    def change(tree: Any) -> None:
        tree["splits"]["second"]["unseen_half"]["mean"] = 0.01

    with pytest.raises(InputError, match=r"splits.second.unseen_half.mean: 0.01 does not follow"):
        check(edited(folder, change))


def test_what_is_no_fit_is_refused(folder: Path) -> None:
    """A missing key is named, and so is a file that is none."""
    with pytest.raises(InputError, match=r"fit.json: 'noise': is missing or is no figure"):
        check(edited(folder, lambda tree: tree.pop("noise")))
    (folder / "fit.json").write_text("{")
    with pytest.raises(InputError, match=r"fit.json: is no JSON"):
        check(folder)


def test_options_of_cells_are_refused(folder: Path, tmp_path: Path) -> None:
    """A log has no cells to draw or to list."""
    with pytest.raises(InputError, match=r"--json .*: is of cells, and .*phone has none"):
        check(folder, "--json", tmp_path / "x.json")


def test_evidence_of_another_kind_is_told(repository: Path) -> None:
    """What is neither cells nor a log says where to read what it is."""
    with pytest.raises(InputError, match=r"emoe-periods: no evidence of any cell; .*README.md"):
        check(repository / "validation" / "results" / "emoe-periods")
