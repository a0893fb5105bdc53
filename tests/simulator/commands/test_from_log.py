"""``moesim calibrate --from-log``, from the words typed to profiles that simulate reads."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moesim.simulator.commands.from_log import Engine, run_of
from moesim.simulator.fitting.log_fit import decode_bytes
from moesim.simulator.runs import prepare
from moesim.traces import synthetic, write

ROOM = ("--cache", "lru", "--slots", "50%")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Return a trace that knows its bytes, 60 decode steps."""
    made = synthetic.sticky(seed=5, requests=2, prompt_tokens=2, decode_tokens=30)
    header = made.header.model_copy(
        update={"expert_bytes": (10**6,) * 4, "dense_bytes": (10**6,) * 4}
    )
    path = tmp_path / "made.npz"
    write(replace(made, header=header), path)
    return path


@pytest.fixture
def log(trace: Path, tmp_path: Path) -> Path:
    """Return the log of a machine that takes 3 ms a token and 1 ns for each missed byte."""
    spec = run_of(trace, Engine(cache="lru", slots="50%"))
    missed = decode_bytes(prepare(replace(spec, hardware="rtx4090")))
    path = tmp_path / "tokens.csv"
    rows = [f"{step},{3 + nbytes / 1e6:.6f},{nbytes:.0f}" for step, nbytes in enumerate(missed)]
    path.write_text("\n".join(["step,wall_ms,read_bytes", *rows, ""]))
    return path


def test_it_fits_half_and_says_its_error_on_the_other(
    cli, log: Path, trace: Path, tmp_path: Path
) -> None:
    """Two profiles, a record and a table; simulate then takes as long as the log says."""
    out, record = tmp_path / "theirs.yaml", tmp_path / "fit.json"
    done = cli("calibrate", "--from-log", log, "--trace", trace, *ROOM, "-o", out, "--json", record)
    assert done.code == 0
    assert "3.00 ms a token, 1.000 GB/s for what is missed" in done.out
    assert "the replay's are +0.00% off the log's" in done.out
    fit = json.loads(record.read_text())
    assert fit["unseen_half"]["rows"] == 30
    assert abs(fit["unseen_half"]["mean"]) < 0.01
    runtime = tmp_path / "theirs-runtime.yaml"
    words = ("--hardware", out, "--runtime", runtime, "--json", "-")
    replayed = json.loads(cli("simulate", trace, *ROOM, *words).out)
    assert pytest.approx(sum(fit["measured_ms"]) / 60, rel=0.01) == replayed["mean_tpot_ms"]
    assert replayed["evidence"] == "estimated"


def test_same_log_same_bytes(cli, log: Path, trace: Path, tmp_path: Path) -> None:
    """Calibrating twice writes the same files."""
    names = ("theirs.yaml", "theirs-runtime.yaml", "fit.json")
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        words = ("-o", folder / names[0], "--json", folder / names[2])
        assert cli("calibrate", "--from-log", log, "--trace", trace, *ROOM, *words).code == 0
        written.append([(folder / name).read_bytes() for name in names])
    assert written[0] == written[1]


def test_log_and_trace_go_together(cli, log: Path, tmp_path: Path) -> None:
    """One without the other is told in a line, and nothing is written."""
    out = tmp_path / "theirs.yaml"
    done = cli("calibrate", "--from-log", log, "-o", out)
    assert done.code != 0
    assert "give --from-log and --trace together" in done.err
    assert not out.exists()


def test_a_faulty_row_is_one_line_and_writes_nothing(cli, trace: Path, tmp_path: Path) -> None:
    """File, line and value; no half of a profile is left."""
    log, out = tmp_path / "bad.csv", tmp_path / "theirs.yaml"
    log.write_text("step,wall_ms\n1,12\n2,never\n")
    done = cli("calibrate", "--from-log", log, "--trace", trace, *ROOM, "-o", out)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "line 3: wall_ms is 'never'" in done.err
    assert not out.exists()
