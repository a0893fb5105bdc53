"""Turns forward passes of a live model into the facts of a run, and has its experts computed.

One forward pass is one step and batch is 1, as in the recorder.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import transformers
from torch import Tensor

from moesim.backends.base import RealDriver
from moesim.backends.controllers import GATES, LOOK_IN
from moesim.backends.experts import LayerWork, attach
from moesim.backends.forcing import ForcedRoutes
from moesim.backends.generation import Request, Sampling
from moesim.backends.lookahead import LookAhead
from moesim.backends.models import Model
from moesim.backends.next_token import choose_token, end_tokens
from moesim.backends.served import Look, Route, Served
from moesim.backends.store import ExpertStore
from moesim.simulator.errors import CapabilityError
from moesim.simulator.ledger import RequestTimes
from moesim.simulator.messages import (
    Fact,
    FormStep,
    LayerRouted,
    RequestArrived,
    RequestEnded,
    StepBegan,
    StepEnded,
)
from moesim.simulator.terms import Phase
from moesim.traces import RoutingTrace

Driver = RealDriver[LayerWork]


class Server:
    """Serves requests one after another; leaving it takes off the model what it put on.

    Args:
        model: Whose experts the store took.
        store: Its experts.
        driver: What obeys.
        needs: What the policies read.
        routes: A trace whose routes replace the model's own.
        horizons: How many layers ahead a policy may look.
        keeps_logits: Whether to keep the logits of every step's last position.

    Attributes:
        served: The requests, once ``serve`` was called.
    """

    def __init__(
        self,
        model: Model,
        store: ExpertStore,
        driver: Driver,
        needs: frozenset[str],
        *,
        routes: RoutingTrace | None,
        horizons: int,
        keeps_logits: bool,
    ) -> None:
        self.served: list[Served] = []
        self._model = model
        self._parts = store.parts
        self._driver = driver
        self._reads_gates = GATES in needs
        self._keeps_logits = keeps_logits
        self._step = -1
        self._routes: list[Route] = []  # of the running step, by layer
        self._looks: list[Look] = []
        self._forced: ForcedRoutes | None = None
        self._look_ahead: LookAhead | None = None
        self._decoder: Any = None
        self._captured: list[Tensor | None] = []  # residuals that the decoder writes
        with ExitStack() as on_model:
            if routes is not None:
                self._forced = ForcedRoutes(store.parts, routes)
                on_model.callback(self._forced.remove)
            if LOOK_IN in needs:
                self._look_ahead = LookAhead(store.parts, horizons)
                on_model.callback(self._look_ahead.remove)
            self._on_model = on_model.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._decoder = None
        self._on_model.close()

    @torch.inference_mode()
    def serve(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        budget_bytes: int,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        """Serve the requests as the controller forms steps of them."""
        driver = self._driver
        self.served = [
            Served(request, np.random.default_rng([sampling.seed, number]))
            for number, request in enumerate(requests)
        ]
        longest = max(len(each.prompt) + each.new_tokens(sampling) for each in requests)
        self._decoder = driver.decoder(self._model, longest)
        if self._look_ahead is not None:
            self._captured = self._look_ahead.tensors()
        self._attach()
        ends = frozenset() if sampling.ignore_eos else end_tokens(self._model)
        driver.begin_run(budget_bytes, self._arrival(0))
        while True:
            driver.await_form()
            if driver.form is None:
                return
            number = _only_request(driver.form)
            tokens = len(self.served[number].fed)
            self._serve_step(number, sampling, ends)
            if on_step is not None:
                on_step(tokens)

    def _serve_step(self, number: int, sampling: Sampling, ends: frozenset[int]) -> None:
        """Run one forward pass of one request and report what it was."""
        driver, one = self._driver, self.served[number]
        times = driver.timings.requests[number]
        if one.cache is None:
            one.cache = self._new_cache()
            times.began_ns = driver.clock_ns()
        self._step += 1
        self._routes, self._looks = [], []
        phase = Phase.PREFILL if one.position == 0 else Phase.DECODE
        if self._forced is not None:
            self._forced.begin(number, one.position, len(one.fed))
        driver.begin_step(StepBegan(self._step, (number,), (phase,), {}))
        logits = self._forward(one, phase)
        driver.settle()
        token = self._next_token(one, logits, sampling)
        times.token_ends_ns.append(driver.clock_ns())
        times.has_first_token |= phase is Phase.PREFILL
        one.keep_step(self._routes, self._looks)
        one.position += len(one.fed)
        one.tokens.append(token)
        one.fed = [token]
        is_full = len(one.tokens) == one.request.new_tokens(sampling)
        then: list[Fact] = []
        if is_full or (one.request.forced is None and token in ends):
            one.cache = None
            then = [RequestEnded(number), *self._arrival(number + 1)]
        driver.end_step(StepEnded(self._step, (1,)), then)

    def _new_cache(self) -> Any:  # noqa: ANN401  a cache of transformers
        if self._decoder is None:
            return transformers.DynamicCache(config=self._model.config)
        self._decoder.cache.reset()
        return self._decoder.cache

    def _forward(self, one: Served, phase: Phase) -> Tensor:
        """Feed what is to be fed, and return the logits of its last position."""
        if self._decoder is not None and phase is Phase.DECODE:
            if self._look_ahead is not None:
                self._look_ahead.look_at(self._captured)
            step = self._decoder.step
            after: Tensor = step(one.fed[0], self._compute_layer, self._driver.settle)
            return after
        ids = _token_ids(one.fed, next(self._model.parameters()).device)
        out = self._model(ids, past_key_values=one.cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits
        return logits[0, -1]

    def _next_token(self, one: Served, logits: Tensor, sampling: Sampling) -> int:
        if self._keeps_logits:
            one.logits.append(logits.clone())
        own = choose_token(logits, sampling.temperature, one.rng)
        return own if one.request.forced is None else one.request.forced[len(one.tokens)]

    def _attach(self) -> None:
        self._on_model.callback(
            attach(self._model, self._parts, self._serve_layer, self._driver.read)
        )

    def _serve_layer(self, layer: int, work: LayerWork) -> Tensor:
        """Have one MoE layer's experts computed and added up."""
        self._compute_layer(layer, work)
        return work.merge()

    def _compute_layer(self, layer: int, work: LayerWork) -> None:
        """Have one MoE layer's experts computed: report the choice, obey, wait."""
        first = layer * self._parts.experts
        choices = [first + expert for expert in work.choices]
        gates = work.gates_TK.half().flatten().tolist() if self._reads_gates else []
        signals = {}
        if self._look_ahead is not None:
            signals[LOOK_IN] = self._look_ahead.best(layer)
            self._looks.append(signals[LOOK_IN])
        self._driver.run_layer(LayerRouted(self._step, layer, choices, gates, signals), work)
        self._driver.await_results()
        self._routes.append((work.choices, work.gates_TK))

    def _arrival(self, number: int) -> list[Fact]:
        """Return the arrival of the next request: a user who asks again once answered."""
        if number >= len(self.served):
            return []
        request = self.served[number].request
        prompt = len(request.prompt)
        times = RequestTimes(number, self._driver.clock_ns(), -1, prompt)
        self._driver.timings.requests.append(times)
        return [RequestArrived(number, prompt, request.task)]


def _token_ids(tokens: Sequence[int], device: torch.device) -> Tensor:
    """Return a step's tokens; a single one without a copy, which would queue behind an expert's."""
    if len(tokens) == 1:
        return torch.full((1, 1), tokens[0], dtype=torch.long, device=device)
    return torch.tensor([tokens], device=device)


def _only_request(form: FormStep) -> int:
    """Return the one request of a step.

    Raises:
        CapabilityError: There are several, or a prompt is to be cut.
    """
    if len(form.requests) != 1 or form.prompt_chunks != (None,):
        raise CapabilityError(
            f"a step of requests {form.requests} in chunks {form.prompt_chunks}: an execution "
            "serves one request at a time and its prompt as a whole"
        )
    return form.requests[0]
