"""What the host pays for each call of the driver, taken from the driver itself."""

from itertools import pairwise
from statistics import fmean
from time import perf_counter_ns
from typing import Any

import torch

from moesim.backends.calibration import sheet as write
from moesim.backends.calibration.pieces import LEAST_POOL, prompt_work
from moesim.backends.calibration.sampling import Probe
from moesim.backends.calibration.sheet import Sheet
from moesim.backends.controllers import Deciding
from moesim.backends.drivers.cuda.graph_driver import GraphDriver
from moesim.backends.drivers.cuda.streams import NS_PER_MS, new_event
from moesim.backends.opening import open_model
from moesim.backends.sources import RANDOM, Source
from moesim.simulator.commands.policies import DEFAULTS as LRU
from moesim.simulator.messages import Copy, Run
from moesim.simulator.terms import GPU, RAM, Cause, Place, Tier

CONTEXT = 128
CALLS = 8
BEHIND = 3
PROMPT_TOKENS = 128
_LAYER, _EVENT, _POLL, _ISSUE = "host launch layer", "host event", "host poll", "host copy"
_RUN, _ONE = "host launch run", "host launch run of one"
_PROMPT_RUN = "host launch run of one in a prompt"
_WAITED, _WAITED_BESIDE = "run after its copy", "run after its copy, beside copies"
_GAP = "gap between two copies"
_LONE, _EACH = "lone copy, from the host's call to its end", "copy, from begin to begin"
_END, _QUIET_END = "host end of a step with copies", "host end of a step without"
_WINDOW = "16MiB"


