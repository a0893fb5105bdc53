"""The driver in real time: wait for a fact, tell the controller, obey.

What holds for every device is here: one host thread, which alone talks to the controller; polls
right before a router's choice is reported and, while the host waits, whenever the controller could
answer; numbered commands obeyed in order (design 4.1). How bytes move and products are computed is
a subclass' business: ``drivers/threads.py`` on a CPU, ``drivers/cuda`` on a GPU. Nothing here knows
torch, a model's family or a simulator.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Generic, NoReturn, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from moesim.backends.means import H2D, PEER_OUT, Way, fixed_offset, run_offsets, way_of
from moesim.simulator.controller import Controller
from moesim.simulator.errors import CapabilityError
from moesim.simulator.ledger import Timings
from moesim.simulator.messages import (
    Ask,
    Command,
    Copies,
    Copy,
    Drop,
    Fact,
    FormStep,
    LayerDone,
    LayerRouted,
    Move,
    Report,
    Reroute,
    Run,
    RunBegan,
    Runs,
    StepBegan,
    StepEnded,
    Wait,
    WakeAt,
    commands_one_by_one,
)
from moesim.simulator.terms import ALL

Span = tuple[str, object, int, int]
"""One job as a timeline shows it: resource, what it was, when it began and ended."""


class Summed(Protocol):
    """What a layer computes on, as far as this module knows it."""

    def merge(self) -> Any:  # noqa: ANN401  a tensor; nothing here knows torch
        """Return the layer's result."""
        ...

    def reroute(self, changes: Sequence[tuple[int, int | None]]) -> None:
        """Take other experts in place of some choices, or none, and weigh them anew."""
        ...


class Decoder(Protocol):
    """What runs decode steps in place of a model's own forward."""

    def open(self) -> Any:  # noqa: ANN401  a cache of transformers
        """Return the cache of a request that begins; its prompt goes through the model."""
        ...

    def close(self, cache: Any) -> None:  # noqa: ANN401  likewise
        """Take the cache of a request that has ended."""
        ...

    def places(self, caches: Sequence[Any]) -> tuple[int, Sequence[int]]:
        """Return of how many rows a step of these requests is, and which are theirs."""
        ...

    def step(
        self,
        fed: Sequence[tuple[Any, int]],
        compute: Callable[[int, Any, Any], None],
        until: Callable[[Callable[[], bool]], None],
    ) -> tuple[Any, Sequence[int]]:
        """Return the logits [R, V] after one more token of each request, and the best tokens.

        Args:
            fed: Cache and token of each request.
            compute: Has a layer's experts computed.
            until: Waits until something has come.
        """
        ...


Work = TypeVar("Work", bound=Summed)


