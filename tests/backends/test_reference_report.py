"""The gates' table: it says what the report says, and the repository's copy is the current one."""

import copy
import json

import pytest

pytest.importorskip("torch", reason="the reference model's package is for machines with torch")

from moesim.backends.reference.report import (
    END,
    START,
    WEIGHTS,
    gates,
    put_into,
    read_and_render,
)

REPORT = json.loads((WEIGHTS / "report.json").read_text())


def verdict(report: object, gate: str) -> str:
    """Return what the table says of a gate."""
    return next(row[4] for row in gates(report) if gate in row[0])  # type: ignore[arg-type]


def test_an_untrained_model_fails_the_gates() -> None:
    """Given the untrained model's figures as if they were reached, the routing gates are missed."""
    untrained = copy.deepcopy(REPORT)
    untrained["trained"]["overall"] = REPORT["untrained"]
    assert verdict(untrained, "random routing") == "**missed**"
    assert verdict(untrained, "own half") == "**missed**"
    assert verdict(REPORT, "random routing") == "passes"
    assert verdict(REPORT, "least load") == "passes"


def test_the_table_goes_between_its_marks() -> None:
    """What stands around the marks stays; without marks it is refused."""
    assert put_into(f"a\n{START}\nold\n{END}\nb", "new") == f"a\n{START}\nnew\n{END}\nb"
    with pytest.raises(ValueError, match="put both marks"):
        put_into("a", "new")


def test_the_committed_table_is_current() -> None:
    """The table in the README is what the command prints of the committed report."""
    readme = (WEIGHTS.parent / "README.md").read_text()
    assert put_into(readme, read_and_render([WEIGHTS])) == readme
