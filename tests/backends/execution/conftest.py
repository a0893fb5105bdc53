"""Tiny models with their experts taken, and one call that runs a system on them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

try:
    import torch

    from moesim.backends.controllers import Deciding
    from moesim.backends.execution import Keep, execute
    from moesim.backends.generation import Request, Sampling
    from moesim.backends.store import ExpertStore
    from moesim.backends.testing import resident_logits
except ModuleNotFoundError:
    torch = None  # the tests that need it skip by themselves

PROMPTS = ((5, 9, 200, 17, 33, 4), (7, 8, 9, 10))
NEW_TOKENS = 6
AXES = ("cache", "prefetch", "schedule")


@dataclass
class Offloaded:
    """A model whose experts are in a store, and what it says with all of them in place.

    Attributes:
        resident: Logits by request and step, by the same kernels.
        eager: The same by transformers' own experts.
        prompts: What it is asked.
    """

    model: Any
    store: Any
    resident: list[list[Any]]
    eager: list[list[Any]]
    prompts: tuple[tuple[int, ...], ...] = PROMPTS

    @property
    def text(self) -> list[list[int]]:
        """Return what the resident model generates."""
        return [[int(logits.argmax()) for logits in request] for request in self.resident]

    def deciding(self, policies: Mapping[str, str] | str, slots: int, **options: Any) -> Any:
        """Return policies by ``cache/prefetch/schedule``, with room for so many experts."""
        if isinstance(policies, str):
            policies = dict(zip(AXES, policies.split(" "), strict=True))
        return Deciding(policies=policies, budget_bytes=slots * max(self.store.sizes_L), **options)

    def run(self, deciding: Any, **options: Any) -> Any:
        """Execute the prompts, keeping logits and log."""
        requests = options.pop("requests", [Request(prompt=prompt) for prompt in PROMPTS])
        return execute(
            self.model,
            self.store,
            requests,
            deciding,
            options.pop("sampling", Sampling(new_tokens=NEW_TOKENS, ignore_eos=True)),
            keep=Keep(logits=True, log=True, spans=True),
            **options,
        )


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Let each stream compute on one core: more would spin against one another."""
    before = torch.get_num_threads() if torch else 1
    if torch:
        torch.set_num_threads(1)
    yield
    if torch:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def offload() -> Callable[[Any], Offloaded]:
    """Return a function that notes what a model says, then takes its experts."""

    def take(model: Any) -> Offloaded:
        eager = resident_logits(model, PROMPTS, NEW_TOKENS, "eager")
        resident = resident_logits(model, PROMPTS, NEW_TOKENS)
        return Offloaded(model, ExpertStore.take_from(model), resident, eager)

    return take


@pytest.fixture(scope="session")
def offloaded(
    make_model: Callable[[str], Any], offload: Callable[[Any], Offloaded]
) -> Callable[[str], Offloaded]:
    """Return a function that gives a family's tiny model, its experts taken; made once each."""
    made: dict[str, Offloaded] = {}

    def get(family: str) -> Offloaded:
        if family not in made:
            made[family] = offload(make_model(family))
        return made[family]

    return get
