"""What the measurements on two GPUs have in common: a model, its figures, what is foretold of it.

Everything runs on the CPU too, where threads and two pieces of memory play the GPUs: that shows
that a measurement works and says nothing about a GPU.
"""

import argparse
import datetime as dt
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean, median
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch

from moesim.backends.calibration.fingerprint import assigned_cores, fingerprint
from moesim.backends.controllers import Deciding
from moesim.backends.drivers.cuda.graph_driver import GraphDriver
from moesim.backends.drivers.threads import ThreadsDriver
from moesim.backends.execution import Execution, MakeDriver
from moesim.backends.opening import open_model
from moesim.backends.server import Driver
from moesim.backends.sources import Source
from moesim.backends.store import ExpertStore
from moesim.hardware_profiles import HardwareProfile, RuntimeProfile
from moesim.simulator.commands.policies import DEFAULTS as LRU
from moesim.simulator.controller import Controller
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.simpy import SimpyEngine
from moesim.simulator.ledger import RequestTimes, Timings, check
from moesim.simulator.registry import parse
from moesim.simulator.tiers.plan import TierPlan
from moesim.simulator.workload.demands import Workload
from moesim.traces import RoutingTrace, load, samples
from moesim.validation.compare import compare_decisions, gaps_in_time
from moesim.validation.machine import Log
from moesim.validation.provenance import commit_of, without_folder
from moesim.validation.subject import Subject

REPEATS = 5
SECOND_NS = 10**9
NS_PER_MS = 1e6


class Clocked:
    """A device's driver, and when its clock began on the machine's.

    Attributes:
        began_ns: Of the driver made last; the clocks of all processes of a machine are one.
    """

    def __init__(self, make: MakeDriver) -> None:
        self._make = make
        self.began_ns = 0

    def __call__(
        self, controller: Controller, store: ExpertStore, budget_bytes: int, *, keep_spans: bool
    ) -> Driver:
        """Return a driver."""
        driver = self._make(controller, store, budget_bytes, keep_spans=keep_spans)
        self.began_ns = perf_counter_ns() - driver.clock_ns()
        return driver


@dataclass(slots=True)
class Rig:
    """A model on a device, with the requests that it is served."""

    subject: Subject
    device: torch.device
    clocked: Clocked
    tested: RoutingTrace
    fitted: RoutingTrace
    profiles: tuple[HardwareProfile, RuntimeProfile] | None = None
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of one expert."""
        return self.subject.opened.store.sizes_L[0]

    @property
    def experts(self) -> int:
        """Of all layers."""
        parts = self.subject.opened.store.parts
        return parts.experts * len(parts.layers)

    def deciding(self, share: float, lent: str | None = None, lent_share: float = 0.0) -> Deciding:
        """Return LRU with room for a share of the experts, beside another GPU's memory."""
        tiers = None
        if lent is not None:
            room_bytes = round(lent_share * self.experts) * self.size
            tiers = TierPlan(peer=parse("cache", lent), peer_bytes=room_bytes, peer_gpu=1)
        budget_bytes = round(share * self.experts) * self.size
        window_bytes = CostModel(*self.known, self.subject.opened.costs_of).window_bytes
        return Deciding(
            policies=LRU, budget_bytes=budget_bytes, window_bytes=window_bytes, tiers=tiers
        )

    @property
    def known(self) -> tuple[HardwareProfile, RuntimeProfile]:
        """The profiles, once they were taken."""
        assert self.profiles is not None
        return self.profiles


def options(doc: str) -> argparse.ArgumentParser:
    """Return the options that say what is measured and where it is written."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, help="where to write everything as JSON")
    parser.add_argument("--model", default="olmoe", help="a shape, or a checkpoint's folder")
    parser.add_argument("--weights", default="random", help="random or checkpoint")
    parser.add_argument("--layers", type=int, help="of the model, and of the trace: the first N")
    parser.add_argument("--trace", type=Path, help="default: the twin of OLMoE that ships")
    parser.add_argument("--requests", type=int, default=3, help="of it, after its first")
    parser.add_argument("--share", type=float, default=0.25, help="of the experts in VRAM")
    parser.add_argument("--repeats", type=int, default=3, help="executions of each")
    parser.add_argument("--warm", type=int, default=20, help="decode tokens that do not count")
    parser.add_argument("--hardware", default="h100-sxm-x2", help="profile that predicts")
    parser.add_argument("--runtime", default="moesim-graph", help="profile that predicts")
    parser.set_defaults(calibrate=0.0)
    parser.add_argument("--commit", help="of the code, where it has no history")
    return parser


def open_rig(given: argparse.Namespace) -> Rig:
    """Load or make the model; the trace's first request is what figures may be fitted on."""
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if has_gpu else torch.device("cpu")
    if not has_gpu:
        torch.set_num_threads(1)
    trace = load(given.trace or Path(samples.__path__[0]) / "twin-olmoe-16x64.npz")
    clocked = Clocked(GraphDriver if has_gpu else ThreadsDriver)
    opened = open_model(Source(given.model, given.weights, given.layers), device)
    subject = Subject(opened=opened, make_driver=clocked, prompts=[range(8)], new_tokens=6)
    tested = range(1, min(trace.requests, 1 + given.requests))
    return Rig(subject, device, clocked, trace.select_requests(tested), trace.select_requests([0]))


# Prediction and execution


