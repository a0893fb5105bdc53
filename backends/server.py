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
from torch import Tensor

from moesim.backends.base import RealDriver
from moesim.backends.controllers import GATES, LOOK_IN, ROUTER_PROBS
from moesim.backends.experts import Chosen, LayerWork, attach
from moesim.backends.forcing import ForcedRoutes
from moesim.backends.forwards import Forwards
from moesim.backends.generation import Request, Sampling
from moesim.backends.lookahead import LookAhead
from moesim.backends.models import Model
from moesim.backends.next_token import draw_token, end_tokens
from moesim.backends.router_watch import RouterWatch
from moesim.backends.served import Look, Route, Served, keep_step
from moesim.backends.store import ExpertStore
from moesim.backends.told import ToldSignals
from moesim.simulator.choices import choices_by_layer
from moesim.simulator.errors import CapabilityError
from moesim.simulator.messages import FormStep, LayerRouted, StepBegan, StepEnded
from moesim.simulator.serving.arrivals import Arrivals, Later
from moesim.simulator.serving.desk import Desk, ServedStep, Terms
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
        told: Tells the signals that those routes come with.
        horizons: How many layers ahead a policy may look.
        batch: The most requests that run together.
        keeps_logits: Whether to keep the logits of every step's last position.
        keeps_prompt_logits: Whether to keep those of every position of prompts.

    Attributes:
        served: The requests, once ``serve`` was called.
        began_ns: When the first of them could arrive, on the driver's clock.
    """

    def __init__(
        self,
        model: Model,
        store: ExpertStore,
        driver: Driver,
        needs: frozenset[str],
        *,
        routes: RoutingTrace | None,
        told: ToldSignals | None = None,
        horizons: int,
        batch: int = 1,
        keeps_logits: bool,
        keeps_prompt_logits: bool = False,
    ) -> None:
        self.served: list[Served] = []
        self._model = model
        self._parts = store.parts
        self._driver = driver
        self._batch = batch
        self._reads_gates = GATES in needs
        self._keeps_logits = keeps_logits
        self._keeps_prompt_logits = keeps_prompt_logits
        self._step = -1
        self._routes: list[Route] = []  # of the running step, by layer
        self._looks: list[Look] = []
        self._probs: list[Tensor] = []
        self._told = told
        self._watch: RouterWatch | None = None
        self._forced: ForcedRoutes | None = None
        self._look_ahead: LookAhead | None = None
        self._forwards: Forwards | None = None
        self.began_ns = 0
        with ExitStack() as on_model:
            if ROUTER_PROBS in needs - (frozenset() if told is None else told.names):
                if routes is not None:
                    raise CapabilityError(
                        "policies that read router_probs_TLE, lossy ones among them, are served by "
                        "the model's own routes: run them without --routes"
                    )
                self._watch = RouterWatch(store.parts)
                on_model.callback(self._watch.remove)
            if routes is not None:
                self._forced = ForcedRoutes(store.parts, routes, batch)
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
        self._forwards = None
        self._on_model.close()

    @torch.inference_mode()
    def serve(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        budget_bytes: int,
        arrivals: Arrivals,
        on_step: Callable[[int], None] | None = None,
        terms: Terms | None = None,
    ) -> None:
        """Serve the requests as the controller forms steps of them.

        Args:
            requests: In order of arrival.
            sampling: How tokens are chosen.
            budget_bytes: Room for experts.
            arrivals: When each comes, from the moment at which the first may.
            terms: On which terms they are served; by default whoever comes is.
            on_step: Told after each forward pass how many tokens went through.
        """
        driver = self._driver
        self.served = [
            Served(request, np.random.default_rng([sampling.seed, number]))
            for number, request in enumerate(requests)
        ]
        terms = terms or Terms()
        longest = max(
            len(each.prompt) + each.new_tokens(sampling)
            for each in requests
            if terms.can_hold(len(each.prompt), each.new_tokens(sampling))
        )
        look = None if self._look_ahead is None else self._look_ahead.ids
        decoder = driver.decoder(self._model, longest, look, self._batch)
        if self._watch is not None and decoder is not None and self._batch > 1:
            raise CapabilityError(
                "policies that read router_probs_TLE, lossy ones among them, are not served in "
                "graphs of several requests; take --backend cuda-eager or --max-batch 1"
            )
        self._forwards = Forwards(
            self._model, driver, decoder, keeps_prompt_logits=self._keeps_prompt_logits
        )
        self._attach()
        ends = frozenset() if sampling.ignore_eos else end_tokens(self._model)
        driver.begin_run(budget_bytes)
        self.began_ns = driver.clock_ns()
        guests = _Guests(self.served, sampling, Later(arrivals, self.began_ns))
        desk = Desk(guests, terms)
        driver.tell(desk.arrive(driver.clock_ns()))
        while True:
            driver.await_form()
            if driver.form is not None:
                tokens = self._serve_step(driver.form, sampling, ends, desk)
                if on_step is not None:
                    on_step(tokens)
            elif desk.next_ns is not None:
                self._await_arrival(desk)
            else:
                break
        driver.timings.requests = sorted(desk.finished, key=lambda times: times.request)
        driver.timings.server = desk.counts

    def _await_arrival(self, desk: Desk) -> None:
        """Wait until somebody comes, and tell of those who are let in."""
        driver = self._driver

        at_ns = driver.wakes_ns = desk.next_ns
        driver.wait_until(lambda: at_ns is not None and at_ns <= driver.clock_ns())
        driver.wakes_ns = None
        if facts := desk.arrive(driver.clock_ns()):
            driver.tell(facts)

    def _serve_step(
        self, form: FormStep, sampling: Sampling, ends: frozenset[int], desk: Desk
    ) -> int:
        """Run one forward pass and report what it was; return how many tokens went through."""
        driver, forwards = self._driver, self._forwards
        assert forwards is not None
        together = [self.served[number] for number in form.requests]
        for one, chunk in zip(together, form.prompt_chunks, strict=True):
            one.feed(chunk)
            if one.cache is None:
                one.cache = forwards.open()
        self._step += 1
        self._routes, self._looks, self._probs = [], [], []
        phases = tuple(one.phase for one in together)
        gives = tuple(one.gives_token for one in together)
        step = ServedStep(
            self._step,
            form.requests,
            phases,
            tuple(one.position + len(one.fed) for one in together),
            tuple(map(int, gives)),
            sum(len(one.fed) for one in together),
        )
        desk.begin(step, driver.clock_ns())
        shares = [
            (number, one.position, len(one.fed))
            for number, one in zip(form.requests, together, strict=True)
        ]
        if self._forced is not None:
            self._forced.begin(shares, forwards.places(together))
        signals = {} if self._told is None else self._told.begin(shares)
        driver.begin_step(StepBegan(self._step, form.requests, phases, signals))
        logits_RV, best = forwards.run(together, self._compute_captured)
        for at, one in enumerate(together):
            if gives[at]:
                one.tokens.append(self._next_token(one, logits_RV[at], best[at], sampling))
        now_ns = driver.clock_ns()
        keep_step(together, self._routes, self._looks, self._probs)
        for one, token in zip(together, gives, strict=True):
            is_full = len(one.tokens) == one.request.new_tokens(sampling)
            ends_text = token and one.request.forced is None and one.tokens[-1] in ends
            one.is_finished = is_full or ends_text
        then = [*desk.arrive(now_ns), *desk.end_step(step, now_ns)]
        for one in together:
            if one.is_finished:
                forwards.close(one.cache)
                one.cache = None
        driver.end_step(StepEnded(self._step, step.tokens_out), then)
        return step.tokens

    def _next_token(self, one: Served, logits_V: Tensor, best: int, sampling: Sampling) -> int:
        if self._keeps_logits:
            one.logits.append(logits_V.clone())
        if one.request.forced is not None:
            return one.request.forced[len(one.tokens)]
        if sampling.temperature == 0:
            return best
        return draw_token(logits_V, sampling.temperature, one.rng)

    def _attach(self) -> None:
        self._on_model.callback(
            attach(self._model, self._parts, self._serve_layer, self._driver.read)
        )

    def _serve_layer(self, layer: int, work: LayerWork) -> Tensor:
        """Have one MoE layer's experts computed and added up."""
        look = None if self._look_ahead is None else self._look_ahead.best(layer)
        probs_TE = None if self._watch is None else self._watch.probabilities(layer)
        self._compute_layer(layer, work, work.choices, work.gates_TK, look, probs_TE)
        merged: Tensor = self._driver.merge(work)
        return merged

    def _compute_captured(self, layer: int, work: LayerWork, seen: Any) -> None:  # noqa: ANN401  the decoder's
        """Have the experts of a layer of a captured step computed."""
        watch = self._watch
        probs_TE = None if watch is None else watch.probabilities(layer, len(work.hidden_TD))
        self._compute_layer(layer, work, seen.choices, seen.gates_TK, seen.look, probs_TE)

    def _compute_layer(
        self,
        layer: int,
        work: LayerWork,
        choices: Chosen,
        gates_TK: Tensor,
        look: Look | None,
        probs_TE: Tensor | None,
    ) -> None:
        """Have one MoE layer's experts computed: report the choice, obey, wait.

        What is kept is the router's own choice, whatever a lossy policy makes of it.
        """
        gates = gates_TK.half().flatten().tolist() if self._reads_gates else []
        signals: dict[str, Any] = {} if self._told is None else self._told.at_layer(layer)
        if probs_TE is not None:
            work.probs_TE, gates_TK = probs_TE, gates_TK.clone()
            half_TE = probs_TE.half().cpu()
            signals[ROUTER_PROBS] = half_TE.tolist()
            self._probs.append(half_TE)
        if look is not None:
            signals[LOOK_IN] = look
            self._looks.append(look)
        experts = _numbered(choices, layer, self._parts.experts)
        self._driver.run_layer(LayerRouted(self._step, layer, experts, gates, signals), work)
        self._driver.await_results()
        self._routes.append((choices, gates_TK))


class _Guests:
    """The requests of a live model, as the desk knows them."""

    def __init__(self, served: Sequence[Served], sampling: Sampling, arrivals: Arrivals) -> None:
        self._served = served
        self._sampling = sampling
        self._arrivals = arrivals

    def arrivals(self) -> Arrivals:
        return self._arrivals

    def prompt_tokens(self, request: int) -> int:
        return len(self._served[request].request.prompt)

    def output_tokens(self, request: int) -> int:
        return self._served[request].request.new_tokens(self._sampling)

    def task(self, request: int) -> str:
        return self._served[request].request.task

    def is_finished(self, request: int) -> bool:
        return self._served[request].is_finished


def _numbered(choices: Chosen, layer: int, experts: int) -> Sequence[int]:
    """Return a layer's choices, numbered over all layers."""
    first = layer * experts
    if isinstance(choices, list):
        return [first + expert for expert in choices]
    ids_NLK = (choices + first).astype(np.int32).reshape(-1, 1, 1)
    return choices_by_layer(ids_NLK, first + experts)[0]
