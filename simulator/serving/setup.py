"""From what a user says of serving to what a run needs: requests, memory, terms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import InputError
from moesim.simulator.memory import MemoryPlan, MemorySpec, Server, plan
from moesim.simulator.policies.batching import ELASTIC, least_slots
from moesim.simulator.registry import Axis, PolicySpec
from moesim.simulator.serving.desk import Terms
from moesim.simulator.serving.kv import KvRoom, KvShape
from moesim.simulator.serving.spec import Serving
from moesim.simulator.serving.stream import RequestStream, stream
from moesim.simulator.terms import FOREVER_NS
from moesim.traces import RoutingTrace

Divide = Callable[[MemorySpec, CostModel, int, Server], MemoryPlan]

__all__ = ["Served", "batching_of", "check_waiting", "serve"]


@dataclass(frozen=True, slots=True)
class Served:
    """How a run is served, resolved.

    Attributes:
        stream: Who arrives.
        kv: Room for KV caches.
        memory: The division of VRAM, as the run begins.
        terms: On which terms requests are served.
        notes: What a reader of results must know.
        identity: What of all this determines the run.
        lent_bytes: How much room for KV caches experts may take while nobody needs it.
    """

    stream: RequestStream
    kv: KvRoom
    memory: MemoryPlan
    terms: Terms
    notes: list[str]
    identity: Mapping[str, Any]
    lent_bytes: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that go through the model, if no request is refused; no last one is fed back."""
        drawing = self.stream.drawing
        return sum(drawing.prompt_tokens_R) + sum(drawing.output_tokens_R) - self.stream.requests


def serve(
    serving: Serving,
    trace: RoutingTrace,
    policies: Mapping[Axis, PolicySpec],
    costs: CostModel,
    memory: MemorySpec,
    *,
    seed: int,
    divide: Divide = plan,
) -> Served:
    """Return how a run is served.

    Args:
        serving: What the user said.
        trace: Whose routing requests use.
        policies: Those of the run; the schedule says how many requests run together.
        costs: Machine, runtime and model.
        memory: What the user said of it.
        seed: Of arrivals and routing.
        divide: Divides VRAM: that of one GPU, or of several.

    Raises:
        MoesimError, TraceError: The arrivals cannot be read, or VRAM does not hold what must be in
            it.
    """
    arriving = stream(serving.arrivals, trace, requests=serving.requests, seed=seed)
    check_waiting(serving, arriving)
    prompts_R, outputs_R = arriving.drawing.prompt_tokens_R, arriving.drawing.output_tokens_R
    contexts_R = [p + o - 1 for p, o in zip(prompts_R, outputs_R, strict=True)]
    batch, chunk = batching_of(policies["schedule"])
    shape = KvShape.of(costs.shape)
    largest = sorted((shape.size_bytes(context) for context in contexts_R), reverse=True)[:batch]
    server = Server(sum(largest), (chunk or max(prompts_R)) + batch)
    divided = divide(memory, costs, max(contexts_R), server)
    lendable_bytes = _lendable_bytes(policies["schedule"], costs, divided, serving)
    room = KvRoom(shape, divided.kv_bytes + (lendable_bytes or 0), serving.reserve)
    notes = [*arriving.drawing.notes]
    if divided.kv_bytes < server.kv_bytes:
        notes.append(
            f"KV caches have {format_bytes(divided.kv_bytes)}; the {len(largest)} largest requests "
            f"together would take {format_bytes(server.kv_bytes)}"
        )
    identity = {
        "arrivals": arriving.text,
        "times": _times(arriving),
        "prompts": prompts_R,
        "outputs": outputs_R,
        "first": arriving.drawing.first_R,
        "kv_bytes": divided.kv_bytes,
        "reserve": serving.reserve,
        "most_waiting": serving.most_waiting,
        "slo": {task: list(slo) for task, slo in sorted(serving.slo.items())},
    }
    terms = Terms(room, serving.most_waiting, serving.slo)
    lent_bytes = 0 if lendable_bytes is None else divided.kv_bytes
    return Served(arriving, room, divided, terms, notes, identity, lent_bytes)


def _lendable_bytes(
    schedule: PolicySpec, costs: CostModel, divided: MemoryPlan, serving: Serving
) -> int | None:
    """Return what experts may lend to KV caches; None where their room is fixed.

    Raises:
        InputError: Requests would outgrow what they have reserved of it.
    """
    options = schedule.all_options
    if options.get("kv") != ELASTIC:
        return None
    if serving.reserve != "whole":
        raise InputError(
            f"--kv-reserve {serving.reserve}: with kv=elastic experts take what is not reserved; "
            "let requests reserve their whole length"
        )
    slot_bytes = max(layer.expert_bytes for layer in costs.shape.layers)
    least = least_slots(divided.expert_bytes, slot_bytes, costs.shape.top_k, options["keep"])
    return max(0, divided.expert_bytes // slot_bytes - least) * slot_bytes


def check_waiting(serving: Serving, arriving: RequestStream) -> None:
    """Refuse to refuse users who do not think before they ask again.

    Raises:
        InputError: They would use up all requests in one instant.
    """
    if arriving.asks_at_once and serving.most_waiting is not None:
        raise InputError(
            f"--arrivals {arriving.text} --max-waiting {serving.most_waiting}: who is refused "
            "would ask again in the same instant; add think=SECONDS"
        )


def batching_of(schedule: PolicySpec) -> tuple[int, int | None]:
    """Return how many requests a schedule runs together, and how many prompt tokens a step."""
    options = schedule.all_options
    return (options["max_batch"], options.get("chunk")) if "max_batch" in options else (1, None)


def _times(arriving: RequestStream) -> Sequence[int]:
    """Return the times of all requests that come whatever becomes of others."""
    return [at_ns for _, at_ns in arriving.new_arrivals().take(FOREVER_NS)]
