"""Turns forward passes of a live model into the facts of a run, and has its experts computed.

One forward pass is one step, of whichever requests the controller put together: prompts, pieces of
prompts and single tokens side by side, so that it sees one union of experts in each layer.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import transformers
from torch import Tensor

from moesim.backends.base import Decoder, RealDriver
from moesim.backends.controllers import GATES, LOOK_IN
from moesim.backends.experts import Chosen, LayerWork, attach
from moesim.backends.forcing import ForcedRoutes
from moesim.backends.generation import Request, Sampling
from moesim.backends.lookahead import LookAhead
from moesim.backends.models import Model
from moesim.backends.next_token import choose_token, end_tokens
from moesim.backends.packed import Share, forward_packed
from moesim.backends.served import Look, Route, Served, keep_step
from moesim.backends.store import ExpertStore
from moesim.simulator.choices import choices_by_layer
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
from moesim.simulator.serving.arrivals import Arrivals, Users
from moesim.simulator.terms import Phase
from moesim.traces import RoutingTrace

Driver = RealDriver[LayerWork]


class Server:
    """Serves requests as the controller batches them; leaving it takes its hooks off the model.

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
        self._decoder: Decoder | None = None
        self._arrivals: Arrivals = Users(1, 0)
        self._began_ns = 0
        with ExitStack() as on_model:
            if routes is not None:
                self._forced = ForcedRoutes(store.parts, routes)
                on_model.callback(self._forced.remove)
            if LOOK_IN in needs:
                forced = self._forced
                self._look_ahead = (
                    LookAhead(store.parts, horizons)
                    if forced is None
                    else forced.look_ahead(horizons)
                )
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
        arrivals: Arrivals,
        *,
        batch: int,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        """Serve the requests as the controller forms steps of them.

        Args:
            requests: In order of arrival.
            sampling: How tokens are chosen.
            budget_bytes: Room for experts.
            arrivals: When each comes.
            batch: The most that run together.
            on_step: Told after each forward pass how many tokens went through.
        """
        driver = self._driver
        self.served = [
            Served(request, np.random.default_rng([sampling.seed, number]))
            for number, request in enumerate(requests)
        ]
        longest = max(len(each.prompt) + each.new_tokens(sampling) for each in requests)
        look = None if self._look_ahead is None else self._look_ahead.ids
        self._decoder = driver.decoder(self._model, longest, look, batch)
        self._attach()
        ends = frozenset() if sampling.ignore_eos else end_tokens(self._model)
        self._arrivals, self._began_ns = arrivals, driver.clock_ns()
        driver.begin_run(budget_bytes, self._arrive())
        while True:
            driver.await_form()
            if driver.form is not None:
                tokens = self._serve_step(driver.form, sampling, ends)
                if on_step is not None:
                    on_step(tokens)
            elif arrivals.next_ns is not None:
                driver.wait_until(self._is_somebody_there)
                driver.tell(self._arrive())
            else:
                return

    def _serve_step(self, form: FormStep, sampling: Sampling, ends: frozenset[int]) -> int:
        """Run one forward pass and report what it was; return how many tokens went through."""
        driver = self._driver
        together = [self.served[number] for number in form.requests]
        for number, one, chunk in zip(form.requests, together, form.prompt_chunks, strict=True):
            one.feed(chunk)
            if one.cache is None:
                one.cache = self._new_cache()
                driver.timings.requests[number].began_ns = driver.clock_ns()
        self._step += 1
        self._routes, self._looks = [], []
        phases = tuple(one.phase for one in together)
        gives = tuple(one.gives_token for one in together)
        if self._forced is not None:
            self._forced.begin(
                [
                    (number, one.position, len(one.fed))
                    for number, one in zip(form.requests, together, strict=True)
                ]
            )
        driver.begin_step(StepBegan(self._step, form.requests, phases, {}))
        logits_RV, best = self._forward(together)
        for at, one in enumerate(together):
            if gives[at]:
                one.tokens.append(self._next_token(one, logits_RV[at], best and best[at], sampling))
        now_ns = driver.clock_ns()
        tokens = sum(len(one.fed) for one in together)
        keep_step(together, self._routes, self._looks)
        then: list[Fact] = []
        for at, (number, one) in enumerate(zip(form.requests, together, strict=True)):
            if not gives[at]:
                continue
            times = driver.timings.requests[number]
            times.token_ends_ns.append(now_ns)
            times.has_first_token = True
            is_full = len(one.tokens) == one.request.new_tokens(sampling)
            if is_full or (one.request.forced is None and one.tokens[-1] in ends):
                self._let_go(one)
                self._arrivals.ended(now_ns - self._began_ns)
                then += [RequestEnded(number), *self._arrive()]
        driver.end_step(StepEnded(self._step, tuple(map(int, gives))), then)
        return tokens

    def _new_cache(self) -> Any:  # noqa: ANN401  a cache of transformers
        if self._decoder is None:
            return transformers.DynamicCache(config=self._model.config)
        return self._decoder.open()

    def _let_go(self, one: Served) -> None:
        if self._decoder is not None:
            self._decoder.close(one.cache)
        one.cache = None

    def _forward(self, together: Sequence[Served]) -> tuple[Tensor, Sequence[int] | None]:
        """Return the logits [R, V] after each request's last token, computed, and the best ones.

        The most probable tokens are there where what computed the logits found them too.
        """
        decoder, driver = self._decoder, self._driver
        if decoder is not None and all(one.phase is Phase.DECODE for one in together):
            fed = [(one.cache, one.fed[0]) for one in together]
            return decoder.step(fed, self._compute_captured, driver.wait_until)
        if len(together) == 1:
            (one,) = together
            ids = _token_ids(one.fed, next(self._model.parameters()).device)
            out = self._model(ids, past_key_values=one.cache, use_cache=True, logits_to_keep=1)
            logits_RV = out.logits[:, -1]
        else:
            shares = [Share(one.cache, one.position, one.fed) for one in together]
            logits_RV = forward_packed(self._model, shares)
        driver.settle()
        return logits_RV, None

    def _next_token(
        self, one: Served, logits_V: Tensor, best: int | None, sampling: Sampling
    ) -> int:
        if self._keeps_logits:
            one.logits.append(logits_V.clone())
        if one.request.forced is not None:
            return one.request.forced[len(one.tokens)]
        if best is not None and sampling.temperature == 0:
            return best
        return choose_token(logits_V, sampling.temperature, one.rng)

    def _attach(self) -> None:
        self._on_model.callback(
            attach(self._model, self._parts, self._serve_layer, self._driver.read)
        )

    def _serve_layer(self, layer: int, work: LayerWork) -> Tensor:
        """Have one MoE layer's experts computed and added up."""
        look = None if self._look_ahead is None else self._look_ahead.best(layer)
        self._compute_layer(layer, work, work.choices, work.gates_TK, look)
        merged: Tensor = self._driver.merge(work)
        return merged

    def _compute_captured(self, layer: int, work: LayerWork, seen: Any) -> None:  # noqa: ANN401  the decoder's
        """Have the experts of a layer of a captured step computed."""
        self._compute_layer(layer, work, seen.choices, seen.gates_TK, seen.look)

    def _compute_layer(
        self, layer: int, work: LayerWork, choices: Chosen, gates_TK: Tensor, look: Look | None
    ) -> None:
        """Have one MoE layer's experts computed: report the choice, obey, wait."""
        gates = gates_TK.half().flatten().tolist() if self._reads_gates else []
        signals = {}
        if look is not None:
            signals[LOOK_IN] = look
            self._looks.append(look)
        experts = _numbered(choices, layer, self._parts.experts)
        self._driver.run_layer(LayerRouted(self._step, layer, experts, gates, signals), work)
        self._driver.await_results()
        self._routes.append((choices, gates_TK))

    def _is_somebody_there(self) -> bool:
        at_ns = self._arrivals.next_ns
        return at_ns is not None and at_ns <= self._driver.clock_ns() - self._began_ns

    def _arrive(self) -> list[Fact]:
        """Return the facts of the requests that have arrived."""
        facts: list[Fact] = []
        for number, at_ns in self._arrivals.take(self._driver.clock_ns() - self._began_ns):
            request = self.served[number].request
            prompt = len(request.prompt)
            times = RequestTimes(number, self._began_ns + at_ns, -1, prompt)
            self._driver.timings.requests.append(times)
            facts.append(RequestArrived(number, prompt, request.task))
        return facts


def _numbered(choices: Chosen, layer: int, experts: int) -> Sequence[int]:
    """Return a layer's choices, numbered over all layers."""
    first = layer * experts
    if isinstance(choices, list):
        return [first + expert for expert in choices]
    ids_NLK = (choices + first).astype(np.int32).reshape(-1, 1, 1)
    return choices_by_layer(ids_NLK, first + experts)[0]


def _token_ids(tokens: Sequence[int], device: torch.device) -> Tensor:
    """Return a step's tokens; a single one without a copy, which would queue behind an expert's."""
    if len(tokens) == 1:
        return torch.full((1, 1), tokens[0], dtype=torch.long, device=device)
    return torch.tensor([tokens], device=device)

