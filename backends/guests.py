"""From a user's wishes to who is served, by which policies, and what room that leaves experts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moesim.backends.arriving import arriving, serving_of
from moesim.backends.batches import arrivals_for, batched
from moesim.backends.budget import expert_budget_bytes, runtime_bytes
from moesim.backends.forcing import requests_of
from moesim.backends.generation import Request, Sampling
from moesim.backends.loading import Checkpoint
from moesim.backends.opening import Opened
from moesim.backends.prompts import read_prompts
from moesim.backends.wishes import Wishes
from moesim.simulator import registry
from moesim.simulator.memory import MemorySpec
from moesim.simulator.registry import Axis
from moesim.simulator.serving.arrivals import Arrivals
from moesim.simulator.serving.desk import Terms
from moesim.simulator.serving.setup import batching_of
from moesim.simulator.serving.stream import RequestStream
from moesim.traces import RoutingTrace

__all__ = ["Guests", "expert_room_bytes", "guests_of"]


@dataclass(frozen=True, slots=True)
class Guests:
    """Who is served, by which policies; ``stream`` says how they arrive, if by themselves."""

    policies: dict[Axis, str]
    requests: list[Request]
    routes: RoutingTrace | None
    arrivals: Arrivals
    terms: Terms = field(default_factory=Terms)
    stream: RequestStream | None = None

    @property
    def batching(self) -> tuple[int, int | None]:
        """How many run together, and how many prompt tokens a step takes."""
        return batching_of(registry.parse("schedule", self.policies["schedule"]))


def guests_of(
    wishes: Wishes,
    chosen: Mapping[Axis, str],
    opened: Opened,
    routes: RoutingTrace | None,
    sampling: Sampling,
) -> Guests:
    """Return who is served.

    Args:
        wishes: What the user said.
        chosen: Policies, before requests are batched.
        opened: The model.
        routes: To which requests are forced, if to any; else they are texts.
        sampling: How long answers are.

    Raises:
        MoesimError, TraceError: An option has no meaning beside the others, or a file is wrong.
    """
    checkpoint = opened.checkpoint
    vocabulary = checkpoint.model.config.get_text_config().vocab_size
    policies, serving = serving_of(
        chosen,
        arrivals=wishes.arrivals,
        requests=wishes.requests,
        batching=wishes.batching,
        max_batch=wishes.max_batch,
        chunk=wishes.chunk,
        slo=wishes.slo,
        max_waiting=wishes.max_waiting,
        kv=wishes.kv,
        kv_reserve=wishes.kv_reserve,
    )
    texts = None if routes is not None else _texts(wishes, checkpoint)
    if serving is None:
        policies = batched(policies, wishes.max_batch, wishes.chunk)
        requests = texts if routes is None else requests_of(routes, vocabulary)
        assert requests is not None
        return Guests(policies, requests, routes, arrivals_for(policies, len(requests)))
    asked = texts if routes is None else routes
    assert asked is not None
    found = arriving(
        serving,
        policies,
        asked,
        sampling,
        kv=wishes.kv,
        kv_bytes_per_token=opened.kv_bytes_per_token,
        vocabulary=vocabulary,
        seed=wishes.seed,
    )
    arrivals = found.stream.new_arrivals()
    return Guests(policies, found.requests, found.routes, arrivals, found.terms, found.stream)


def _texts(wishes: Wishes, checkpoint: Checkpoint) -> list[Request]:
    assert wishes.prompts is not None
    texts = read_prompts(wishes.prompts, wishes.max_prompts)
    return [
        Request(prompt=checkpoint.tokenizer(text.text).input_ids, task=text.task) for text in texts
    ]


def expert_room_bytes(wishes: Wishes, opened: Opened, guests: Guests, sampling: Sampling) -> int:
    """Return the room for experts; the room for KV caches is what requests that arrive may share.

    Graphs keep a slot of the longest request's size for each that runs, so it may be more.
    """
    memory, per_token = MemorySpec(*wishes.memory), opened.kv_bytes_per_token
    terms, batching = guests.terms, guests.batching
    longest = max(
        len(request.prompt) + new
        for request in guests.requests
        if terms.can_hold(len(request.prompt), new := request.new_tokens(sampling))
    )
    if terms.kv is None:
        return opened.budget_bytes(memory, longest, *batching)
    slots_bytes = per_token * longest * batching[0] if wishes.backend == "cuda" else 0
    return expert_budget_bytes(
        memory,
        opened.store,
        dense_bytes=opened.dense_bytes,
        kv_bytes=max(terms.kv.room_bytes, slots_bytes),
        workspace_bytes=runtime_bytes(opened.store, longest, per_token, *batching),
    )
