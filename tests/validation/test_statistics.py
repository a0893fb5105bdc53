"""Spread, tolerance and rankings, on numbers computed by hand."""

import pytest

from moesim.validation.statistics import (
    P99,
    Ranking,
    is_repeatable,
    rankings,
    relative_error,
    spread,
    tolerance,
)


def test_spread_is_half_the_range_over_the_median() -> None:
    """Means of 90, 100, 110, 100 and 104 spread by 10 around 100."""
    assert spread([90.0, 100.0, 110.0, 100.0, 104.0]) == pytest.approx(0.10)
    assert spread([7.0]) == 0


@pytest.mark.parametrize(
    ("seen", "mean", "p99"),
    [
        (0.0, 0.03, 0.05),
        (0.015, 0.03, 0.05),
        (0.02, 0.04, 0.05),
        (0.03, 0.06, 0.06),
        (0.2, 0.06, 0.1),
    ],
)
def test_tolerance_is_twice_the_spread_within_limits(seen: float, mean: float, p99: float) -> None:
    """Twice the spread counts between 3 and 6 % for the mean and between 5 and 10 % for p99."""
    assert tolerance(seen) == pytest.approx(mean)
    assert tolerance(seen, P99) == pytest.approx(p99)


def test_three_percent_is_still_repeatable() -> None:
    """A spread of 3 % is repeatable, more is not."""
    assert is_repeatable(0.03)
    assert not is_repeatable(0.0301)


def test_errors_are_relative_to_the_truth() -> None:
    """A prediction of 90 for 100 is 10 % low."""
    assert relative_error(90.0, 100.0) == pytest.approx(-0.10)


def test_only_pairs_that_the_machine_repeats_are_ranked() -> None:
    """Overlapping ranges are a tie; of the others each is right or wrong."""
    measured = {"a": [10.0, 11.0], "b": [10.5, 12.0], "c": [20.0, 21.0]}
    predicted = {"a": 10.0, "b": 30.0, "c": 20.0}
    assert rankings(predicted, measured) == [Ranking("a", "c", True), Ranking("b", "c", False)]
