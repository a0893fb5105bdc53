"""Fits find what made the points, and never an impossible sign."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.backends.calibration.fitting import Check, fit, fit_line, mean_error


@given(
    base=st.floats(100.0, 1e5),
    expert=st.floats(10.0, 1e4),
    command=st.floats(10.0, 1e4),
)
def test_three_costs_are_found_again(base: float, expert: float, command: float) -> None:
    """Exact times of calls give back base, cost of an expert, cost of a command."""
    sizes = [(1, 0), (2, 2), (8, 3), (8, 16), (4, 9), (64, 65)]
    columns = [[1.0] * len(sizes), [float(e) for e, _ in sizes], [float(c) for _, c in sizes]]
    times = [base + expert * e + command * c for e, c in sizes]
    assert [base, expert, command] == pytest.approx(fit(columns, times), rel=1e-4)


def test_no_cost_is_negative() -> None:
    """Where less work took longer the slope is 0, and the base takes all."""
    found = fit([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]], [30.0, 20.0, 10.0])
    assert found[1] == 0.0
    assert 10.0 < found[0] < 30.0


def test_a_kernel_is_never_faster_than_its_floor() -> None:
    """A slope below the least is the least, with no negative rest."""
    slope, rest = fit_line([10.0, 20.0, 40.0], [6.0, 11.0, 21.0], least_slope=1.0)
    assert slope == 1.0
    assert rest == 0.0


def test_error_of_points_held_out_has_a_sign() -> None:
    """Too long a prediction is a positive error; the mean counts sizes alone."""
    checks = [Check("long", 11.0, 10.0), Check("short", 9.0, 10.0)]
    assert pytest.approx([check.error for check in checks]) == [0.1, -0.1]
    assert mean_error(checks) == pytest.approx(0.1)
    assert mean_error([]) == 0.0
