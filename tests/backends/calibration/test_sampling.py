"""Probes take turns over the whole run."""

import pytest

from moesim.backends.calibration.sampling import FEWEST_ROUNDS, Probe, interleave, summarise


class Clock:
    """A clock that goes on by one second at each look."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        self.now_s += 1.0
        return self.now_s


def recorder(name: str, calls: list[str], every: int = 1) -> Probe:
    """Return a probe that writes its name down and counts its calls."""

    def sample() -> float:
        calls.append(name)
        return float(len(calls))

    return Probe(name, sample, every=every)


def test_probes_take_turns() -> None:
    """Samples of one probe lie between those of the others, in every round."""
    calls: list[str] = []
    taken = interleave([recorder("a", calls), recorder("b", calls)], 0.0)
    assert calls == ["a", "b"] * (1 + FEWEST_ROUNDS)
    assert FEWEST_ROUNDS == len(taken["a"]) == len(taken["b"])


def test_rounds_go_on_until_the_time_is_over() -> None:
    """The number of rounds follows the time that was given."""
    few = interleave([recorder("a", [])], 5.0, clock_s=Clock())
    many = interleave([recorder("a", [])], 50.0, clock_s=Clock())
    assert FEWEST_ROUNDS <= len(few["a"]) < len(many["a"])


def test_a_long_probe_takes_part_in_few_rounds() -> None:
    """A probe of every third round has a third of the samples, and one at least."""
    calls: list[str] = []
    taken = interleave(
        [recorder("short", calls), recorder("long", calls, every=3)], 30.0, clock_s=Clock()
    )
    assert -(-len(taken["short"]) // 3) == len(taken["long"])


def test_two_probes_of_one_name_are_refused() -> None:
    """Samples of different things never end up under one name."""
    with pytest.raises(ValueError, match="one name"):
        interleave([recorder("a", []), recorder("a", [])], 0.0)


def test_one_bad_burst_does_not_move_the_median() -> None:
    """A tenth of the samples may be far off; the constant stays."""
    assert summarise([100.0] * 9 + [900.0]).median == 100.0


def test_spread_is_relative() -> None:
    """Spread does not depend on the unit."""
    values = [90.0, 95.0, 100.0, 105.0, 110.0]
    assert summarise(values).spread == pytest.approx(
        summarise([1000 * value for value in values]).spread
    )
