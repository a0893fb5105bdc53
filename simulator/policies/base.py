"""The file a policy author reads: what a policy is told, and the questions it answers.

A policy is told the present and answers; the controller keeps the books; the driver owns time and
bytes. A policy never owns the cache, sees no clock but ``view.now_ns``, and reads a signal, a
profile trace or the future only if its class declares it in ``needs``. The same object runs in the
simulator and on a GPU.

One policy is one file in ``policies/<axis>/``; the file's name is the policy's name and
``__all__`` names its class. The first argument of the constructor is the run, the keyword-only
ones are its options; a fresh object is built for each run, so there is nothing to reset.

Experts are ints, ``layer * run.experts + expert``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from moesim.simulator.terms import Device, Phase, Slo, Verdict
from moesim.traces import RoutingTrace

UNLIMITED_BYTES = 1 << 62
"""Room for KV caches in a run that does not count it."""


class Costs(Protocol):
    """How long things take on this machine, in ns; what cost-aware policies may ask."""

    def copy_ns(self, nbytes: int) -> int:
        """Return the time of one host-to-device copy, alone on the link."""
        ...

    def experts_gpu_ns(self, layer: int, tokens_per_expert: Sequence[int]) -> int:
        """Return the GPU time of one launch over these experts."""
        ...

    def expert_cpu_ns(self, layer: int, tokens: int) -> int:
        """Return the time of one expert on the CPU, activations there and back included."""
        ...

    def read_ns(self, nbytes: int) -> int:
        """Return the time of one read from NVMe into RAM, alone on the drive."""
        ...

    def layer_ns(self, layer: int) -> int:
        """Return the GPU time of attention and router of one decode token at a short context."""
        ...

    def host_layer_ns(self, runs: int) -> int:
        """Return the host's time for a layer of one decode token and so many launches of experts.

        Decisions and issuing copies come on top.
        """
        ...


class Future(Protocol):
    """The demands to come, as recorded; only for policies that declare ``needs = {"future"}``."""

    def next_use(self, expert: int, after_event: int) -> int | None:
        """Return the first event after this one that demands the expert; None if none does."""
        ...

    def demand(self, event: int) -> Sequence[int]:
        """Return the experts of one event, or nothing past the end of the run."""
        ...


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a policy is told once, when it is built.

    Attributes:
        layers: MoE layers, L.
        experts: Experts of each layer, E.
        top_k: Experts that a token uses in each layer.
        expert_bytes_L: Bytes of one expert of each layer.
        budget_bytes: Room for experts in VRAM, staging included.
        costs: The cost model of the machine.
        rng: This policy's own random stream.
        popularity_LE: How often each expert was chosen in the profile trace; needs ``profile``.
        follows_LEE: How often expert b of layer l+1 was chosen by tokens that chose a in layer l,
            ``[l, a, b]``, in the profile trace; needs ``transitions``.
        future: The demands to come; needs ``future``.
        profile_trace: The profile trace itself, with its signals; needs ``profile``.
        kv_bytes: Room for the KV caches of all requests together.
    """

    layers: int
    experts: int
    top_k: int
    expert_bytes_L: tuple[int, ...]
    budget_bytes: int
    costs: Costs
    rng: np.random.Generator
    popularity_LE: np.ndarray[Any, np.dtype[np.int64]] | None = None
    follows_LEE: np.ndarray[Any, np.dtype[np.int64]] | None = None
    future: Future | None = None
    profile_trace: RoutingTrace | None = None
    kv_bytes: int = UNLIMITED_BYTES

    @property
    def equal_experts(self) -> bool:
        """Whether all experts have the same size."""
        return len(set(self.expert_bytes_L)) == 1

    def size(self, expert: int) -> int:
        """Return the bytes of one expert."""
        return self.expert_bytes_L[expert // self.experts]

    def layer(self, expert: int) -> int:
        """Return the MoE layer of an expert."""
        return expert // self.experts

    def fill(self, ranked: Iterable[int], room_bytes: int) -> list[int]:
        """Return the experts of a ranking that fit into the room, in order, none skipped over."""
        chosen: list[int] = []
        for expert in ranked:
            room_bytes -= self.size(expert)
            if room_bytes < 0:
                break
            chosen.append(expert)
        return chosen


class Residency(Protocol):
    """Where experts are; the controller's book, read-only for policies."""

    def is_resident(self, expert: int) -> bool:
        """Return whether the whole expert is in VRAM and ready."""
        ...

    def is_loading(self, expert: int) -> bool:
        """Return whether a copy of it was handed over and has not ended."""
        ...

    def free_bytes(self, layer: int) -> int:
        """Return the free room of the pool that holds this layer's experts."""
        ...


@dataclass(slots=True)
class Request:
    """A request that has arrived and not ended. How long its answer will be nobody is told.

    Attributes:
        number: What facts and commands call it.
        task: Label of its kind.
        prompt_tokens: Length of its prompt; 0 where unknown.
        arrived_ns: When it arrived.
        slo: What was promised to it.
        kv_bytes: What its KV cache reserves while it is served.
        prompt_left: Prompt tokens that no step has taken.
        tokens_out: Tokens that it has got.
        began_ns: When it was first chosen; -1 while it waits.
    """

    number: int
    task: str
    prompt_tokens: int
    arrived_ns: int
    slo: Slo
    kv_bytes: int
    prompt_left: int
    tokens_out: int = 0
    began_ns: int = -1


class Below(Protocol):
    """Where experts are that are not in VRAM, if not all in RAM; read-only for policies."""

    @property
    def queued_bytes(self) -> int:
        """Bytes on their way from NVMe to RAM."""
        ...

    def is_far(self, expert: int) -> bool:
        """Return whether the expert must be read from NVMe first, or is being read."""
        ...


@dataclass(slots=True)
class View:
    """The present, as a policy may see it. One object for the whole run, updated in place.

    Attributes:
        residency: Where experts are.
        now_ns: Time of the facts being handled.
        event: Number of the layer event, from 0; one step of one MoE layer.
        step: Number of the step, from 0.
        layer: MoE layer last routed; -1 between a step's beginning and its first router.
        phases: Phase of each request of the step.
        signals: What the trace or the model gave at or before this point.
        queued_bytes: Copies handed over and not yet reported ended.
        predicted: How likely each expert is to be chosen at its layer's next turn, as the prefetch
            policy last judged; a prefetch policy that knows writes it, a cache policy may read it.
        requests: Those that have arrived and not ended, by number.
        kv_free_bytes: Room for the KV cache of requests that begin now.
        kv_lendable_bytes: What experts would lend them beside it.
        below: Where experts are that are not in VRAM; None where RAM has them all.
    """

    residency: Residency
    now_ns: int = 0
    event: int = -1
    step: int = -1
    layer: int = -1
    phases: tuple[Phase, ...] = ()
    signals: Mapping[str, Any] = field(default_factory=dict)
    queued_bytes: int = 0
    predicted: dict[int, float] = field(default_factory=dict)
    requests: dict[int, Request] = field(default_factory=dict)
    kv_free_bytes: int = UNLIMITED_BYTES
    kv_lendable_bytes: int = 0
    below: Below | None = None

    @property
    def is_decode(self) -> bool:
        """Whether no request of the step is in prefill."""
        return Phase.PREFILL not in self.phases


class Evictable(Protocol):
    """The experts of one pool that may leave now: ready, not needed, not in use."""

    def __contains__(self, expert: int) -> bool: ...

    def __iter__(self) -> Iterator[int]: ...

    def first(self, order: Iterable[int], count: int) -> list[int]:
        """Return the first of an order that may leave, ``count`` of them if there are so many."""
        ...


class Demand(NamedTuple):
    """What one layer needs, as judged when its router has run.

    Attributes:
        step: Number of the step.
        layer: MoE layer.
        experts: Distinct experts in order of first occurrence.
        tokens: Tokens that each of them serves, keyed by expert.
        hits: Those ready in VRAM.
        late: Those whose copy was handed over earlier and has not ended.
        partial: Those with some parts in VRAM; disjoint from the others.
        misses: The rest.
        gates: Router weights in touch order, or empty.
    """

    step: int
    layer: int
    experts: Sequence[int]
    tokens: Mapping[int, int]
    hits: Sequence[int]
    late: Sequence[int]
    partial: Sequence[int]
    misses: Sequence[int]
    gates: Sequence[float] = ()


class Policy:
    """What all three axes share.

    Attributes:
        needs: What the run must grant: ``future``, ``profile`` or ``transitions`` (a profile
            trace), or a signal of the trace by its name.
        does: What it may do beyond copying a demanded expert to the GPU: ``prefetch``,
            ``cpu_experts``, ``split``, and, changing the text, ``reroute`` and ``skip``. Bounds
            allow what the policies of a run may do.
        paper: Where the rule is defined.
        timing_free: Whether decisions depend on the order of demands alone, never on times.
        measured_ask_ns: How long what it asks for was measured to take, by name, where the run does
            not say.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    does: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str] = ""
    timing_free: ClassVar[bool] = True
    measured_ask_ns: ClassVar[Mapping[str, int]] = {}

    @classmethod
    def needs_for(cls, options: Mapping[str, Any]) -> frozenset[str]:  # noqa: ARG003  for subclasses
        """Return what the run must grant under these options, defaults included.

        That is ``needs``, unless a class overrides this; then ``needs`` is all that it may need.
        """
        return cls.needs

    @classmethod
    def does_for(cls, options: Mapping[str, Any]) -> frozenset[str]:  # noqa: ARG003  for subclasses
        """Return what it may do under these options, defaults included.

        That is ``does``, unless a class overrides this; then ``does`` is all that it may ever do.
        """
        return cls.does


def overrides(policy: object, base: type, hook: str) -> bool:
    """Return whether a policy does anything in a hook; those that don't are not called."""
    return getattr(type(policy), hook) is not getattr(base, hook)


class Partition(NamedTuple):
    """How the experts of each layer are split into a top, which may stay, and a bottom.

    Attributes:
        top_bytes_L: Bytes of a top: some sixteenths of the expert (``terms.PIECES``); all of it
            keeps experts whole, 0 keeps nothing.
        quotas_L: Bytes of each layer's pool of tops.
    """

    top_bytes_L: tuple[int, ...]
    quotas_L: tuple[int, ...]


class CachePolicy(Policy):
    """Decides what stays in VRAM, or in a tier below it that cannot hold all experts either.

    There a touch is a fetch out of the tier, or one in vain, and ``evictable`` what nobody reads.

    Order of calls in one event: ``on_touch`` for every choice, hit or miss, in (token, rank)
    order; then, for each miss, ``admit``, ``choose_victim`` as often as room is needed (each victim
    answered by ``on_evict``) and ``on_admit``; ``on_event_end`` once all is handed over.
    A prefetched expert is admitted the same way, without a touch.

    ``on_touches`` and ``make_room`` take a whole event at once. They are shortcuts: a class may
    have them beside the hooks they stand for, must come to the same, and a class derived from it
    that has such a hook of its own is asked one by one.
    """

    def __init__(self, run: RunInfo) -> None:
        self.run = run

    def quotas_L(self) -> Sequence[int] | None:
        """Return the bytes of each layer's own pool, or None for one pool over all layers."""
        return None

    def staging_bytes(self) -> int:
        """Return how much of the budget is set apart for experts that do not stay."""
        return 0

    def partition(self) -> Partition | None:
        """Return how experts are split, or None where they are whole.

        Of experts that are split the other hooks mean the tops: those are admitted, chosen and
        evicted, in pools of the partition's quotas; ``admit`` is not asked, every top stays that
        comes. Bottoms pass through the staging room, one copy for each use.
        """
        return None

    def repartition(self, view: View) -> Partition | None:
        """Return another split as a step begins, or None to keep the present one.

        All that has room leaves (``on_evict``); what ``rebalance`` returns next fills new pools.
        """
        return None

    def initial(self) -> Sequence[int]:
        """Return the experts to place before time zero, most wanted first; what fits is placed."""
        return ()

    def admit(self, expert: int, view: View) -> Verdict:
        """Return whether an expert about to be copied is kept or only passes through staging."""
        return Verdict.KEEP

    def rebalance(self, view: View) -> Sequence[int]:
        """Return experts to bring in as a step begins, in order, whether or not it demands them.

        Those not in VRAM are copied at once, with victims where there is no room; one for which
        nothing may leave stays out, and may be asked for again. The bytes count as rebalancing.
        """
        return ()

    def asks(self, view: View) -> Iterable["Question"]:
        """Return what to have computed elsewhere; called right after ``rebalance``."""
        return ()

    def compute(self, name: str, question: Any) -> Any:  # noqa: ANN401  the question is the policy's own
        """Return the answer to one of its own questions; pure, and may run in another process."""
        raise NotImplementedError

    def on_answer(self, name: str, answer: Any, view: View) -> None:  # noqa: ANN401
        """Learn an answer; what follows from it ``rebalance`` returns when the next step begins."""

    def on_touch(self, expert: int, view: View) -> None:
        """Learn that a token of this event chose the expert."""

    def on_touches(self, experts: Sequence[int], view: View) -> None:
        """Learn all touches of an event at once: ``on_touch`` for each."""
        for expert in experts:
            self.on_touch(expert, view)

    def on_admit(self, expert: int, view: View) -> None:
        """Learn that the expert has been given room."""

    def on_evict(self, expert: int, view: View) -> None:
        """Learn that the expert is in VRAM no longer: evicted, or its one use is over."""

    def on_event_end(self, view: View) -> None:
        """Learn that everything of this event has been handed over."""

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return the expert to give up, one of those offered."""
        raise NotImplementedError

    def make_room(
        self, coming: Sequence[int], count: int, evictable: Evictable, view: View
    ) -> Sequence[int]:
        """Admit all missing experts of an event, which are kept, and return who leaves for them.

        Stands for ``on_admit`` of those that come, and ``choose_victim`` and ``on_evict`` of those
        that leave. Asked where all experts of the pool are of one size; never called in a class
        that does not override it.

        Args:
            coming: The experts, just touched, in order of first occurrence.
            count: How many must leave; as many may.
            evictable: Who may.
            view: The present.
        """
        raise NotImplementedError


def has_shortcut(cache: CachePolicy, shortcut: str, *hooks: str) -> bool:
    """Return whether a shortcut of a cache policy counts for the hooks that it stands for.

    It does if no class derived from the one that has it has such a hook of its own.
    """
    for cls in type(cache).__mro__:
        if shortcut in vars(cls):
            return cls is not CachePolicy
        if any(hook in vars(cls) for hook in hooks):
            return False
    return False


_new = tuple.__new__  # half the time of Group(...), which is Python


class Wish(NamedTuple):
    """A prefetch: lower priorities are copied first, equal ones in the order wished."""

    expert: int
    priority: float = 0.0


class Question(NamedTuple):
    """Something slow to be computed elsewhere; its answer comes back through ``on_answer``."""

    name: str
    question: Any


class PrefetchPolicy(Policy):
    """Decides what to copy before it is asked for.

    Wishes wait in the controller's queue, without room or victim, until the link has room. A wish
    for a layer is cancelled when that layer's router has run: what it chose has become demand.
    """

    does: ClassVar[frozenset[str]] = frozenset({"prefetch"})
    timing_free: ClassVar[bool] = False

    def __init__(self, run: RunInfo) -> None:
        self.run = run

    def wants(self, demand: Demand | None, view: View) -> Iterable[Wish]:
        """Return what to copy ahead, after a layer was routed, or with None when a step begins."""
        return ()

    def asks(self, demand: Demand | None, view: View) -> Iterable[Question]:
        """Return what to have computed elsewhere; called right before ``wants``."""
        return ()

    def compute(self, name: str, question: Any) -> Any:  # noqa: ANN401  the question is the policy's own
        """Return the answer to one of its own questions; pure, and may run in another process."""
        raise NotImplementedError

    def on_answer(self, name: str, answer: Any, view: View) -> Iterable[Wish]:  # noqa: ANN401
        """Return what to copy ahead now that the answer is known."""
        return ()


class Group(NamedTuple):
    """Experts that run on one device, as one launch or, if ``each``, as one launch for each."""

    device: Device
    experts: Sequence[int]
    each: bool = False


def one_by_one(device: Device, experts: Sequence[int]) -> list[Group]:
    """Return a launch for each expert, one after another."""
    return [_new(Group, (device, experts, True))]


class Turn(NamedTuple):
    """One request's place in a step; ``chunk`` caps its prompt tokens, None takes all left."""

    request: int
    chunk: int | None = None


class SchedulePolicy(Policy):
    """Decides which requests form a step, where the experts of a layer run, and in which order.

    Attributes:
        counts_served: Whether a cache policy is told of the experts that serve (``reroute``) in
            place of those that the router chose.
    """

    counts_served: ClassVar[bool] = False

    def __init__(self, run: RunInfo) -> None:
        self.run = run

    def reroute(
        self, chosen: Sequence[int], gates: Sequence[float], view: View
    ) -> Sequence[tuple[int, int | None]]:
        """Return changes of a router's choices, for lossy systems: called before ``plan``.

        What is demanded, copied and computed is what this leaves. A token's gates are then the
        router's probabilities of the experts it has, scaled to the sum that its gates had.

        Args:
            chosen: The router's choices in touch order, ``run.top_k`` of each token.
            gates: Their weights, or empty.
            view: The present; ``view.layer`` is the layer.

        Returns:
            changes: By place in ``chosen``: another expert of the layer, which the token does not
                have, or None, which skips the choice. Needs ``does`` to say so.
        """
        return ()

    def plan(self, demand: Demand, view: View) -> Sequence[Group]:
        """Return launches in order; every expert of ``demand.experts`` stands in exactly one."""
        raise NotImplementedError

    def least_slots(self) -> int | None:
        """Return how many slots experts keep, whatever they lend to KV caches; None lends nothing.

        Where they lend, KV caches get room as requests begin, and experts get back what no request
        has reserved.
        """
        return None

    def form(
        self, waiting: Sequence[int], running: Sequence[int], view: View
    ) -> Sequence[int | Turn]:
        """Return the requests of the next step: the running one, else the first to wait.

        Asked when a step has ended and when a request arrives while none is under way. Those that
        begin must fit into ``view.kv_free_bytes`` and ``view.kv_lendable_bytes`` together; nothing
        to choose is a wait.

        Args:
            waiting: Those that no step has had, in order of arrival.
            running: Those that have begun, in that order.
            view: The present; ``view.requests`` says what is known of each.
        """
        return running[:1] or waiting[:1]
