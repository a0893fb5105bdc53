"""Numbers that a captured piece posts to the host: the host spins on their words."""

import torch
from torch import Tensor

from moesim.backends.drivers.cuda.pinned import mapped, pinned_bytes, words

# S values, T tokens, K chosen.

STAMP_BITS = 32
"""A word's upper half is the number of the launch."""
STAMP = 1 << STAMP_BITS
"""What the words of one launch are larger by than those of the launch before."""
VALUE = STAMP - 1
SIGN = 1 << 31
ID = (1 << 16) - 1
"""Where gates go along, the lower half of a word's lower half is the value."""


class Posted:
    """A few words, written anew by each replay of the piece that posts them.

    Args:
        count: How many.
        device: The GPU.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        # Here, not above: it needs triton, which has no wheel for every machine.
        from moesim.backends.drivers.cuda.kernels import posting  # noqa: PLC0415

        self._post = posting.post
        self._words_S = pinned_bytes(count * 8).view(torch.long)
        self._seen_S = mapped(self._words_S)
        self._launches_1 = torch.zeros(1, dtype=torch.long, device=device)
        self._words = words(self._words_S)
        self._last = count - 1
        self._stamp = 0
        self._has_gates = False

    def post(self, values: Tensor, gates: Tensor | None = None) -> None:
        """Launch what posts; captured, it does so with each replay."""
        if gates is not None:
            self._has_gates = True
            gates = gates.reshape(-1)
        self._post(values.reshape(-1), gates, self._launches_1, self._seen_S)

    def expect(self) -> None:
        """From now on wait for the words of one more launch."""
        self._stamp += STAMP

    def has_come(self) -> bool:
        """Return whether all words that are expected are there."""
        words, stamp = self._words, self._stamp
        return words[self._last] >= stamp and min(words) >= stamp

    def values(self) -> list[int]:
        """Return the values, once they have come; a copy."""
        if self._has_gates:
            return [word & ID for word in self._words]
        return [((word & VALUE) ^ SIGN) - SIGN for word in self._words]

    def gates(self, top_k: int) -> Tensor:
        """Return the gates [T, K] in float16, where they are: the next launch writes others."""
        return self._words_S.view(torch.float16).view(-1, 4)[:, 1].view(-1, top_k)
