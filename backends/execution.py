"""Run a real model with its experts offloaded: the same policies, the model's own text.

The experts live in the store and in the budget's arena alone. What a layer does with them the
controller decides and a driver carries out, while transformers' own modules do the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from moesim.backends.base import Span
from moesim.backends.batches import check_future, check_room
from moesim.backends.controllers import Deciding
from moesim.backends.drivers.threads import ThreadsDriver
from moesim.backends.generation import Request, Sampling
from moesim.backends.models import Model
from moesim.backends.next_token import check_lengths
from moesim.backends.packed import check_packable
from moesim.backends.served import trace_of
from moesim.backends.server import Driver, Server
from moesim.backends.store import ExpertStore
from moesim.backends.told import ToldSignals
from moesim.simulator.controller import Controller
from moesim.simulator.errors import CapabilityError
from moesim.simulator.ledger import Counts, RequestTimes, Timings, check
from moesim.simulator.messages import Command, Fact
from moesim.simulator.serving.arrivals import Arrivals, Users
from moesim.simulator.serving.desk import Terms
from moesim.simulator.serving.setup import batching_of
from moesim.simulator.workload.demands import Workload
from moesim.simulator.workload.foresight import RecordedFuture
from moesim.traces import RoutingTrace

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
    """What an execution keeps beside its figures: logits, those of prompts too, calls, jobs.

    Logits of prompts can be kept where requests are served one at a time.
    """

    logits: bool = False
    prompt_logits: bool = False
    log: bool = False
    spans: bool = False


@dataclass(frozen=True, slots=True)
class Execution:
    """What came of serving the requests.

    Attributes:
        tokens: What was generated, by request; nothing where it was refused.
        counts: The decisions.
        timings: What was measured.
        trace: The routes that were served, of those who were; a replay of it sees the same demands.
        logits: The logits of every step's last position, by request, if kept.
        prompt_logits: Those of every position of its prompt, [T, V], by request, if kept.
        log: Every call of the controller, if kept.
        spans: Every job, if kept.
        began_ns: When the first request could arrive, on the clock of timings, log and spans.
    """

    tokens: list[list[int]]
    counts: Counts
    timings: Timings
    trace: RoutingTrace
    logits: list[list[Tensor]] | None
    prompt_logits: list[Tensor] | None
    log: Log | None
    spans: list[Span] | None
    began_ns: int = 0

    def measured(self) -> tuple[list[RequestTimes], int]:
        """Return the times of all requests and the span, both from when the first could arrive."""
        since_ns = self.began_ns
        times = [
            replace(
                one,
                arrived_ns=one.arrived_ns - since_ns,
                began_ns=one.began_ns - since_ns,
                token_ends_ns=[at_ns - since_ns for at_ns in one.token_ends_ns],
            )
            for one in self.timings.requests
        ]
        return times, self.timings.span_ns - since_ns


def execute(
    model: Model,
    store: ExpertStore,
    requests: Sequence[Request],
    deciding: Deciding,
    sampling: Sampling,
    *,
    routes: RoutingTrace | None = None,
    horizons: int = 2,
    name: str | None = None,
    keep: Keep | None = None,
    make_driver: MakeDriver = ThreadsDriver,
    arrivals: Arrivals | None = None,
    terms: Terms | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Execution:
    """Serve the requests and balance the books.

    Args:
        model: A transformers causal model, in evaluation mode, whose experts the store took.
        store: Its experts.
        requests: At least one.
        deciding: Policies and budget.
        sampling: How tokens are chosen.
        routes: A trace whose routes replace the model's own.
        horizons: How many layers ahead a policy may look.
        name: What the trace of the routes calls the model; the default is its class.
        keep: What to keep beside the figures.
        make_driver: The device; the default is this machine's CPU.
        arrivals: When each request comes; by default each once the one before was answered. How
            many of those that wait run together, and in which pieces their prompts go through, the
            schedule policy says.
        terms: On which terms they are served; by default whoever comes is.
        on_step: Told after each forward pass how many tokens went through.

    Raises:
        MoesimError: A policy needs what the run cannot grant, the budget is too small, or a command
            failed; threads are ended and memory is released.
    """
    check_lengths(model, requests, sampling)
    keep = keep or Keep()
    check_future(deciding.policies)
    check_room(deciding.policies)
    batch, _ = batching_of(deciding.specs()["schedule"])
    if batch > 1:
        check_packable(model)
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
        server = Server(
            model,
            store,
            driver,
            deciding.needs,
            routes=routes,
            told=_told(deciding, routes),
            horizons=horizons,
            batch=batch,
            keeps_logits=keep.logits,
            keeps_prompt_logits=keep.prompt_logits,
        )
        with server:
            server.serve(
                requests,
                sampling,
                deciding.budget_bytes,
                arrivals or Users(1, len(requests)),
                on_step,
                terms,
            )
        driver.end_run()
        check(controller.counts, driver.timings)
        return Execution(
            [one.tokens for one in server.served],
            controller.counts,
            driver.timings,
            trace_of(
                [one for one in server.served if one.position],  # not those refused
                store,
                name or type(model).__name__,
                "recorded" if routes is None else routes.header.evidence,
                deciding if deciding.is_lossy else None,
            ),
            [one.logits for one in server.served] if keep.logits else None,
            [torch.cat(one.prompt_logits) for one in server.served] if keep.prompt_logits else None,
            controller.log,
            driver.spans,
            server.began_ns,
        )


def _told(deciding: Deciding, routes: RoutingTrace | None) -> ToldSignals | None:
    """Return what tells the signals that forced routes come with.

    Raises:
        CapabilityError: The model's own routes are served.
    """
    if not deciding.told:
        return None
    if routes is None:
        raise CapabilityError(
            f"{', '.join(sorted(deciding.told))}: told by a trace whose routes are forced, and the "
            "model's own are served"
        )
    return ToldSignals(routes, sorted(deciding.told))
