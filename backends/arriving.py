"""Requests that arrive at a live model: who comes when, how long they are, on which terms.

The stream is a replay's (``simulator/serving``): the same spec, trace and seed give the same
requests at the same times. With routes, each is forced to the rows that were drawn for it; texts
are drawn whole, as if each were a recorded prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.backends.forcing import requests_of
from moesim.backends.generation import Request, Sampling
from moesim.hardware_profiles import ProfileError
from moesim.hardware_profiles.units import format_bytes, parse_bytes
from moesim.simulator import registry
from moesim.simulator.commands.serving import choose_serving
from moesim.simulator.errors import BudgetError, InputError
from moesim.simulator.registry import Axis
from moesim.simulator.serving.desk import Terms
from moesim.simulator.serving.drawing import Rowed, Sequences
from moesim.simulator.serving.drawn import drawn_trace
from moesim.simulator.serving.kv import KvRoom, KvShape
from moesim.simulator.serving.setup import batching_of, check_waiting
from moesim.simulator.serving.spec import Serving
from moesim.simulator.serving.stream import RequestStream, stream
from moesim.traces import RoutingTrace

__all__ = ["Arriving", "arriving", "serving_of", "terms_for"]


@dataclass(frozen=True, slots=True)
class Arriving:
    """Who arrives at a live model.

    Attributes:
        stream: When they come.
        requests: What each asks, in order of arrival.
        routes: To which routes they are forced, if to any.
        terms: On which terms they are served.
    """

    stream: RequestStream
    requests: list[Request]
    routes: RoutingTrace | None
    terms: Terms

    @property
    def kv_bytes(self) -> int:
        """Room for KV caches."""
        assert self.terms.kv is not None
        return self.terms.kv.room_bytes


def serving_of(
    policies: Mapping[Axis, str],
    *,
    arrivals: str | None,
    requests: int | None,
    batching: str | None,
    max_batch: int | None,
    chunk: int | None,
    slo: Sequence[str],
    max_waiting: int | None,
    kv: str | None,
    kv_reserve: str | None,
) -> tuple[dict[Axis, str], Serving | None]:
    """Return policies whose schedule forms batches, and how requests are served if they arrive.

    Raises:
        InputError: An option has no meaning beside the others.
    """
    schedule, serving = choose_serving(
        policies["schedule"],
        arrivals=arrivals,
        requests=requests,
        batching=batching,
        max_batch=max_batch if arrivals is not None else None,
        chunk=chunk if arrivals is not None else None,
        slo=slo,
        max_waiting=max_waiting,
        kv=kv,
        kv_reserve=kv_reserve,
    )
    return {**policies, "schedule": schedule}, serving


def arriving(
    serving: Serving,
    policies: Mapping[Axis, str],
    asked: RoutingTrace | Sequence[Request],
    sampling: Sampling,
    *,
    kv: str | None,
    kv_bytes_per_token: int,
    vocabulary: int,
    seed: int,
) -> Arriving:
    """Return the requests that arrive.

    Args:
        serving: What the user said.
        policies: Of which the schedule says how many run together.
        asked: Routes to be forced to, or texts.
        sampling: How long the answers to texts are.
        kv: What the user gave for KV caches; by default what the largest requests take together.
        kv_bytes_per_token: What a position takes, over all layers.
        vocabulary: Of the model, for routes whose text was not kept.
        seed: Of arrivals and routing.

    Raises:
        MoesimError, TraceError: The arrivals cannot be read, or none of them could be served.
    """
    routes = None
    if isinstance(asked, RoutingTrace):
        found = stream(serving.arrivals, asked, requests=serving.requests, seed=seed)
        routes = drawn_trace(asked, found.drawing)
        requests = requests_of(routes, vocabulary)
    else:
        texts = _sequences(asked, sampling)
        found = stream(serving.arrivals, texts, requests=serving.requests, seed=seed)
        requests = [asked[first] for first in found.drawing.first_R]
    check_waiting(serving, found)
    lengths = [(len(each.prompt), each.new_tokens(sampling)) for each in requests]
    batch, _ = batching_of(registry.parse("schedule", policies["schedule"]))
    terms = terms_for(serving, lengths, batch, kv_bytes_per_token, kv)
    return Arriving(found, requests, routes, terms)


def terms_for(
    serving: Serving,
    lengths: Sequence[tuple[int, int]],
    batch: int,
    kv_bytes_per_token: int,
    kv: str | None = None,
) -> Terms:
    """Return on which terms requests are served.

    Args:
        serving: What the user said.
        lengths: Prompt and answer of each, in tokens.
        batch: The most that run together.
        kv_bytes_per_token: What a position takes, over all layers.
        kv: Room for KV caches; by default what the largest requests take together.

    Raises:
        BudgetError: Nobody could be served.
    """
    shape = KvShape(kv_bytes_per_token, 0, None)
    sizes = sorted((shape.size_bytes(prompt + new - 1) for prompt, new in lengths), reverse=True)
    room = KvRoom(shape, sum(sizes[:batch]) if kv is None else _parse(kv), serving.reserve)
    terms = Terms(room, serving.most_waiting, serving.slo)
    if not any(terms.can_hold(*each) for each in lengths):
        raise BudgetError(
            f"--kv {kv}: the KV cache of the smallest request takes {format_bytes(sizes[-1])}; "
            "give more, or nobody is served"
        )
    return terms


def _sequences(texts: Sequence[Request], sampling: Sampling) -> Sequences:
    """Return texts as what requests are drawn from; nothing reads the rows but their number."""
    answer = np.zeros(max(1, sampling.new_tokens - 1), np.int64)
    return Sequences(
        [Rowed(np.arange(len(text.prompt)), answer) for text in texts],
        [text.task for text in texts],
        ("text", "prompts"),
    )


def _parse(kv: str) -> int:
    try:
        return parse_bytes(kv)
    except ProfileError as error:
        raise InputError(f"--kv {kv}: {error}") from None
