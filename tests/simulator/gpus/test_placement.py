"""Where experts live: four placements, each a pure function."""

import pytest

from moesim.simulator.errors import CapabilityError, InputError, UnknownNameError
from moesim.simulator.gpus.placement import PLACEMENTS, coactivations, place
from moesim.simulator.testing import tiny_trace, trace_of


@pytest.mark.parametrize("name", PLACEMENTS)
@pytest.mark.parametrize("gpus", [2, 3, 4])
def test_every_expert_has_a_home_and_no_gpu_falls_behind(name: str, gpus: int) -> None:
    """Spread placements differ by one expert at most, in a layer and overall."""
    trace = tiny_trace(layers=4, experts=9)
    home = place(name, 4, 9, gpus, trace)
    assert home == place(name, 4, 9, gpus, trace)
    assert len(home) == 36
    assert set(home) == set(range(gpus))
    if name != "by_layer":
        for part in (home, home[:9], home[9:18], home[18:27], home[27:]):
            counts = [part.count(gpu) for gpu in range(gpus)]
            assert max(counts) - min(counts) <= 1


def test_layers_stay_whole_and_in_turn() -> None:
    """Five layers on two GPUs are three and two."""
    assert place("by_layer", 5, 2, 2) == (0, 0, 0, 0, 0, 0, 1, 1, 1, 1)


def test_what_is_used_most_is_spread_by_load() -> None:
    """Loads of 4, 3, 2 and 1 on two GPUs make 4 + 1 and 3 + 2."""
    rows = [[[0]]] * 4 + [[[1]]] * 3 + [[[2]]] * 2 + [[[3]]]
    assert place("by_load", 1, 4, 2, trace_of([([], rows)], experts=4)) == (0, 1, 1, 0)


def test_what_is_chosen_together_is_kept_apart() -> None:
    """Experts 0 and 2 are always one token's, as are 1 and 3: each pair is on two GPUs."""
    trace = trace_of([([], [[[0, 2]]] * 5 + [[[1, 3]]] * 4)], experts=4)
    assert coactivations(trace)[0].tolist() == [
        [0, 0, 5, 0],
        [0, 0, 0, 4],
        [5, 0, 0, 0],
        [0, 4, 0, 0],
    ]
    home = place("by_coactivation", 1, 4, 2, trace)
    assert home[0] != home[2]
    assert home[1] != home[3]


def test_a_placement_that_counts_wants_something_to_count() -> None:
    """Without a profile trace it is refused with the way out, as is a name that there is not."""
    with pytest.raises(CapabilityError, match="--profile-trace"):
        place("by_load", 1, 4, 2)
    with pytest.raises(InputError, match="1 layers are too few"):
        place("by_layer", 1, 4, 2)
    with pytest.raises(UnknownNameError, match="did you mean 'by_layer'"):
        place("by_layers", 1, 4, 2)