class DriverHost:
    """A driver with nothing to decide.

    Args:
        model: Name of a shape.
        place: The GPU.
    """

    def __init__(self, model: str, place: torch.device) -> None:
        opened = open_model(Source(model, RANDOM, layers=2, pinned_pool=LEAST_POOL), place)
        store = opened.store
        self._experts, self._top_k = store.parts.experts, store.parts.top_k
        self._blob_bytes = store.sizes_L[0]
        budget_bytes = self._experts * self._blob_bytes
        controller = Deciding(policies=LRU, budget_bytes=budget_bytes).controller(
            experts=self._experts, top_k=self._top_k, sizes_L=store.sizes_L
        )
        self._opened = opened
        self._driver = GraphDriver(controller, store, budget_bytes)
        self._decode = decode = self._driver.single_decoder(opened.checkpoint.model, CONTEXT)
        self._layer = decode.graphs[1].replay
        self._work = decode.works[0]
        self._work.choose(list(range(self._top_k)))
        module = store.parts.layers[0].experts
        hidden = self._work.hidden_TD.shape[-1]
        self._prompt = prompt_work(module, hidden, self._experts, self._top_k, PROMPT_TOKENS, place)
        self._event = new_event()
        self._number = 0

    def probes(self) -> list[Probe]:
        """Return the probes of all calls."""
        return [
            Probe(_LAYER, self._layer_ns),
            Probe(_RUN, lambda: self._run_ns(self._top_k)),
            Probe(_ONE, lambda: self._run_ns(1)),
            Probe(_PROMPT_RUN, self._prompt_run_ns),
            Probe(_EVENT, lambda: self._idle_ns(self._event.record)),
            Probe(_POLL, lambda: self._idle_ns(self._driver.poll)),
            Probe(_ISSUE, self._copies_ns),
            Probe(_WAITED, lambda: self._waited_ns(0)),
            Probe(_WAITED_BESIDE, lambda: self._waited_ns(BEHIND)),
            Probe(_GAP, self._gap_ns),
            Probe(_EACH, self._each_ns),
            Probe(_LONE, self._lone_ns),
            Probe(_END, lambda: self._end_ns(self._experts)),
            Probe(_QUIET_END, lambda: self._end_ns(0)),
        ]

    def _idle_ns(self, call: Any) -> float:  # noqa: ANN401  any function without arguments
        """Return the mean time of a call on an idle device."""
        took_ns = 0
        for _ in range(CALLS):
            torch.cuda.synchronize()
            began_ns = perf_counter_ns()
            call()
            took_ns += perf_counter_ns() - began_ns
        return took_ns / CALLS

    def _layer_ns(self) -> float:
        self._decode.cache.reset()  # each launch fills a place of it
        return self._idle_ns(self._layer)

    def _run_ns(self, experts: int) -> float:
        chosen = tuple(range(experts))
        offsets = [expert * self._blob_bytes for expert in chosen]

        def launch() -> None:
            self._number += 1
            command = Run(self._number, chosen, (1,) * experts, GPU)
            self._driver.start_run(command, offsets)

        self._driver.open_layer(self._work)
        took_ns = self._idle_ns(launch)
        torch.cuda.synchronize()
        self._driver.forget_step()
        return took_ns

    def _prompt_run_ns(self) -> float:
        """Return the host's time to launch one expert of a prompt, the mean over some of them."""
        each = PROMPT_TOKENS * self._top_k // self._experts
        experts = iter(range(CALLS))

        def launch() -> None:
            expert = next(experts)
            self._number += 1
            command = Run(self._number, (expert,), (each,), GPU)
            self._driver.start_run(command, [expert * self._blob_bytes])

        self._driver.open_layer(self._prompt)
        took_ns = self._idle_ns(launch)
        self._end_step()
        return took_ns

    def _copies_ns(self) -> float:
        """Return the mean time of a call when copies are handed over one after another."""
        began_ns = perf_counter_ns()
        self._copy_each(CALLS)
        took_ns = perf_counter_ns() - began_ns
        self._end_step()
        return took_ns / CALLS

    def _copy_each(self, copies: int) -> list[int]:
        """Hand the copies of the first experts over and return their numbers."""
        numbers = []
        for expert in range(copies):
            self._number += 1
            place = Place(Tier.VRAM, slot=expert, offset_bytes=expert * self._blob_bytes)
            command = Copy(self._number, expert, 0, RAM, place, Cause.DEMAND)
            self._driver.start_copy(command, expert * self._blob_bytes)
            numbers.append(self._number)
        return numbers

    def _end_step(self) -> None:
        torch.cuda.synchronize()
        self._driver.poll()
        self._driver.forget_step()

    def _waited_ns(self, behind: int) -> float:
        """Return the device's time from the end of a copy to that of a run which waits for it.

        Args:
            behind: Copies that follow the one waited for.
        """
        driver = self._driver
        driver.open_layer(self._work)
        first, *_ = self._copy_each(1 + behind)
        self._number += 1
        driver.start_run(Run(self._number, (0,), (1,), GPU, after=(first,)), [0])
        copied, ran = driver.marks_of((first, self._number))
        torch.cuda.synchronize()
        elapsed_ms: float = copied.ended.elapsed_time(ran.ended)
        self._end_step()
        return elapsed_ms * NS_PER_MS

    def _gap_ns(self) -> float:
        """Return the device's mean time between two copies that were handed over together."""
        marks = self._driver.marks_of(self._copy_each(CALLS))
        torch.cuda.synchronize()
        gaps_ms = [one.ended.elapsed_time(other.began) for one, other in pairwise(marks)]
        self._end_step()
        return fmean(gaps_ms) * NS_PER_MS

    def _each_ns(self) -> float:
        """Return the device's mean time from one copy's begin to the next one's."""
        first, *_, last = self._driver.marks_of(self._copy_each(CALLS))
        torch.cuda.synchronize()
        elapsed_ms: float = first.ended.elapsed_time(last.ended)
        self._end_step()
        return elapsed_ms * NS_PER_MS / (CALLS - 1)

    def _lone_ns(self) -> float:
        """Return the time from a copy's call until the host has seen its end, engine idle."""
        torch.cuda.synchronize()
        began_ns = perf_counter_ns()
        (mark,) = self._driver.marks_of(self._copy_each(1))
        while not mark.ended.query():
            pass
        took_ns = perf_counter_ns() - began_ns
        self._end_step()
        return took_ns

    def _end_ns(self, copies: int) -> float:
        """Return the host's time to close a step that made so many copies."""
        self._copy_each(copies)
        torch.cuda.synchronize()
        began_ns = perf_counter_ns()
        self._end_step()
        took_ns = perf_counter_ns() - began_ns
        self._driver.drain()  # reads the events that steps left
        return took_ns

    def launch(self, sheet: Sheet) -> dict[str, Any]:
        """Return the section ``launch``; a run's own event is charged apart."""
        source = sheet.source(
            "launch", "host time of the driver's calls, device idle", [_LAYER, _RUN, _ONE]
        )
        prompt = sheet.source("prompt-run", "likewise, one expert of a prompt", [_PROMPT_RUN])
        event = sheet.source("event", "host time to record one event", [_EVENT])
        run, one, event_ns = sheet.median(_RUN), sheet.median(_ONE), sheet.median(_EVENT)
        each_ns = max(0.0, run - one) / (self._top_k - 1)
        return {
            "layer": [write.ns(sheet.median(_LAYER)), source],
            "run": [write.ns(one - each_ns - event_ns), source],
            "per_expert": [write.ns(each_ns), source],
            "event": [write.ns(event_ns), event],
            "prompt_run": [write.ns(sheet.median(_PROMPT_RUN) - event_ns), prompt],
        }

    def poll(self, sheet: Sheet) -> list[Any]:
        """Return the figure of one poll."""
        source = sheet.source("poll", "host time of the driver's poll, nothing ended", [_POLL])
        return [write.ns(sheet.median(_POLL)), source]

    def copying(self, sheet: Sheet) -> dict[str, Any]:
        """Return the section ``copying``; its event is charged apart."""
        source = sheet.source(
            "issue", f"host time of the driver's copy call, {CALLS} in a row", [_ISSUE]
        )
        gap = sheet.source("gap", f"between {CALLS} copies handed over in a row", [_GAP])
        start = sheet.source(
            "start", f"{_LONE}, engine idle, less the call and {_EACH}", [_LONE, _EACH, _ISSUE]
        )
        issue_ns = sheet.median(_ISSUE) - sheet.median(_EVENT)
        start_ns = sheet.median(_LONE) - sheet.median(_ISSUE) - sheet.median(_EACH)
        return {
            "source": "pinned",
            "blocking": "no",
            "pieces_per_expert": "1",
            "issue": [write.ns(issue_ns), source],
            "overhead": [write.ns(sheet.median(_GAP)), gap],
            "start": [write.ns(max(0.0, start_ns)), start],
            "window": _WINDOW,
        }

    def waiting(self, sheet: Sheet, run_name: str, slow_down: float) -> dict[str, Any]:
        """Return from when a run may begin that waits for a copy, and what copies behind that add.

        Args:
            sheet: The samples.
            run_name: The probe of such a run with nothing to wait for.
            slow_down: The share by which kernels are longer beside copies.
        """
        run_ns, waited_ns = sheet.median(run_name), sheet.median(_WAITED)
        text = "from the end of a copy to that of a run of one expert that waits for it"
        after = sheet.source("after-copy", f"{text}, less the run", [_WAITED, run_name])
        beside = sheet.source(
            "beside-run", f"{text}, with {BEHIND} copies behind it and without", [_WAITED_BESIDE]
        )
        more_ns = sheet.median(_WAITED_BESIDE) - waited_ns - slow_down * run_ns
        return {
            "expert_after_copy": [write.ns(waited_ns - run_ns), after],
            "expert_while_copying": [write.ns(more_ns), beside],
        }

    def close(self) -> None:
        """Release the driver's memory."""
        self._driver.close()
        del self._layer, self._work, self._decode, self._opened
