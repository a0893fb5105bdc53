"""How cells are served, whatever their system and budget: prompts, batches, arrivals, changes.

Each option takes several values, and every combination is a setting with cells of its own: one
command, which opens the model once, measures them all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import cast

from moesim.simulator.errors import InputError
from moesim.validation.cells import Batching, split_list
from moesim.validation.intervening import Intervention, parse_intervention

AS_IT_IS = "none"
"""What ``--intervene`` says of the machine as it was calibrated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way to serve.

    Attributes:
        prompt: Tokens of each prompt; None serves prompts as they were recorded.
        batching: Requests that run together, prompt tokens of a step.
        arrivals: Who comes when; None lets them come one after another, or at once in a batch.
        seed: Of arrivals, and of what is drawn for them.
        intervention: What of the machine is changed.
    """

    prompt: int | None = None
    batching: Batching = (None, None)
    arrivals: str | None = None
    seed: int = 0
    intervention: Intervention | None = None

    @property
    def told(self) -> str:
        """What sets it apart, for a line of progress; empty where nothing does."""
        prompt, (batch, _), change = self.prompt, self.batching, self.intervention
        parts = (
            None if prompt is None else f"prompts of {prompt}",
            None if batch is None else f"batch {batch}",
            self.arrivals,
            None if change is None else change.text,
        )
        return ", ".join(part for part in parts if part)


def settings_of(
    *,
    prompt: str | None = None,
    max_batch: str | None = None,
    chunk: int | None = None,
    arrivals: str | None = None,
    seed: int = 0,
    intervene: str | None = None,
) -> tuple[Setting, ...]:
    """Return every combination of what the options say.

    Raises:
        InputError: A value is none, or is given twice.
        UnknownNameError: There is no such intervention.

    >>> [one.told for one in settings_of(max_batch="1,8", intervene="none,copies=8")]
    ['batch 1', 'batch 1, copies=8', 'batch 8', 'batch 8, copies=8']
    """
    changes = [
        None if text == AS_IT_IS else parse_intervention(text)
        for text in _items("--intervene", intervene)
    ]
    return tuple(
        Setting(
            prompt=prompt_tokens,
            batching=(batch, chunk),
            arrivals=spec,
            seed=seed,
            intervention=change,
        )
        for prompt_tokens, batch, spec, change in product(
            _counts("--prompt", prompt),
            _counts("--max-batch", max_batch),
            [arrivals] if arrivals is None else _items("--arrivals", arrivals),
            changes or [None],
        )
    )


def _items(option: str, text: str | None) -> list[str]:
    return [] if text is None else split_list(option, text)


def _counts(option: str, text: str | None) -> Sequence[int | None]:
    """Return the numbers of an option; None alone where it was not given."""
    items = _items(option, text)
    for item in items:
        if not item.isdecimal() or int(item) == 0:
            raise InputError(f"{option} {item}: give a number above 0, or several with commas")
    return [int(item) for item in items] or cast("list[int | None]", [None])
