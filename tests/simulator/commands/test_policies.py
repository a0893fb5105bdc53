"""Policies from elsewhere on the command line: named, told apart, refused in one line."""

from pathlib import Path

import pytest

HEAD = "from moesim.simulator.policies.base import *\nfrom moesim.simulator.terms import *\n"
FORM = (
    "class Mine(SchedulePolicy):\n    def plan(self, demand, view):\n"
    "        return [Group(GPU, demand.experts)]\n"
)


def test_another_policy_under_the_same_name_is_another_run(simulate, tmp_path: Path) -> None:
    """The run's id covers the code of a policy that is not ours."""
    mine = tmp_path / "mine.py"
    ids = []
    for end in ("0", "-1"):
        mine.write_text(
            HEAD + "class Mine(CachePolicy):\n    def choose_victim(self, evictable, view):\n"
            f"        return sorted(evictable)[{end}]\n"
        )
        out = simulate("--slots", "25%", "--policy-module", f"{mine}:Mine", "--json", "-").out
        ids.append([line for line in out.splitlines() if "run_id" in line])
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("    def form(self, waiting, running, view):\n        return [77]\n", "formed a step of"),
        ("    def form(self, waiting, running, view):\n        return []\n", "formed no step"),
    ],
)
def test_a_schedule_that_forms_nonsense_is_refused(
    simulate, tmp_path: Path, text: str, expected: str
) -> None:
    """Requests that were not offered, and no requests at all, end the run in one line."""
    mine = tmp_path / "mine.py"
    mine.write_text(HEAD + FORM + text)
    outcome = simulate("--slots", "25%", "--policy-module", f"{mine}:Mine")
    assert outcome.code == 1
    assert expected in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("[Group(Device('npu'), demand.experts)]", "plans for"),
        ("[Group(CPU, demand.experts)]", "does not say so"),
    ],
)
def test_a_device_that_is_not_there_or_not_declared_is_refused(
    simulate, tmp_path: Path, plan: str, expected: str
) -> None:
    """A plan for another device, or for the CPU undeclared, ends the run in one line."""
    mine = tmp_path / "mine.py"
    mine.write_text(HEAD + FORM.replace("[Group(GPU, demand.experts)]", plan))
    outcome = simulate("--slots", "25%", "--policy-module", f"{mine}:Mine")
    assert outcome.code == 1
    assert expected in outcome.err


@pytest.mark.parametrize("text", ["class Mine(:\n", "import nowhere_to_be_found\n", ""])
def test_a_file_that_is_no_policy_is_one_line(simulate, tmp_path: Path, text: str) -> None:
    """A syntax error, a missing import and a missing class name the file."""
    mine = tmp_path / "mine.py"
    mine.write_text(text)
    outcome = simulate("--slots", "25%", "--policy-module", f"{mine}:Mine")
    assert outcome.code == 1
    assert "mine.py" in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_wrong_plot_or_csv_is_refused_before_the_run(simulate, tmp_path: Path) -> None:
    """Nothing is written if one of the outputs cannot be."""
    taken = tmp_path / "taken.csv"
    taken.write_text("a,b\n")
    outcome = simulate("--slots", "25%", "--csv", taken, "--plot", tmp_path / "x.png")
    assert outcome.code == 1
    assert not (tmp_path / "x.png").exists()


def test_cpu_experts_beside_copies_are_noted(simulate) -> None:
    """What the model leaves out stands in the notes of the run that it concerns."""
    out = simulate("--slots", "25%", "--schedule", "cheaper", "--json", "-").out
    assert "CPU experts are charged" in out
