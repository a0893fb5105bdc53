"""What is validated: a model whose experts were taken, and the one call that serves it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

from torch import Tensor

from moesim.backends.batches import arrivals_for
from moesim.backends.collector import without_collector
from moesim.backends.controllers import Deciding, splits
from moesim.backends.execution import Execution, Keep, MakeDriver, execute
from moesim.backends.forcing import TOKENS, requests_of
from moesim.backends.generation import Request, Sampling
from moesim.backends.opening import Opened
from moesim.backends.relaying import Relaying
from moesim.simulator.commands.policies import DEFAULTS as LRU
from moesim.simulator.errors import CapabilityError, OutOfMemoryError
from moesim.simulator.memory import MemorySpec
from moesim.simulator.registry import options
from moesim.simulator.serving.arrivals import Arrivals
from moesim.simulator.serving.desk import Terms
from moesim.traces import RoutingTrace
from moesim.validation.cells import ALONE, Batching, Routing, is_slots

HORIZONS = 2
"""How far a policy looks that does not say; no trace has more."""
SETTLING = 4
"""Decode tokens after which a resident model's times count."""
Logits = list[list[Tensor]]
"""Of each step's last position, by request."""


@dataclass(slots=True, kw_only=True)
class Subject:
    """Runs anything, times nothing by itself.

    Attributes:
        opened: The model and the store of its experts.
        make_driver: The device.
        prompts: What it is asked where it routes by itself.
        new_tokens: How many for each.
        resident: Its logits then with every expert in place; None where nothing can hold them all.
        name: What evidence calls it.
        relaying: Lays the store out as the system that is served wants it.
    """

    opened: Opened
    make_driver: MakeDriver
    prompts: Sequence[Sequence[int]] = ()
    new_tokens: int = 1
    resident: Logits | None = None
    name: str = field(default="")
    relaying: Relaying = field(init=False)
    _resident_by_row: Logits | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.name = self.name or self.opened.checkpoint.name
        self.relaying = Relaying(self.opened.store)

    def budget_bytes(self, text: str, trace: RoutingTrace, batching: Batching = ALONE) -> int:
        """Return the room for experts that ``50%`` of them, ``12``, or a size of all VRAM gives.

        Args:
            text: One of them; see `is_slots`.
            trace: What is served.
            batching: Requests that run together, prompt tokens of a step.

        Raises:
            InputError: It cannot be read.
            BudgetError: Nothing is left for experts.
        """
        spec = MemorySpec(slots=text) if is_slots(text) else MemorySpec(vram=text)
        batch, chunk = batching
        return self.opened.budget_bytes(spec, int(trace.position_T.max()) + 1, batch or 1, chunk)

    def serve(
        self,
        deciding: Deciding,
        trace: RoutingTrace,
        routing: Routing = "forced",
        *,
        make_driver: MakeDriver | None = None,
        arrivals: Arrivals | None = None,
        terms: Terms | None = None,
    ) -> Execution:
        """Execute the requests of a trace from cold, keeping log and jobs.

        Args:
            deciding: The system.
            trace: What is served.
            routing: Whose routes.
            make_driver: The device, where it is not the subject's own.
            arrivals: When requests come; by default at once in a batch, else one after another.
            terms: On which terms they are served.

        Raises:
            CapabilityError: The model's own routes are wanted and the trace has no tokens.
        """
        if routing == "own" and TOKENS not in trace.signals:
            raise CapabilityError(
                "--routing own feeds the trace's tokens and it kept none; use --routing forced"
            )
        self.relaying.lay(by_row=splits(deciding.policies))
        model: Any = self.opened.checkpoint.model
        requests = requests_of(trace, model.config.get_text_config().vocab_size)
        with without_collector():
            return execute(
                model,
                self.opened.store,
                requests,
                deciding,
                Sampling(new_tokens=1, ignore_eos=True),
                routes=trace if routing == "forced" else None,
                horizons=horizons_of(deciding),
                name=self.name,
                keep=Keep(log=True, spans=True),
                make_driver=make_driver or self.make_driver,
                arrivals=arrivals or arrivals_for(deciding.policies, len(requests)),
                terms=terms,
            )

    def resident_ms(self, trace: RoutingTrace, say: Callable[[str], None]) -> float | None:
        """Return a token's median time with every expert in place; None where they do not fit.

        Args:
            trace: One request.
            say: Told if VRAM does not do for it now.
        """
        if self.resident is None:
            return None
        budget_bytes = self.opened.store.total_bytes
        try:
            done = self.serve(Deciding(policies=LRU, budget_bytes=budget_bytes), trace)
        except OutOfMemoryError as error:
            say(f"every expert in VRAM: not measured, {error}")
            return None
        ends_ns = done.timings.requests[0].token_ends_ns
        gaps_ns = [after - before for before, after in pairwise(ends_ns)][SETTLING:]
        return round(median(gaps_ns) / 1e6, 6) if gaps_ns else None

    def generate(self, deciding: Deciding) -> Execution:
        """Let the model answer the prompts on its own routes, keeping log and logits."""
        self.relaying.lay(by_row=splits(deciding.policies))
        return self._generate(deciding)

    def resident_for(self, deciding: Deciding) -> Logits | None:
        """Return the logits that a lossless system must give, to the bit.

        Products by row are sums of pieces, in a split expert as in a whole one: what splits experts
        is compared with the same products, every expert in VRAM.
        """
        if self.resident is None or not splits(deciding.policies):
            return self.resident
        if self._resident_by_row is None:
            self.relaying.lay(by_row=True)
            total = self.opened.store.total_bytes
            self._resident_by_row = self._generate(
                Deciding(policies=LRU, budget_bytes=total)
            ).logits
        return self._resident_by_row

    def _generate(self, deciding: Deciding) -> Execution:
        return execute(
            self.opened.checkpoint.model,
            self.opened.store,
            [Request(prompt=prompt) for prompt in self.prompts],
            deciding,
            Sampling(new_tokens=self.new_tokens, ignore_eos=True),
            keep=Keep(logits=True, log=True),
            make_driver=self.make_driver,
        )


def horizons_of(deciding: Deciding) -> int:
    """Return how many layers ahead the prefetch policy looks; each costs a router's time."""
    spec = deciding.specs()["prefetch"]
    defaults = {name: option.default for name, option in options(spec.cls).items()}
    chosen = {**defaults, **spec.options}
    return int(chosen.get("horizon", HORIZONS)) if spec.inner is None else HORIZONS
