"""The committed evidence of the phone: the fit gives it again, and simulate shows what it says."""

import json
from pathlib import Path
from typing import Any

import pytest

from moesim.simulator.commands.from_log import run_of
from moesim.simulator.fitting.engine_log import read_log
from moesim.simulator.fitting.log_fit import fit_log
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import prepare
from moesim.validation import phone


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    """Return where the evidence is."""
    return repository / "validation" / "results" / "bigmoe-phone"


@pytest.fixture(scope="module")
def committed(folder: Path) -> dict[str, Any]:
    """Return the evidence."""
    found: dict[str, Any] = json.loads((folder / "fit.json").read_text())
    return found


@pytest.fixture(scope="module")
def data(shared_data: Path) -> Path:
    """Return the folder of trace and logs."""
    return shared_data / "traces" / "bigmoe-qwen"


def test_the_fit_gives_the_committed_errors(committed: dict[str, Any], data: Path) -> None:
    """Fitting the phone's first 64 tokens again gives each figure of the unseen half."""
    log = read_log(data / "device" / phone.LOG)
    found = fit_log(run_of(data, phone.ENGINE), log)
    claim = committed["splits"][committed["claim"]]
    assert claim["log"]["sha256"] == log.sha256
    actual = {name: getattr(found.unseen, name) for name in claim["unseen_half"]}
    assert claim["unseen_half"] == pytest.approx(actual, rel=1e-3, abs=1e-5)
    assert claim["constants"]["byte_ns"] == pytest.approx(found.constants.byte_ns, rel=1e-3)


def test_the_committed_profiles_show_the_committed_times(
    committed: dict[str, Any], folder: Path, data: Path
) -> None:
    """A replay on the profiles as they lie there takes at each token what the evidence says."""
    spec = run_of(data, phone.ENGINE)
    machine, runtime = (folder / f"bigmoe-phone{end}.yaml" for end in ("", "-runtime"))
    run = RunSpec(
        spec.trace, spec.trace_name, str(machine), spec.policies, str(runtime), memory=spec.memory
    )
    actual = [gap_ns / 1e6 for gap_ns in prepare(run).replay().tokens.gaps_ns]
    expected = committed["splits"][committed["claim"]]["predicted_ms"]
    assert expected == pytest.approx(actual, rel=1e-4)


def test_the_readme_says_what_the_evidence_says(committed: dict[str, Any], folder: Path) -> None:
    """Failures included: every error of the unseen half stands in the table."""
    text = (folder / "README.md").read_text()
    unseen = committed["splits"][committed["claim"]]["unseen_half"]
    for name in ("mean", "p50", "p99", "p99_with_spread", "undisturbed_mean"):
        assert f"{unseen[name] * 100:+.1f} %" in text
    assert f"{committed['prompt']['error'] * 100:+.1f} %" in text


def test_without_folders_it_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """A missing folder is a line of usage, no traceback."""
    with pytest.raises(SystemExit):
        phone.main(["only-one"])
    assert "the following arguments are required: OUT" in capsys.readouterr().err


def test_evidence_names_the_folders_that_were_given() -> None:
    """The command in the evidence is the one that ran, without this machine's folders."""
    words = "python -m moesim.validation.phone traces/mine mine-out"
    assert words == phone.command_of(Path("traces/mine"), Path("/somewhere/mine-out"))
