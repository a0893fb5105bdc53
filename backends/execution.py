"""Run a real model with its experts offloaded: the same policies, the model's own text.

One forward pass is one step and batch is 1, as in the recorder. The experts live in the store and
the budget's arena alone; what they do in a layer is decided by the controller and carried out by a
driver while transformers' own modules do the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from moesim.backends.base import RealDriver, Span
from moesim.backends.controllers import GATES, LOOK_IN, Deciding
from moesim.backends.drivers.threads import ThreadsDriver
from moesim.backends.experts import LayerWork, attach
from moesim.backends.forcing import ForcedRoutes
from moesim.backends.generation import Request, Sampling
from moesim.backends.lookahead import LookAhead
from moesim.backends.models import Model
from moesim.backends.next_token import check_lengths, choose_token, end_tokens
from moesim.backends.store import ExpertStore
from moesim.simulator.controller import Controller
from moesim.simulator.demands import Workload
from moesim.simulator.errors import CapabilityError
from moesim.simulator.foresight import RecordedFuture
from moesim.simulator.ledger import Counts, RequestTimes, Timings, check
from moesim.simulator.messages import (
    Command,
    Fact,
    LayerRouted,
    RequestArrived,
    RequestEnded,
    StepBegan,
    StepEnded,
)
from moesim.simulator.terms import Phase
from moesim.traces import RoutingTrace, SignalSpec, TraceHeader
from moesim.traces.assemble import RequestRows, assemble

# T tokens, L MoE layers, K chosen, H horizons, M top-m.
Driver = RealDriver[LayerWork]
Log = list[tuple[list[Fact], int, list[Command]]]


class MakeDriver(Protocol):
    """Makes a device's driver for one run."""

    def __call__(
        self, controller: Controller, store: ExpertStore, budget_bytes: int, *, keep_spans: bool
    ) -> Driver:
        """Return a driver that obeys the controller, with so many bytes of VRAM for experts."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What an execution keeps beside its figures: every logit, call or job."""

    logits: bool = False
    log: bool = False
    spans: bool = False


@dataclass(frozen=True, slots=True)
class Execution:
    """What came of serving the requests.

    Attributes:
        tokens: What was generated, by request.
        counts: The decisions.
        timings: What was measured.
        trace: The routes that were served; a replay of it sees the same demands.
        logits: The logits of every step's last position, by request, if kept.
        log: Every call of the controller, if kept.
        spans: Every job, if kept.
    """

    tokens: list[list[int]]
    counts: Counts
    timings: Timings
    trace: RoutingTrace
    logits: list[list[Tensor]] | None
    log: Log | None
    spans: list[Span] | None


def execute(
    model: Model,
    store: ExpertStore,
    requests: Sequence[Request],
    deciding: Deciding,
    sampling: Sampling,
    *,
    routes: RoutingTrace | None = None,
    horizons: int = 2,
    keep: Keep | None = None,
    make_driver: MakeDriver = ThreadsDriver,
    on_step: Callable[[int], None] | None = None,
) -> Execution:
    """Serve the requests one after another and balance the books.

    Args:
        model: A transformers causal model, in evaluation mode, whose experts the store took.
        store: Its experts.
        requests: At least one.
        deciding: Policies and budget.
        sampling: How tokens are chosen.
        routes: A trace whose routes replace the model's own.
        horizons: How many layers ahead a policy may look.
        keep: What to keep beside the figures.
        make_driver: The device; the default is this machine's CPU.
        on_step: Told after each forward pass how many tokens went through.

    Raises:
        MoesimError: A policy needs what the run cannot grant, the budget is too small, or a command
            failed; threads are ended and memory is released.
    """
    check_lengths(model, requests, sampling)
    keep = keep or Keep()
    future = None
    if routes is not None and "future" in deciding.needs:
        future = RecordedFuture(Workload(routes).events())
    controller = deciding.controller(
        experts=store.parts.experts,
        top_k=store.parts.top_k,
        sizes_L=store.sizes_L,
        future=future,
        keep_log=keep.log,
    )
    with make_driver(controller, store, deciding.budget_bytes, keep_spans=keep.spans) as driver:
        server = _Server(model, store, driver, deciding.needs, routes, horizons)
        try:
            server.serve(requests, sampling, deciding.budget_bytes, on_step, keep=keep)
        finally:
            server.release()
        driver.end_run()
        check(controller.counts, driver.timings)
        return Execution(
            [one.tokens for one in server.served],
            controller.counts,
            driver.timings,
            server.trace(),
            [one.logits for one in server.served] if keep.logits else None,
            controller.log,
            getattr(driver, "spans", None),
        )


