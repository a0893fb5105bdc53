"""``moesim plan`` as a user calls it."""

from pathlib import Path

import pytest

COSTS = ("--requests", 1, "--cost-of", "mixtral-8x7b", "--format", "int4")


def test_it_names_the_cheapest_and_says_why(cli, sample: Path) -> None:
    """A line for each machine tried, the dearer ones left out, and the answer."""
    machines = ("--hardware", "rtx5090=3500", "--hardware", "rtx4060-laptop=900")
    more = ("--hardware", "h100-sxm=30000")
    done = cli("plan", sample, *COSTS, *machines, *more, "--tpot", 45)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("rtx4060-laptop at 900: no: does not fit")
    assert any(line.startswith("rtx5090 at 3500: yes: ") for line in lines)
    assert "h100-sxm" not in done.out
    assert lines[-1].startswith("cheapest: rtx5090 with --slots ")


def test_none_that_will_do_is_exit_code_1(cli, sample: Path) -> None:
    """The reasons are printed all the same."""
    done = cli("plan", sample, *COSTS, "--hardware", "rtx4090", "--tpot", 0.001)
    assert done.code == 1
    assert done.out.startswith("rtx4090: no: all of its ")
    assert done.err == "moesim: none of the machines meets the objective\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--hardware", "rtx4090"), "no objective; give one of --tpot"),
        (("--hardware", "rtx4090=cheap", "--tpot", 5), "expected NAME=PRICE"),
        (("--hardware", "rtx4091", "--tpot", 5), "rtx4091"),
    ],
)
def test_what_cannot_be_done_is_one_line(cli, sample: Path, words, message: str) -> None:
    """The option and the way out are named."""
    done = cli("plan", sample, *COSTS, *words)
    assert done.code == 1
    assert message in done.err
    assert done.err.count("\n") == 1
