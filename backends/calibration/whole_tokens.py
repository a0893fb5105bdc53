"""Whole tokens of a model with every expert resident.

It is served as an execution serves it, by the same driver, on forced routes, its log and jobs kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from moesim.backends.calibration.decisions import in_a_row_ns
from moesim.backends.calibration.leftover import SYSTEM, Times, step_ns
from moesim.backends.calibration.pieces import LEAST_POOL
from moesim.backends.calibration.sampling import Probe
from moesim.backends.controllers import Deciding
from moesim.backends.execution import Keep, MakeDriver, execute
from moesim.backends.forcing import requests_of
from moesim.backends.generation import Sampling
from moesim.backends.opening import open_model
from moesim.backends.sources import RANDOM, Source
from moesim.hardware_profiles import HardwareProfile, RuntimeProfile
from moesim.simulator.commands.policies import DEFAULTS as LRU
from moesim.simulator.costs import CostModel
from moesim.simulator.ledger import RequestTimes
from moesim.simulator.registry import Axis
from moesim.traces import RoutingTrace, TraceHeader
from moesim.traces.assemble import RequestRows, assemble

# T tokens, L MoE layers, E experts of a layer, K chosen.


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the requests of a session: one to warm up, a short prompt, and one to time.

    Attributes:
        prompt: Of the first and the last request.
        short: Of the prompt in between.
        decode: Tokens after the last one's first; its first few are not counted.
        skipped: How many.
    """

    prompt: int = 128
    short: int = 2
    decode: int = 24
    skipped: int = 4


def times_of(requests: list[RequestTimes], lengths: Lengths) -> Times:
    """Return the times of a session's requests."""
    _, short, timed = requests
    gaps = np.diff(timed.token_ends_ns)[lengths.skipped :]
    return Times(
        float(median(gaps.tolist())),
        float(short.token_ends_ns[0] - short.arrived_ns),
        float(timed.token_ends_ns[0] - timed.arrived_ns),
    )


class Session:
    """One model, all resident.

    Args:
        model: Name or file of a shape.
        layers: How many to build; None builds all.
        place: The device.
        make_driver: What serves.
        lengths: Of its requests.
        kind: Put before its name, where others serve the same model otherwise.
        policies: What decides; every expert is resident once it was used.
    """

    def __init__(
        self,
        model: str,
        layers: int | None,
        place: torch.device,
        make_driver: MakeDriver,
        lengths: Lengths,
        *,
        kind: str = "",
        policies: Mapping[Axis, str] = LRU,
    ) -> None:
        self._opened = open_model(
            Source(model, RANDOM, layers=layers, pinned_pool=LEAST_POOL), place
        )
        store = self._opened.store
        self.name = kind + self._opened.checkpoint.name.removesuffix(" random weights")
        self.layers = len(store.sizes_L)
        self.experts = store.parts.experts
        self.top_k = store.parts.top_k
        self.short_experts = min(self.experts, lengths.short * store.parts.top_k)
        self.lengths = lengths
        self._deciding = Deciding(policies=policies, budget_bytes=store.total_bytes, system=SYSTEM)
        self._make_driver = make_driver
        self._trace = made_routes(self.layers, self.experts, store.parts.top_k, lengths)
        self._last: Times | None = None
        self._decided = (0.0, 0.0)

    def probes(self, every: int) -> list[Probe]:
        """Return the probes of a session; the first serves, the others read off."""
        return [
            Probe(f"token of {self.name}", self._serve, every=every),
            Probe(f"short prompt of {self.name}", lambda: self._seen().short, every=every),
            Probe(f"prompt of {self.name}", lambda: self._seen().prompt, every=every),
        ]

    def decision_probes(self, every: int) -> list[Probe]:
        """Return what a decision of the last session took on average: in it, and in a row."""
        running, in_a_row = self.decision_names()
        return [
            Probe(running, lambda: self._decided[0], every=every),
            Probe(in_a_row, lambda: self._decided[1], every=every),
        ]

    def decision_names(self) -> list[str]:
        """Return what these probes are called."""
        return [f"decision of {self.name}{how}" for how in (" as it runs", " in a row")]

    def _serve(self) -> float:
        opened = self._opened
        model: Any = opened.checkpoint.model
        done = execute(
            model,
            opened.store,
            requests_of(self._trace, model.config.get_text_config().vocab_size),
            self._deciding,
            Sampling(new_tokens=1, ignore_eos=True),
            routes=self._trace,
            name=self.name,
            keep=Keep(log=True, spans=True),
            make_driver=self._make_driver,
        )
        self._last = times_of(done.timings.requests, self.lengths)
        log = done.log or []
        fresh = self._deciding.controller(
            experts=self.experts,
            top_k=self._trace.top_k,
            sizes_L=self._opened.store.sizes_L,
            keep_log=True,
        )
        self._decided = done.timings.decision_ns / len(log), in_a_row_ns(log, fresh) / len(log)
        return self._last.token

    def _seen(self) -> Times:
        assert self._last is not None
        return self._last

    def close(self) -> None:
        """Release the model."""
        del self._opened

    def explained(self, machine: HardwareProfile, runtime: RuntimeProfile) -> Times:
        """Return what these figures say of the session."""
        costs = CostModel(machine, runtime, self._opened.costs_of)
        lengths, top_k = self.lengths, self._trace.top_k
        context = lengths.prompt + (lengths.skipped + lengths.decode) // 2
        all_alike = [max(1, lengths.prompt * top_k // self.experts)] * self.experts
        return Times(
            step_ns(costs, 1, context, [1] * top_k, is_prompt=False),
            step_ns(costs, lengths.short, lengths.short, self._short_loads(), is_prompt=True),
            step_ns(costs, lengths.prompt, lengths.prompt, all_alike, is_prompt=True),
        )

    def _short_loads(self) -> list[int]:
        rows = self.lengths.short * self._trace.top_k
        return [max(1, rows // self.experts)] * self.short_experts

    def names(self) -> list[str]:
        """Return what its probes are called."""
        return [probe.name for probe in self.probes(1)]


def made_routes(layers: int, experts: int, top_k: int, lengths: Lengths) -> RoutingTrace:
    """Return routes by which each prompt of full length uses every expert alike.

    Decode tokens choose at random, from a fixed seed.
    """
    random = np.random.default_rng(0)

    def request(prompt: int, decode: int) -> RequestRows:
        even_TLK = (np.arange(prompt)[:, None] * top_k + np.arange(top_k)) % experts
        chosen_TLK = random.permuted(
            np.broadcast_to(np.arange(experts), (decode, layers, experts)), axis=2
        )[:, :, :top_k]
        rows_TLK = np.concatenate(
            [np.broadcast_to(even_TLK[:, None], (prompt, layers, top_k)), chosen_TLK]
        )
        return RequestRows(
            expert_TLK=rows_TLK,
            gate_TLK=np.full(rows_TLK.shape, 1 / top_k, dtype=np.float16),
            is_prefill_T=np.arange(prompt + decode) < prompt,
            task="",
            prompt_tokens=prompt,
            output_tokens=decode + 1,
        )

    header = TraceHeader(
        model="every expert alike",
        layer_ids=tuple(range(layers)),
        experts=experts,
        top_k=top_k,
        evidence="synthetic",
    )
    requests = [
        request(lengths.prompt, 1),
        request(lengths.short, 1),
        request(lengths.prompt, lengths.decode),
    ]
    return assemble("every expert alike", header, requests)
