"""The gates' table: it says what the reports say, and the repository's copy is the current one."""

import copy
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference model's package is for machines with torch")
pytest.importorskip("transformers", reason="the reference model is one of transformers")

from moesim.backends.reference import report as report_module
from moesim.backends.reference.foretelling import HORIZONS, SAMPLE, recall, untrained_model
from moesim.backends.reference.report import (
    END,
    FOLDER,
    MISSED,
    RECALL,
    SCRATCH,
    START,
    UPCYCLED,
    WEIGHTS,
    gates,
    main,
    put_into,
    read_and_render,
)
from moesim.traces import load, synthetic

REPORT = json.loads(SCRATCH.read_text())


def verdict(report: object, gate: str, scratch: object = REPORT) -> str:
    """Return what the table says of a gate."""
    return next(row[4] for row in gates(report, scratch) if gate in row[0])  # type: ignore[arg-type]


def test_an_untrained_model_fails_the_gates() -> None:
    """Given the untrained model's figures as if they were reached, the routing gates are missed."""
    untrained = copy.deepcopy(REPORT)
    untrained["trained"]["overall"] = REPORT["untrained"]
    assert verdict(untrained, "random routing") == MISSED
    assert verdict(untrained, "own half") == MISSED
    assert verdict(untrained, "least load") == MISSED
    assert verdict(REPORT, "random routing") == "passes"
    assert verdict(REPORT, "own half") == "passes"
    assert verdict(REPORT, "least load") == "passes"


def test_an_upcycled_model_must_depend_less_on_its_routes() -> None:
    """Random routing passes at half of what it costs in scratch, and is missed above."""
    upcycled = json.loads(UPCYCLED.read_text())
    assert verdict(upcycled, "random routing") == "passes"
    as_much = copy.deepcopy(upcycled)
    as_much["trained"]["overall"] = REPORT["trained"]["overall"]
    assert verdict(as_much, "random routing") == MISSED


@pytest.mark.parametrize("missed", [False, True])
def test_a_missed_gate_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missed: bool
) -> None:
    """Where all pass the code is 0."""
    passing = copy.deepcopy(REPORT)
    passing["provenance"]["upcycled"] = False
    if missed:
        passing["trained"]["overall"]["least_load_over_even"] = 0.2
    path = tmp_path / "report.json"
    path.write_text(json.dumps(passing))
    monkeypatch.setattr(report_module, "UPCYCLED", path)
    monkeypatch.setattr(sys, "argv", ["report"])
    assert main() == int(missed)


def test_a_report_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says which and what makes it; the code is 1."""
    monkeypatch.setattr(report_module, "RECALL", tmp_path / "recall.json")
    monkeypatch.setitem(report_module.REBUILD, tmp_path / "recall.json", "foretelling")
    monkeypatch.setattr(sys, "argv", ["report"])
    assert main() == 1
    told = capsys.readouterr().err
    assert "recall.json: not there; make it with: python -m moesim.backends" in told
    assert told.count("\n") == 1


def test_the_table_goes_between_its_marks() -> None:
    """What stands around the marks stays; without marks it is refused."""
    assert put_into(f"a\n{START}\nold\n{END}\nb", "new") == f"a\n{START}\nnew\n{END}\nb"
    with pytest.raises(ValueError, match="put both marks"):
        put_into("a", "new")


def test_the_committed_table_is_current() -> None:
    """The table in the README is what the command prints of the committed reports."""
    readme = (FOLDER / "README.md").read_text()
    assert put_into(readme, read_and_render()) == readme


def test_the_recall_is_of_the_weights_and_texts_that_ship() -> None:
    """Its hashes are theirs; look-ahead foretells more than a table, a table than popularity."""
    found = json.loads(RECALL.read_text())
    assert (
        hashlib.sha256((WEIGHTS / "model.safetensors").read_bytes()).hexdigest()
        == found["weights_sha256"]
    )
    token_T = np.ascontiguousarray(load(SAMPLE).signals["token_T"], dtype="<i4")
    assert hashlib.sha256(token_T.tobytes()).hexdigest() == found["texts_sha256"]
    trained = found["trained"]
    for ahead in range(HORIZONS):
        assert trained["popular"][0] < trained["table"][ahead] < trained["look_in"][ahead]
        assert trained["look_in"][ahead] < trained["look_out"][ahead]


def test_recall_has_a_figure_for_every_way_and_horizon() -> None:
    """Three horizons for a table and each tap, one figure for popularity."""
    trace = synthetic.uniform(seed=0, layers=5, experts=8, top_k=2, horizons=3)
    found = recall(trace)
    assert {name: len(figures) for name, figures in found.items()} == {
        "popular": 1,
        "table": 3,
        "look_in": 3,
        "look_out": 0,
    }


def test_the_untrained_model_is_the_reference_shape() -> None:
    """It has the parameters of the weights that ship, and its seed decides them."""
    first, second = untrained_model(1), untrained_model(1)
    assert sum(parameter.numel() for parameter in first.parameters()) == 11_977_152
    one, other = next(first.parameters()), next(second.parameters())
    assert bool((one == other).all())