class _Served:
    """One request while it is served: what it generated and where it went."""

    def __init__(self, request: Request, rng: np.random.Generator) -> None:
        self.request = request
        self.rng = rng
        self.cache: Any = None
        self.fed: list[int] = list(request.prompt)
        self.position = 0
        self.tokens: list[int] = []
        self.logits: list[Tensor] = []
        self.expert_TLK: list[NDArray[np.int64]] = []
        self.gate_TLK: list[NDArray[np.float16]] = []
        self.look_in_TLHM: list[NDArray[np.int64]] = []


class _Server:
    """Turns forward passes of a model into the facts of a run."""

    def __init__(
        self,
        model: Model,
        store: ExpertStore,
        driver: Driver,
        needs: frozenset[str],
        routes: RoutingTrace | None,
        horizons: int,
    ) -> None:
        self.served: list[_Served] = []
        self._model = model
        self._parts = store.parts
        self._store = store
        self._driver = driver
        self._reads_gates = GATES in needs
        self._step = -1
        self._layers: list[list[int]] = []  # choices of the running step, by layer
        self._gates: list[NDArray[np.float16]] = []
        self._looks: list[list[list[list[int]]]] = []
        self._forced = None if routes is None else ForcedRoutes(store.parts, routes)
        self._look_ahead = LookAhead(store.parts, horizons) if LOOK_IN in needs else None
        self._detach = attach(model, store.parts, self._serve_layer)

    def release(self) -> None:
        """Take everything off the model that was put on it."""
        self._detach()
        if self._forced is not None:
            self._forced.remove()
        if self._look_ahead is not None:
            self._look_ahead.remove()

    @torch.inference_mode()
    def serve(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        budget_bytes: int,
        on_step: Callable[[int], None] | None,
        *,
        keep: Keep,
    ) -> None:
        """Serve the requests as the controller forms steps of them."""
        driver = self._driver
        self.served = [
            _Served(request, np.random.default_rng([sampling.seed, number]))
            for number, request in enumerate(requests)
        ]
        ends = frozenset() if sampling.ignore_eos else end_tokens(self._model)
        driver.begin_run(budget_bytes, self._arrival(0))
        while True:
            driver.await_form()
            form = driver.form
            if form is None:
                return
            if len(form.requests) != 1 or form.prompt_chunks != (None,):
                raise CapabilityError(
                    f"a step of requests {form.requests} in chunks {form.prompt_chunks}: an "
                    "execution serves one request at a time and its prompt as a whole"
                )
            number = form.requests[0]
            self._serve_step(number, sampling, ends, keep=keep)
            if on_step is not None:
                on_step(len(self.served[number].expert_TLK[-1]))

    def trace(self) -> RoutingTrace:
        """Return the routes that were served."""
        parts = self._parts
        dense = [_bytes_without_experts(layer.decoder_layer) for layer in parts.layers]
        looks = self._look_ahead is not None
        header = TraceHeader(
            model=type(self._model).__name__,
            layer_ids=tuple(layer.layer_id for layer in parts.layers),
            experts=parts.experts,
            top_k=parts.top_k,
            evidence="recorded",
            expert_bytes=self._store.sizes_L,
            dense_bytes=tuple(dense),
            signals={
                LOOK_IN: SignalSpec(
                    tap="as look_in of moesim record",
                    known_at="layer_routed",
                    producer="look_ahead",
                    cost_resource="gpu",
                )
            }
            if looks
            else {},
        )
        rows = [
            RequestRows(
                expert_TLK=np.concatenate(one.expert_TLK),
                gate_TLK=np.concatenate(one.gate_TLK),
                is_prefill_T=np.arange(one.position) < len(one.request.prompt),
                task=one.request.task,
                prompt_tokens=len(one.request.prompt),
                output_tokens=len(one.tokens),
            )
            for one in self.served
        ]
        look = [step for one in self.served for step in one.look_in_TLHM]
        signals = {LOOK_IN: np.concatenate(look).astype(np.int16)} if looks else {}
        return assemble("execution", header, rows, signals)

    def _serve_step(
        self, number: int, sampling: Sampling, ends: frozenset[int], *, keep: Keep
    ) -> None:
        """Run one forward pass of one request and report what it was."""
        driver, one = self._driver, self.served[number]
        times = driver.timings.requests[number]
        if one.cache is None:
            one.cache = transformers.DynamicCache(config=self._model.config)
            times.began_ns = driver.clock_ns()
        self._step += 1
        self._layers, self._gates, self._looks = [], [], []
        phase = Phase.PREFILL if one.position == 0 else Phase.DECODE
        if self._forced is not None:
            self._forced.begin(number, one.position, len(one.fed))
        driver.begin_step(StepBegan(self._step, (number,), (phase,), {}))
        ids = torch.tensor([one.fed], device=next(self._model.parameters()).device)
        out = self._model(ids, past_key_values=one.cache, use_cache=True, logits_to_keep=1)
        logits = out.logits[0, -1]
        forced = one.request.forced
        if forced is None:
            token = choose_token(logits, sampling.temperature, one.rng)
        else:
            token = forced[len(one.tokens)]
        times.token_ends_ns.append(driver.clock_ns())
        times.has_first_token |= phase is Phase.PREFILL
        self._keep_routes(one)
        if keep.logits:
            one.logits.append(logits.clone())
        one.position += len(one.fed)
        one.tokens.append(token)
        one.fed = [token]
        is_full = len(one.tokens) == one.request.new_tokens(sampling)
        is_over = is_full or (forced is None and token in ends)
        then: list[Fact] = [RequestEnded(number), *self._arrival(number + 1)] if is_over else []
        if is_over:
            one.cache = None
        driver.end_step(StepEnded(self._step, (1,)), then)

    def _serve_layer(self, layer: int, work: LayerWork) -> Tensor:
        """Have one MoE layer's experts computed: report the choice, obey, wait, merge."""
        first = layer * self._parts.experts
        choices = [first + expert for expert in work.choices]
        gates_TK = work.gates_TK.half().cpu().numpy()
        gates = gates_TK.ravel().tolist() if self._reads_gates else []
        signals = {}
        if self._look_ahead is not None:
            signals[LOOK_IN] = self._look_ahead.best(layer)
            self._looks.append(signals[LOOK_IN])
        self._layers.append(work.choices)
        self._gates.append(gates_TK)
        self._driver.run_layer(LayerRouted(self._step, layer, choices, gates, signals), work)
        self._driver.await_results()
        return work.merge()

    def _keep_routes(self, one: _Served) -> None:
        routes_LS = np.array(self._layers, dtype=np.int64)
        routes_LTK = routes_LS.reshape(len(self._layers), -1, self._parts.top_k)
        one.expert_TLK.append(routes_LTK.transpose(1, 0, 2))
        one.gate_TLK.append(np.stack(self._gates, axis=1))
        if self._looks:
            one.look_in_TLHM.append(np.array(self._looks, dtype=np.int64).transpose(1, 0, 2, 3))

    def _arrival(self, number: int) -> list[Fact]:
        """Return the arrival of the next request: a user who asks again once answered."""
        if number >= len(self.served):
            return []
        request = self.served[number].request
        prompt = len(request.prompt)
        self._driver.timings.requests.append(
            RequestTimes(number, self._driver.clock_ns(), -1, prompt)
        )
        return [RequestArrived(number, prompt, request.task)]


def _bytes_without_experts(module: torch.nn.Module) -> int:
    return sum(weights.numel() * weights.element_size() for weights in module.parameters())
