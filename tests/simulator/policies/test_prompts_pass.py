"""A prompt passes through staging and leaves what decode uses in place."""

import pytest

from moesim.simulator.ledger import Counts
from moesim.simulator.testing import counted, small_run, trace_of

PROMPT_OF_ALL = [[[expert]] for expert in (2, 3, 4, 5)]
ANSWER = [[[0]], [[1]], [[0]], [[1]]]
TRACE = trace_of([([[[0]], [[1]]], ANSWER), (PROMPT_OF_ALL, ANSWER)], experts=6)


def served(cache: str, slots: int) -> Counts:
    """Serve an answer, a prompt of all other experts, and the same answer again."""
    return counted(small_run(TRACE, cache=cache, slots=slots)).counts


def test_the_working_set_survives_a_prompt() -> None:
    """Of 2 slots and 1 for staging, both stay with the answer; LRU with all 3 loses them."""
    guarded, plain = served("prompts_pass/lru", 3), served("lru", 3)
    assert (guarded.misses, guarded.decode_hits) == (2 + 4, 8)
    assert (plain.misses, plain.decode_hits) == (2 + 4 + 2, 6)


@pytest.mark.parametrize("slots", [5, 6])
def test_free_room_is_filled_by_prompts(slots: int) -> None:
    """A prompt fills what is free beside the working set, and evicts nothing."""
    counts = served("prompts_pass/lru", slots)
    assert counts.evictions == 0
    assert counts.misses == 2 + 4
