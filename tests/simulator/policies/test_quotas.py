"""How budgets are shared."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from moesim.simulator.policies.base import RunInfo
from moesim.simulator.policies.quotas import split, staging_bytes, trim

MakeRun = Callable[..., RunInfo]


def test_equal_shares_are_whole_slots_and_none_is_lost(make_run: MakeRun) -> None:
    """Eleven slots over three layers are 4, 4 and 3, in experts of ten bytes."""
    run = make_run(expert_bytes_L=(10, 10, 10), budget_bytes=115)
    assert split(run, "per_layer") == [40, 40, 30]
    assert split(run, "global") is None
    assert split(run, "per_layer", reserved_bytes=200) == [0, 0, 0]


def test_unequal_experts_get_equal_bytes(make_run: MakeRun) -> None:
    """Layers of larger experts hold fewer of them."""
    run = make_run(expert_bytes_L=(10, 20, 30), budget_bytes=100)
    assert split(run, "per_layer") == [33, 33, 33]


def test_staging_is_for_the_largest_expert(make_run: MakeRun) -> None:
    """By default one token's experts of one layer fit, whichever layer it is."""
    run = make_run(expert_bytes_L=(10, 20, 30))
    assert (staging_bytes(run, None), staging_bytes(run, 5)) == (60, 150)


@given(quotas=st.lists(st.integers(0, 9), min_size=3, max_size=3), room_bytes=st.integers(-5, 30))
def test_trimmed_quotas_fit_and_stay_as_even_as_they_were(
    quotas: list[int], room_bytes: int
) -> None:
    """Slots are taken one at a time from the largest, never more than needed."""
    run = RunInfo(3, 9, 1, (1, 1, 1), 0, None, None)  # type: ignore[arg-type]  # not asked
    trimmed = trim(run, quotas, room_bytes)
    assert sum(trimmed) == min(sum(quotas), max(0, room_bytes))
    assert all(0 <= after <= before for before, after in zip(quotas, trimmed, strict=True))
    shrunk = [after for before, after in zip(quotas, trimmed, strict=True) if after < before]
    if shrunk:
        assert max(trimmed) <= min(shrunk) + 1
