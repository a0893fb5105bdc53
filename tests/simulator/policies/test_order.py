"""The heap that finds the lowest expert that may leave."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.simulator.policies.order import LowestFirst


class Offered:
    """Experts that may leave."""

    def __init__(self, experts: set[int]) -> None:
        self._experts = experts

    def __contains__(self, expert: int) -> bool:
        return expert in self._experts

    def __iter__(self):
        return iter(sorted(self._experts))


@given(st.data())
def test_the_lowest_is_found_after_any_changes(data: st.DataObject) -> None:
    """Keys that rise unannounced, keys put anew and experts dropped leave the answer right."""
    keys: dict[int, tuple[float, int, int]] = {}
    order = LowestFirst(keys.__getitem__)
    for serial in range(data.draw(st.integers(1, 120))):
        expert = data.draw(st.integers(0, 9))
        action = data.draw(st.sampled_from(["put", "rise", "drop", "ask"]))
        if action == "put" or (action == "rise" and expert not in order):
            keys[expert] = (data.draw(st.integers(-5, 5)), serial, expert)
            order.put(expert)
        elif action == "rise":
            keys[expert] = (keys[expert][0] + data.draw(st.integers(0, 3)), serial, expert)
        elif action == "drop":
            order.drop(expert)
        offered = {e for e in keys if e in order and data.draw(st.booleans())}
        expected = sorted(offered, key=keys.__getitem__)
        assert order.several(offered.__contains__, 3) == expected[:3]
        if offered:
            assert order.lowest(Offered(offered)) == expected[0]
        else:
            with pytest.raises(LookupError):
                order.lowest(Offered(offered))


def test_keys_that_change_together_are_entered_anew() -> None:
    """After a rebuild keys that have fallen are in their place."""
    keys = {expert: (float(10 - expert), 0, expert) for expert in range(5)}
    order = LowestFirst(lambda expert: keys[expert])
    for expert in keys:
        order.put(expert)
    keys.update({expert: (float(expert), 0, expert) for expert in keys})
    order.rebuild()
    assert order.several(keys.__contains__, 5) == [0, 1, 2, 3, 4]
