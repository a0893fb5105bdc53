"""Decode of several requests as captured graphs: a set of pieces for each of a few sizes.

Row b is slot b. A step replays the smallest set that has the highest slot in it; rows of nobody
are computed along, choose no expert that there is, and write where they are overwritten. All sets
share one pool of memory, for no two of them ever run at once.
"""

from collections.abc import Callable, Sequence

import torch
import transformers
from torch import Tensor

from moesim.backends.drivers.cuda.captured import Compute, Experts, Look, Pieces, Until
from moesim.backends.drivers.cuda.graphs import check_capturable, rounded
from moesim.backends.drivers.cuda.pinned import mapped, pinned_bytes, words
from moesim.backends.models import Model, MoeParts
from moesim.backends.slots import SlotCache, Slots

# B rows, V vocabulary.

TOKEN, POSITION, LIVE = range(3)
"""What the host says of a row, in words of 8 bytes."""
WORDS = 3


def sizes_to(batch: int) -> list[int]:
    """Return the sizes of which sets are captured: powers of two, and the batch itself.

    >>> sizes_to(8), sizes_to(5)
    ([1, 2, 4, 8], [1, 2, 4, 5])
    """
    return [*(1 << power for power in range((batch - 1).bit_length())), batch]


class BatchedDecode:
    """A model's decode step for up to so many requests.

    Args:
        model: Its experts may have been taken.
        parts: Its MoE blocks.
        longest: Tokens of the longest request, prompt and generation.
        batch: The most requests that run together.
        make_experts: Returns what computes the experts of so many rows.
        look: Looks ahead inside the pieces; None does not.

    Attributes:
        sets: The pieces, by rows.

    Raises:
        CapabilityError: The family's forward cannot be captured.
    """

    def __init__(
        self,
        model: Model,
        parts: MoeParts,
        longest: int,
        batch: int,
        make_experts: Callable[[int], Experts],
        look: Look | None = None,
    ) -> None:
        check_capturable(model, transformers.StaticCache(config=model.config, max_cache_len=1))
        device = next(model.parameters()).device
        sizes = sizes_to(batch)
        self._slots = Slots(model, sizes[-1], rounded(longest))
        said_B3 = pinned_bytes(sizes[-1] * WORDS * 8).view(torch.long)
        self._said = words(said_B3)
        self._said_B3 = mapped(said_B3).view(-1, WORDS)
        pool = torch.cuda.graph_pool_handle()
        self.sets: dict[int, Pieces] = {}
        for rows in reversed(sizes):  # the largest first: the others find room in its pool
            self.sets[rows] = self._captured(
                model, parts, rows, make_experts(rows), look, device, pool
            )

    def open(self) -> SlotCache:
        """Return the cache of a request that begins; its prompt goes through the model."""
        return self._slots.open()

    def close(self, cache: SlotCache) -> None:
        """Free the slot of a request that has ended."""
        self._slots.close(cache)

    def release(self) -> None:
        """Let go of all graphs, and of what they read."""
        for pieces in self.sets.values():
            pieces.release()

    def places(self, caches: Sequence[SlotCache]) -> tuple[int, list[int]]:
        """Return how many rows the smallest set has that holds these, and which are theirs."""
        slots = [cache.slot for cache in caches]
        return next(rows for rows in reversed(self.sets) if rows > max(slots)), slots

    def step(
        self, fed: Sequence[tuple[SlotCache, int]], compute: Compute, until: Until
    ) -> tuple[list[Tensor], list[int]]:
        """Return the logits [V] after one more token of each request, computed, and the best ones.

        Args:
            fed: Cache and token of each request.
            compute: Has a layer's experts computed.
            until: Waits.
        """
        rows, slots = self.places([cache for cache, _ in fed])
        self._say(rows, dict(zip(slots, (token for _, token in fed), strict=True)))
        logits_BV, best = self.sets[rows].replay(slots, compute, until)
        for cache, _ in fed:
            cache.advance()
        return [logits_BV[slot] for slot in slots], [best[slot] for slot in slots]

    def _say(self, rows: int, tokens: dict[int, int]) -> None:
        """Write what the graphs will read; they have read what was written before."""
        said = self._said
        for slot in range(rows):
            at = slot * WORDS
            said[at + TOKEN] = tokens.get(slot, 0)
            said[at + POSITION] = self._slots.position(slot)
            said[at + LIVE] = slot in tokens

    def _captured(
        self,
        model: Model,
        parts: MoeParts,
        rows: int,
        experts: Experts,
        look: Look | None,
        device: torch.device,
        pool: object,
    ) -> Pieces:
        said_B3 = self._said_B3[:rows]
        live_B1 = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        position_B = torch.zeros(rows, dtype=torch.long, device=device)
        cache = self._slots.rows(position_B)
        pieces = Pieces(parts, rows, experts, look, device, pool=pool, live_B1=live_B1)
        self._say(rows, dict.fromkeys(range(rows), 0))

        def run() -> Tensor:
            # By kernels: a copy would queue behind an expert's.
            token_B1 = said_B3[:, TOKEN : TOKEN + 1] + 0
            torch.add(said_B3[:, POSITION], 0, out=position_B)
            torch.ne(said_B3[:, LIVE : LIVE + 1], 0, out=live_B1)
            out = model(
                token_B1,
                attention_mask=cache.mask_B11M,
                position_ids=position_B[:, None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits_BV: Tensor = out.logits[:, -1]
            return logits_BV

        pieces.capture(model, run)
        return pieces
