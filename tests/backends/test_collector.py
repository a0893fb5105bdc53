"""The garbage collector is left as it was found."""

import gc

import pytest

from moesim.backends.collector import without_collector


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_is_off_inside_and_as_before_after(*, was_on: bool) -> None:
    """Nothing is collected inside; a collector that was off stays off, an error included."""
    (gc.enable if was_on else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError), without_collector():
            assert not gc.isenabled()
            raise ZeroDivisionError
        assert was_on == gc.isenabled()
    finally:
        gc.enable()