class RealDriver(ABC, Generic[Work]):
    """Obeys one controller on one device, for one run. ``Work`` is what a layer computes on.

    Use it as a context manager: leaving it, however that happens, ends its threads and releases
    its memory.

    Attributes:
        timings: What was measured; whole once the run has ended.
        form: The step that the controller wants served next, or None.
        wakes_ns: When whoever waits must look again at the latest, or None.
        spans: Every job, where the driver was asked to note them.
        lent: What lies in another GPU that lends memory, if one does.
        gpus: How many compute.

    Raises:
        CapabilityError: Experts live on several GPUs, and the driver computes on one.
    """

    name: ClassVar[str]
    skips_choices: ClassVar[bool] = False
    """Whether a choice may be left without an expert."""
    computes_on_several: ClassVar[bool] = False
    """Whether experts may live and run on several GPUs."""

    def __init__(self, controller: Controller) -> None:
        self.timings = Timings()
        self.form: FormStep | None = None
        self.wakes_ns: int | None = None
        self.spans: list[Span] | None = None
        self.lent = None if controller.shelves is None else controller.shelves.peer
        self.gpus = controller.residency.gpus
        if self.gpus > 1 and not self.computes_on_several:
            raise CapabilityError(
                f"the {self.name} driver computes on one GPU; take --gpus 1, or a backend that "
                "computes on several: cpu, cuda-eager"
            )
        self._controller = controller
        self._origin_ns = time.perf_counter_ns()
        # Where each part of an expert lies, or will when its copy ends; see `_unit`.
        self._offsets: dict[int, int] = {}
        self._asks = 0  # asked and not answered
        self._layer_done = -1
        self._work_open: Work | None = None
        self._obey: Mapping[type, Callable[[Any], None]] = {
            Copy: self._copy,
            Copies: self._obey_each,
            Run: self._run,
            Runs: self._obey_each,
            Ask: self._ask,
            LayerDone: self._note_layer_done,
            FormStep: self._note_form,
            Wait: self._nothing,
            Move: self._refuse,
            Drop: self._refuse,
            Reroute: self._reroute,
            WakeAt: self._refuse,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # What a device does. None of these waits, unless its name says so.

    @abstractmethod
    def place(self, expert: int, offset_bytes: int) -> None:
        """Put an expert, or its top, into VRAM before time zero; returns when it is there."""

    @abstractmethod
    def open_layer(self, work: Work) -> None:
        """Take in what the runs of the coming layer compute on."""

    @abstractmethod
    def start_copy(self, command: Copy, offset_bytes: int) -> None:
        """Hand a copy over: it begins when the runs it names and the copies before it ended."""

    def place_in_lent(self, expert: int, offset_bytes: int) -> None:
        """Put an expert into the memory that another GPU lends, before time zero."""
        self._lends_nothing(expert, offset_bytes)

    def start_lent_copy(self, command: Copy, way: Way) -> None:
        """Hand a copy over that goes between VRAM and the memory that another GPU lends."""
        self._lends_nothing(command, way)

    @abstractmethod
    def start_run(self, command: Run, offsets_bytes: Sequence[int]) -> None:
        """Hand a run over: it begins when the copies it names and the runs before it ended.

        Args:
            command: What to compute, on which device.
            offsets_bytes: Where each expert lies in VRAM; empty on the CPU, which reads the store.
        """

    @abstractmethod
    def start_ask(self, command: Ask) -> None:
        """Have an ask computed beside the host thread."""

    @abstractmethod
    def has_results(self) -> bool:
        """Return whether all that was handed over for the open layer has ended, well or not."""

    @abstractmethod
    def poll(self) -> list[Report]:
        """Return all that has ended and was not reported: copies, CPU runs, answers, failures."""

    @abstractmethod
    def watch(self) -> None:
        """From now on let an end wake ``sleep``; called before looking at what has ended."""

    @abstractmethod
    def sleep(self) -> None:
        """Wait until something has ended since ``watch``, or a while; a driver may spin instead."""

    @abstractmethod
    def drain(self) -> None:
        """Wait until everything that was handed over has ended, and complete the timings."""

    @abstractmethod
    def forget_step(self) -> None:
        """Forget what only commands of the step that ended may name."""

    @abstractmethod
    def close(self) -> None:
        """Cancel what has not begun, end every thread, release all memory; twice is once."""

    def read(self, values: Any) -> NDArray[np.int64]:  # noqa: ANN401  a tensor; nothing here knows torch
        """Return whole numbers that the device may still be computing, polling meanwhile."""
        return np.asarray(values)

    def merge(self, work: Work) -> Any:  # noqa: ANN401  likewise
        """Return a layer's result, once all of its runs were handed over and their results came."""
        return work.merge()

    def decoder(
        self,
        model: Any,  # noqa: ANN401  what a model is, a subclass knows
        longest: int,
        look: Callable[[int], Any] | None = None,
        batch: int = 1,
    ) -> Decoder | None:
        """Return what runs a decode step in place of the model's own forward, or None.

        Args:
            model: Whose experts are offloaded.
            longest: Tokens of the longest request, prompt and generation.
            look: Computes what a layer's look ahead finds, inside the forward.
            batch: The most requests that run together.
        """
        del model, longest, look, batch
        return None

    # What a server of requests calls

    def clock_ns(self) -> int:
        """Return the time since the driver was made; it never goes back."""
        return time.perf_counter_ns() - self._origin_ns

    def begin_run(self, budget_bytes: int) -> None:
        """Report that the run begins, with the residents placed; nobody has arrived before."""
        residents = self._controller.initial()
        self.tell([RunBegan(residents, budget_bytes)])
        for expert in residents:
            pool = self._controller.residency.pool_of(expert)
            assert pool is not None
            offset = fixed_offset(self.name, pool.rooms[expert])
            self._offsets[expert] = offset
            self.place(expert, offset)
        if self.lent is not None:
            for expert in self.lent.experts():
                self.place_in_lent(expert, fixed_offset(self.name, self.lent.place_of(expert)))

    def begin_step(self, began: StepBegan) -> None:
        """Report that a forward pass begins."""
        self.form = None
        self.tell([began])

    def run_layer(self, routed: LayerRouted, work: Work) -> None:
        """Report a router's choice and obey until the layer is done: all of it handed over."""
        facts = self.poll()
        facts.append(routed)
        self._layer_done = -1
        self._work_open = work
        self.open_layer(work)
        self.tell(facts)
        while self._layer_done != routed.layer:
            self._wait_and_tell()

    def await_results(self) -> None:
        """Wait for what the layer computes, polling as long as the controller could answer.

        Raises:
            MoesimError: A command failed.
        """
        self.wait_until(self.has_results)

    def end_step(self, ended: StepEnded, then: Sequence[Fact]) -> None:
        """Report that a step is complete, and what follows from that: ends and arrivals."""
        facts = self.poll()
        facts.append(ended)
        self.forget_step()
        self.tell([*facts, *then])

    def await_form(self) -> None:
        """Wait until the controller wants a step, if an answer may still make it want one."""
        while self.form is None and self._asks:
            self._wait_and_tell()

    def end_run(self) -> None:
        """Let all that was handed over end, and close the controller's books."""
        self.drain()
        self.timings.span_ns = self.clock_ns()
        self._controller.close()

    # Telling and obeying

    def tell(self, facts: Sequence[Report]) -> None:
        """Report facts and obey the answer."""
        began_ns = self.clock_ns()
        orders = self._controller.decide(facts, began_ns)
        took_ns = self.clock_ns() - began_ns
        self.timings.decision_ns += took_ns
        self.timings.calls_ns.append(took_ns)
        for order in orders:
            self._obey[type(order)](order)

    def answered(self) -> None:
        """Note that one ask has been answered; for subclasses, when they report it."""
        self._asks -= 1

    def wait_until(self, has_come: Callable[[], bool]) -> None:
        """Wait for something, polling as long as the controller could answer."""
        while True:
            self.watch()
            facts = self.poll() if self._controller.listens or self._asks else []
            if facts:
                self.tell(facts)
            elif has_come():
                return
            else:
                self.sleep()

    def _wait_and_tell(self) -> None:
        self.watch()
        facts = self.poll()
        if facts:
            self.tell(facts)
        else:
            self.sleep()

    def _obey_each(self, batch: Copies | Runs) -> None:
        for command in commands_one_by_one([batch]):
            self._obey[type(command)](command)

    @property
    def is_split(self) -> bool:
        """Whether experts are kept, copied and run in parts."""
        return self._controller.residency.is_split

    def stretch(self, expert: int, part: int) -> tuple[int, int]:
        """Return where in an expert's bytes a part of it begins and ends."""
        return self._controller.residency.stretch(expert, part)

    def _copy(self, command: Copy) -> None:
        lender = None if self.lent is None else self.lent.place.device
        way = way_of(self.name, command, lender, self.gpus)
        if way.engine != PEER_OUT:
            self._offsets[self._unit(command.expert, command.part)] = way.target_bytes
        if way.engine == H2D:
            self.start_copy(command, way.target_bytes)
        else:
            self.start_lent_copy(command, way)

    def _run(self, command: Run) -> None:
        first = self._unit(0, command.part)
        offsets = run_offsets(self.name, command, self._offsets, first, self.gpus)
        self.start_run(command, offsets)

    def _unit(self, expert: int, part: int) -> int:
        """Return the number of a part of an expert; of a whole one it is the expert's."""
        if part != ALL and not self.is_split:
            raise CapabilityError(
                f"the {self.name} driver was made for whole experts, not part {part} of {expert}"
            )
        return part * self._controller.residency.experts_total + expert

    def _reroute(self, command: Reroute) -> None:
        """Have the open layer computed on other choices; it stands before the layer's runs."""
        if not self.skips_choices and any(expert is None for _, expert in command.changes):
            raise CapabilityError(
                f"the {self.name} driver skips no choices; --backend cpu does, or take a policy "
                "that sends them to another expert"
            )
        work = self._work_open
        assert work is not None
        work.reroute(command.changes)
        self.open_layer(work)

    def _ask(self, command: Ask) -> None:
        self._asks += 1
        self.start_ask(command)

    def _note_layer_done(self, command: LayerDone) -> None:
        self._layer_done = command.layer

    def _note_form(self, command: FormStep) -> None:
        self.form = command

    def _nothing(self, command: Command) -> None:
        """Obey a wait: the next fact comes by itself."""

    def _lends_nothing(self, *asked: object) -> NoReturn:
        raise CapabilityError(
            f"the {self.name} driver copies from RAM alone, not from another GPU: {asked}; leave "
            "out --peer-cache"
        )

    def _refuse(self, command: Command) -> None:
        raise CapabilityError(
            f"the {self.name} driver does not do {type(command).__name__} commands"
        )
