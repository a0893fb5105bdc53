"""``moesim plan`` as a user calls it."""

import re
from pathlib import Path

import pytest

COSTS = ("--cost-of", "mixtral-8x7b", "--format", "int4")


def test_it_names_the_cheapest_and_says_why(cli, sample: Path) -> None:
    """A line for each machine tried, the dearer ones left out, and the answer."""
    machines = ("--hardware", "rtx5090=3500", "--hardware", "rtx4060-laptop=900")
    more = ("--hardware", "h100-sxm=30000")
    done = cli("plan", sample, *COSTS, "--requests", 1, *machines, *more, "--tpot", 45)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("rtx4060-laptop at 900: no: all of its 67 slots")
    assert any(line.startswith("rtx5090 at 3500: yes: ") for line in lines)
    assert "h100-sxm" not in done.out
    assert lines[-1].startswith("cheapest: rtx5090 with --slots ")


def test_none_that_will_do_is_exit_code_1(cli, sample: Path) -> None:
    """The reasons are printed all the same."""
    done = cli("plan", sample, *COSTS, "--requests", 1, "--hardware", "rtx4090", "--tpot", 0.001)
    assert done.code == 1
    assert done.out.startswith("rtx4090: no: all of its ")
    assert done.err == "moesim: none of the machines meets the objective\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--hardware", "rtx4090"), "no objective; give one of --tpot"),
        (("--hardware", "rtx4090=cheap", "--tpot", 5), "expected NAME=PRICE"),
        (("--hardware", "rtx4091", "--tpot", 5), "rtx4091"),
        (("--hardware", "rtx4090", "--fit", "all"), "no question of --fit 'all'; there are: batch"),
        (("--hardware", "rtx4090", "--tpot", 5, "--slots", "25%"), "--slots goes with --fit"),
        (("--hardware", "rtx4090", "--tpot", 5, "--chunk", 8), "--chunk goes with --fit prompt or"),
        (
            ("--hardware", "rtx4090", "--tpot", 5, "--max-batch", 8),
            "--max-batch goes with --fit pr",
        ),
        (
            ("--hardware", "rtx4090", "--tpot", 5, "--context-tokens", 8),
            "--context-tokens goes with --fit batch",
        ),
        (
            ("--hardware", "rtx4090", "--fit", "batch", "--requests", 2),
            "--requests goes with an obj",
        ),
        (
            ("--hardware", "rtx4090", "--fit", "batch", "--tpot", 5),
            "--tpot goes with an objective, without --fit",
        ),
        (
            ("--hardware", "rtx4090", "--fit", "batch", "--answer-tokens", 9),
            "--answer-tokens goes with --fit prompt",
        ),
        (
            ("--hardware", "rtx4090", "--fit", "prompt", "--context-tokens", 9),
            "--context-tokens goes with --fit batch",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(cli, sample: Path, words, message: str) -> None:
    """The option and the way out are named."""
    done = cli("plan", sample, *COSTS, *words)
    assert done.code == 1
    assert message in done.err
    assert done.err.count("\n") == 1


def test_what_fits_depends_on_how_it_is_asked(cli, sample: Path) -> None:
    """More requests together leave each a shorter prompt; longer ones leave room for fewer."""

    def number(*words: object) -> int:
        done = cli("plan", sample, *COSTS, "--slots", "25%", "--hardware", "rtx4090", *words)
        assert done.code == 0, done.err
        return int(re.search(r"up to (\d+) ", done.out)[1])

    alone = number("--fit", "prompt")
    assert number("--fit", "prompt", "--max-batch", 4) < alone
    assert number("--fit", "prompt", "--answer-tokens", 100) < alone
    few = number("--fit", "batch", "--context-tokens", 8192)
    assert few < number("--fit", "batch", "--context-tokens", 1024)
