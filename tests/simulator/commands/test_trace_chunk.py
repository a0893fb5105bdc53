"""``moesim trace chunk``, and what the other commands make of its folders."""

import json
from pathlib import Path

import pytest

SIMULATE = ("--hardware", "rtx4090", "--cost-of", "mixtral-8x7b", "--format", "int4")


@pytest.fixture
def folder(cli, sample: Path, tmp_path: Path) -> Path:
    """Return the sample in chunks of 300 rows or so."""
    target = tmp_path / "chunked"
    done = cli("trace", "chunk", sample, "-o", target, "--rows", 300)
    assert (done.code, done.err) == (0, f"{target}: 1904 tokens of 15 requests\n")
    return target


def test_the_other_commands_see_the_same_trace(cli, sample: Path, folder: Path) -> None:
    """Information and curves are those of the file that was cut."""
    one, other = (cli("trace", "info", path, "--json").out for path in (sample, folder))
    assert one == other
    done = cli("trace", "validate", folder)
    assert (done.code, done.out) == (0, "chunked: valid, 1904 tokens of 15 requests\n")
    curves = [cli("frontier", path).out.partition("\n")[2] for path in (sample, folder)]
    assert curves[0] == curves[1]


def test_a_run_is_the_same_run(cli, sample: Path, folder: Path) -> None:
    """The row differs in the trace's name alone: id, counts and times are equal."""
    rows = []
    for path in (sample, folder):
        words = (*SIMULATE, "--slots", "30%", "--requests", 4, "--json", "-")
        rows.append(json.loads(cli("simulate", path, *words).out) | {"trace": ""})
    assert rows[0] == rows[1]


def test_a_drawn_trace_is_synthetic_and_as_long_as_asked(cli, sample: Path, tmp_path: Path) -> None:
    """Its requests come from the source, without gates and signals where ids are enough."""
    target = tmp_path / "drawn"
    words = ("--tokens", 5_000, "--seed", 3, "--ids-only")
    assert cli("trace", "chunk", sample, "-o", target, *words).code == 0
    info = json.loads(cli("trace", "info", target, "--json").out)
    assert info["tokens"] >= 5_000
    assert (info["evidence"], info["gates"]) == ("synthetic", "none")
    assert info["notes"].endswith("drawn with replacement, seed 3")
    assert cli("trace", "validate", target).code == 0


def test_a_damaged_chunk_is_one_line(cli, folder: Path) -> None:
    """Whatever reads its rows names the file."""
    path = folder / "chunk-000001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    for words in (("trace", "validate", folder), ("simulate", folder, *SIMULATE)):
        done = cli(*words)
        assert (done.code, done.err.strip().count("\n")) == (1, 0)
        assert f"{path}: SHA-256 differs" in done.err
