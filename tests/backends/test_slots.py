"""Slots hold what a request attends to: prompts by themselves or packed, then rows of tokens."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="caches are tensors")
pytest.importorskip("transformers", reason="they are caches of its models")

from moesim.backends.packed import Share, forward_packed  # noqa: E402 - after the skip
from moesim.backends.slots import Slots  # noqa: E402
from moesim.backends.testing import resident_logits  # noqa: E402

FAMILIES = ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe", "DeepseekV2", "DeepseekV3")
PROMPTS = ((5, 9, 200, 17, 33, 4), (7, 8, 9, 10), (250, 3, 3))
NOISE = 2e-5
"""Of the largest logit: products and attention of other sizes."""
NEW_TOKENS = 5
ROOM = 16


def token_after(logits: Any) -> int:
    """Return the most probable token."""
    return int(logits.argmax())


def rows_forward(model: Any, slots: Slots, tokens: Sequence[int], positions: list[int]) -> Any:
    """Run a decode step of the first slots, as graphs capture it."""
    cache = slots.rows(torch.tensor(positions))
    out = model(
        torch.tensor(tokens)[:, None],
        attention_mask=cache.mask_B11M,
        position_ids=torch.tensor(positions)[:, None],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1]


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_packed", [False, True], ids=["alone", "packed"])
def test_rows_say_what_each_request_says_alone(
    make_model: Callable[[str], Any], family: str, is_packed: bool
) -> None:
    """Prompts into slots, then tokens in rows: each request's logits, with an idle row between."""
    model = make_model(family)
    alone = resident_logits(model, PROMPTS, NEW_TOKENS)
    slots = Slots(model, 4, ROOM)
    unused = [slots.open(), slots.open()][1]
    first = forward_alone(model, slots, PROMPTS[0])
    assert first[0].slot == 2
    slots.close(unused)  # two are left, which need two rows: it moves down
    caches = [first[0], slots.open(), slots.open()]
    assert [cache.slot for cache in caches] == [1, 2, 3]
    if is_packed:
        shares = [Share(c, 0, list(p)) for c, p in zip(caches[1:], PROMPTS[1:], strict=True)]
        logits = [first[1], *forward_packed(model, shares)]
    else:
        logits = [first[1]] + [
            model(torch.tensor([list(p)]), past_key_values=c, use_cache=True).logits[0, -1]
            for c, p in zip(caches[1:], PROMPTS[1:], strict=True)
        ]
    ours = [[one] for one in logits]
    for _ in range(NEW_TOKENS - 1):
        fed = {c.slot: token_after(o[-1]) for c, o in zip(caches, ours, strict=True)}
        positions = [slots.position(slot) for slot in range(4)]
        step = rows_forward(model, slots, [fed.get(slot, 0) for slot in range(4)], positions)
        for cache, mine in zip(caches, ours, strict=True):
            cache.advance()
            mine.append(step[cache.slot])
    for mine, theirs in zip(ours, alone, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert float((a - b).abs().max() / b.abs().max()) <= NOISE
            assert token_after(a) == token_after(b)


def forward_alone(model: Any, slots: Slots, prompt: Sequence[int]) -> Any:
    """Send a prompt through the model in two pieces; return its cache and the logits after it."""
    cache = slots.open()
    for piece in (prompt[:4], prompt[4:]):
        out = model(torch.tensor([list(piece)]), past_key_values=cache, use_cache=True)
    return cache, out.logits[0, -1]


@torch.inference_mode()
def test_a_request_that_sits_out_keeps_its_place(make_model: Callable[[str], Any]) -> None:
    """A row of a request that is not served is computed along and changes nothing of it."""
    model = make_model("Mixtral")
    (alone,) = resident_logits(model, PROMPTS[:1], 3)
    slots = Slots(model, 2, ROOM)
    cache = slots.open()
    out = model(torch.tensor([PROMPTS[0]]), past_key_values=cache, use_cache=True)
    token = token_after(out.logits[0, -1])

    rows_forward(model, slots, [99, 0], [slots.position(0), slots.position(1)])

    logits = rows_forward(model, slots, [token, 0], [slots.position(0), slots.position(1)])[0]
    assert float((logits - alone[1]).abs().max() / alone[1].abs().max()) <= NOISE


def test_the_last_ones_move_into_few_rows(make_model: Callable[[str], Any]) -> None:
    """Of five, the four that are left need four rows; the two that are left then need two."""
    slots = Slots(make_model("Mixtral"), 8, ROOM)
    caches = [slots.open() for _ in range(5)]
    slots.close(caches[1])
    assert [cache.slot for cache in caches] == [0, 1, 2, 3, 1]
    slots.close(caches[0])  # three need four rows, as before
    assert [cache.slot for cache in caches[2:]] == [2, 3, 1]
    slots.close(caches[2])
    assert [cache.slot for cache in caches[3:]] == [0, 1]
    slots.close(caches[4])
    slots.close(caches[3])
    assert slots.open().slot == 0


def test_a_free_slot_is_taken_again(make_model: Callable[[str], Any]) -> None:
    """The lowest free slot is next, and more requests than slots are a mistake of the caller."""
    slots = Slots(make_model("Mixtral"), 2, ROOM)
    first, second = slots.open(), slots.open()
    slots.close(first)
    assert (second.slot, slots.open().slot, slots.position(1)) == (0, 1, 0)
    with pytest.raises(ValueError, match="not in list"):
        slots.open()