@dataclass(frozen=True, slots=True)
class Served:
    """What came of serving the requests, foretold or executed.

    Attributes:
        tpot_ms: Mean, p50 and p99 of the gaps between tokens that count.
        gaps_ns: All gaps in time.
        counts: The decisions.
        decision_ns: Time in calls of the controller, over the run.
        calls: How many there were.
        moved_bytes: By copy engine.
        busy_ns: Likewise.
        span_ns: From the first request's begin to the last token.
        log: Every call of the controller.
        requests: When each began, and its tokens ended.
    """

    tpot_ms: dict[str, float]
    gaps_ns: list[int]
    counts: dict[str, int]
    decision_ns: int
    calls: int
    moved_bytes: dict[str, int]
    busy_ns: dict[str, int]
    span_ns: int
    log: Log
    requests: list[RequestTimes]

    def row(self) -> dict[str, Any]:
        """Return what is written of it."""
        told = ("demands", "hits", "late_hits", "misses", "copies", "bytes_peer", "bytes_demoted")
        share = {name: round(ns / self.span_ns, 4) for name, ns in self.busy_ns.items() if ns}
        return {
            "tpot_ms": self.tpot_ms,
            "counts": {name: self.counts[name] for name in told},
            "decision_us_per_call": round(self.decision_ns / self.calls / 1e3, 2),
            "moved_bytes": {name: count for name, count in self.moved_bytes.items() if count},
            "busy_share": share,
        }


def executed(rig: Rig, deciding: Deciding, warm: int) -> Served:
    """Serve the requests with forced routes, from cold."""
    done: Execution = rig.subject.serve(deciding, rig.tested)
    return _served(done.timings, done.counts.as_dict(), done.log or [], warm)


def foretold(
    rig: Rig, deciding: Deciding, profiles: tuple[HardwareProfile, RuntimeProfile], warm: int
) -> Served:
    """Replay the same requests in virtual time."""
    costs = CostModel(*profiles, rig.subject.opened.costs_of)
    trace = rig.tested
    sizes_L = tuple(layer.expert_bytes for layer in costs.shape.layers)
    controller = deciding.controller(
        experts=trace.experts, top_k=trace.top_k, sizes_L=sizes_L, keep_log=True
    )
    engine = SimpyEngine(
        controller,
        Workload(trace),
        costs,
        expert_bytes=controller.residency.part_bytes,
        budget_bytes=deciding.budget_bytes,
        gpus=deciding.spread(trace.experts, sizes_L),
    )
    timings = engine.run()
    controller.close()
    check(controller.counts, timings)
    return _served(timings, controller.counts.as_dict(), controller.log or [], warm)


def _served(timings: Timings, counts: dict[str, int], log: Log, warm: int) -> Served:
    requests = sorted(timings.requests, key=lambda one: one.request)
    gaps_ns = gaps_in_time(requests)
    return Served(
        tpot_of(gaps_ns[warm:]),
        gaps_ns,
        counts,
        timings.decision_ns,
        len(log),
        dict(timings.engine_bytes),
        dict(timings.engines_busy_ns),
        requests[-1].token_ends_ns[-1] - requests[0].began_ns,
        log,
        requests,
    )


def tpot_of(gaps_ns: Sequence[int]) -> dict[str, float]:
    """Return mean, p50 and p99 in ms."""
    gaps_ms = np.array(gaps_ns) / NS_PER_MS
    found = {"mean": fmean(gaps_ms), "p50": median(gaps_ms), "p99": np.percentile(gaps_ms, 99)}
    return {name: round(float(ms), 4) for name, ms in found.items()}


def compared(prediction: Served, executions: Sequence[Served]) -> dict[str, Any]:
    """Return a prediction beside its executions: errors, spread, the first differing decision.

    An error is that of the prediction against the median execution.
    """
    means = [one.tpot_ms["mean"] for one in executions]
    middle = {name: median(one.tpot_ms[name] for one in executions) for name in prediction.tpot_ms}
    decided = compare_decisions(prediction.log, executions[0].log, exact=True)
    return {
        "predicted": prediction.row(),
        "executed": [one.row() for one in executions],
        "median_tpot_ms": {name: round(ms, 4) for name, ms in middle.items()},
        "error": {name: round(ms / middle[name] - 1, 4) for name, ms in prediction.tpot_ms.items()},
        "spread": round((max(means) - min(means)) / 2 / median(means), 4),
        "decisions": decided.model_dump(mode="json"),
    }


# What is written


def provenance(rig: Rig, given: argparse.Namespace) -> dict[str, Any]:
    """Return command, versions, commit and machine, in words."""
    gpus = range(torch.cuda.device_count()) if rig.device.type == "cuda" else ()
    return {
        "command": command_given(),
        "date": today(),
        "commit": commit_of(given.commit),
        "versions": {name: _version(name) for name in ("torch", "triton", "transformers", "numpy")},
        "python": sys.version.partition(" ")[0],
        "machine": fingerprint(rig.device).model_dump(),
        "gpus": [torch.cuda.get_device_name(gpu) for gpu in gpus],
        "cores": assigned_cores(),
        "model": rig.subject.name,
        "trace": rig.tested.content_hash(),
        "requests": rig.tested.requests,
        "expert_bytes": rig.size,
        "experts": rig.experts,
        **rig.sources,
    }


def write(path: Path | None, found: Mapping[str, Any]) -> None:
    """Write JSON, if anywhere."""
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def command_given() -> str:
    """Return the command line, without the folders of this machine."""
    return " ".join(["python", *(without_folder(word) for word in sys.argv)])


def today() -> str:
    """Return the date, as evidence has it."""
    return dt.datetime.now(dt.UTC).date().isoformat()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
