"""Published systems against their own rules: limits that only the true rule meets.

The rules of single policies are asked one by one in ``tests/simulator/policies/test_rival_*``.
"""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.simulator import registry, systems
from moesim.simulator.control.residency import WholeResidency
from moesim.simulator.controller import Controller
from moesim.simulator.errors import CapabilityError
from moesim.simulator.memory import MemorySpec
from moesim.simulator.policies.base import Demand, RunInfo, View
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import prepare
from moesim.simulator.terms import Phase
from moesim.simulator.testing import counted, decisions, engine, logged, small_run, tiny_trace
from moesim.traces import RoutingTrace, samples
from moesim.traces.store import read as load_trace

SAMPLE = Path(samples.__file__).parent / "reference-12x32.npz"
SLOW_CPU = {"cpu_bytes_per_s": 5 * 10**9}
"""An expert takes 200 µs on the CPU and 100 µs to copy."""


def served(name: str, trace: RoutingTrace, **options: Any) -> Controller:
    """Return the controller of a system that has served a trace."""
    system = systems.load(name)
    run = small_run(
        trace,
        cache=system.cache,
        prefetch=system.prefetch,
        schedule=system.schedule,
        machine=SLOW_CPU,
        window_bytes=3_000_000,
        **options,
    )
    return counted(run)


@pytest.fixture(scope="module")
def sample() -> RoutingTrace:
    """Return a trace with every signal, deeper and wider than the smallest."""
    return tiny_trace(layers=5, experts=12, top_k=2, prompt_tokens=6, decode_tokens=12)


def test_no_two_systems_decide_alike(sample: RoutingTrace) -> None:
    """With 40 of 60 slots every pair of systems differs in some copy, run or place.

    The requests come twice: MoEpic's configurator is asked at the second and heard at the third.
    """
    trace = sample.select_requests([0, 1, 0, 1])
    logs = {name: decisions(logged(served(name, trace, slots=40))) for name in systems.names()}
    alike = [(a, b) for a, b in combinations(logs, 2) if logs[a] == logs[b]]
    assert alike == []


@pytest.mark.parametrize("name", systems.names())
def test_a_system_decides_the_same_twice(sample: RoutingTrace, name: str) -> None:
    """Fresh policies and the same trace give the same decisions."""
    first, second = (decisions(logged(served(name, sample, slots=40))) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", systems.names())
def test_a_system_serves_the_shipped_sample_or_says_what_lacks(name: str) -> None:
    """The reference trace has neither embeddings nor a second horizon; all else runs on it."""
    trace = load_trace(SAMPLE)
    system = systems.load(name)
    spec = RunSpec(
        trace=trace.head(requests=1),
        trace_name="reference",
        hardware="rtx4090",
        policies={
            "cache": system.cache,
            "prefetch": system.prefetch,
            "schedule": system.schedule,
        },
        runtime=system.runtime or "moesim-graph",
        system=name,
        memory=MemorySpec(slots="50%"),
        profile_trace=trace,
    )
    try:
        outcome = f"tokens {prepare(spec).replay().counts.output_tokens}"
    except CapabilityError as error:
        outcome = str(error)
    assert any(text in outcome for text in ("tokens 64", "embedding_TD", "looks 1 to 1 layers"))


# FineMoE


def foreseen(
    trace: RoutingTrace, profile: RoutingTrace, distance: int
) -> list[tuple[Demand, list[int]]]:
    """Serve a trace's decode steps to FineMoE's search; return each demand and what was wished."""
    counts_LE = np.zeros((trace.layers, trace.experts), np.int64)
    sizes_L = (1,) * trace.layers
    run = RunInfo(
        layers=trace.layers,
        experts=trace.experts,
        top_k=trace.top_k,
        expert_bytes_L=sizes_L,
        budget_bytes=1000,
        costs=None,  # type: ignore[arg-type]  no rule of FineMoE asks for costs
        rng=np.random.default_rng(0),
        popularity_LE=counts_LE,
        profile_trace=profile,
    )
    spec = f"expert_map:distance={distance},fill=profile"
    policy = registry.parse("prefetch", spec).build(run)
    view = View(
        WholeResidency(sizes_L, run.experts, run.top_k, 1000, None, 0), phases=(Phase.DECODE,)
    )
    found = []
    for row in np.flatnonzero(~trace.is_prefill_T).tolist():
        view.step, view.layer = view.step + 1, -1
        view.signals = {"embedding_TD": trace.signals["embedding_TD"][row : row + 1].tolist()}
        wished = [wish.expert for wish in policy.wants(None, view)]
        for layer in range(trace.layers):
            view.event, view.layer = view.event + 1, layer
            probs_TE = trace.signals["router_probs_TLE"][row : row + 1, layer]
            view.signals = {"router_probs_TLE": probs_TE.tolist()}
            first = layer * trace.experts
            experts = [first + expert for expert in trace.expert_TLK[row, layer].tolist()]
            demand = Demand(
                view.step, layer, experts, dict.fromkeys(experts, 1), [], [], (), experts
            )
            found.append((demand, [e for e in wished if run.layer(e) == layer]))
            wished += [wish.expert for wish in policy.wants(demand, view)]
    return found


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_finemoe_recalls_what_is_in_its_store(sample: RoutingTrace, distance: int) -> None:
    """With the test trace stored every layer is foreseen: its K experts, all right, and no other.

    The first layers are found by embedding and the later ones by trajectory, at similarity 1.
    """
    for demand, wished in foreseen(sample, sample, distance):
        assert sorted(demand.experts) == sorted(wished)
        assert len(wished) == sample.top_k


def test_finemoe_wishes_for_more_where_nothing_is_alike(sample: RoutingTrace) -> None:
    """With another trace stored it takes K at least, more in most layers, and is often wrong."""
    other = tiny_trace(layers=5, experts=12, top_k=2, seed=7)
    found = foreseen(sample, other, 2)
    assert min(len(wished) for _, wished in found) >= sample.top_k
    assert any(len(wished) > sample.top_k for _, wished in found)
    assert any(set(demand.experts) - set(wished) for demand, wished in found)


def test_finemoes_search_elsewhere_is_charged_its_time(sample: RoutingTrace) -> None:
    """An answer that comes at once foresees as the search inline; one that comes late does not."""

    def hits(search: str, ask_ns: int) -> int:
        run = small_run(
            sample,
            cache="likely_use",
            prefetch=f"expert_map:distance=2,search={search}",
            slots=30,
            ask_ns={"expert_map_search": ask_ns},
        )
        controller = run.controller()
        engine(run, controller).run()
        return controller.counts.bytes_prefetch_useful + controller.counts.bytes_prefetch_late

    assert hits("ask", 1_000) > 0
    assert hits("ask", 10**9) < hits("ask", 1_000)
    assert hits("ask", 1_000) == pytest.approx(hits("inline", 0), rel=0.2)


# Fiddler


def test_fiddler_by_sum_and_by_maximum_differ(sample: RoutingTrace) -> None:
    """A copy costs half of the CPU: by sum all is copied, by maximum the CPU takes a share."""
    by_sum, by_max = (served(name, sample, slots=20).counts for name in ("fiddler", "fiddler-max"))
    assert by_sum.misses == by_max.misses
    assert by_sum.cpu_experts == 0
    assert 0 < by_max.cpu_experts < by_max.misses


# Systems without a predictor


def test_engines_that_never_copy_in_decode_copy_nothing(sample: RoutingTrace) -> None:
    """KTransformers and llama.cpp compute every miss of a short step on the CPU."""
    for name in ("ktransformers", "llamacpp-n-cpu-moe"):
        counts = served(name, sample, slots=20).counts
        assert counts.bytes_total == 0
        assert counts.cpu_experts == counts.misses > 0


def test_llamacpp_copies_for_a_prompt_of_32_tokens() -> None:
    """A prompt of 32 tokens brings its experts over the link; one of 31 leaves them on the CPU."""
    for tokens, copies in ((31, False), (32, True)):
        trace = tiny_trace(prompt_tokens=tokens, decode_tokens=2)
        counts = served("llamacpp-n-cpu-moe", trace, slots=6).counts
        assert (counts.bytes_total > 0) is copies


def test_layer_streaming_copies_every_expert_of_every_step(sample: RoutingTrace) -> None:
    """With an open window all 60 experts move in each of the 26 steps, and nothing is missed."""
    system = systems.load("layer-streaming")
    run = small_run(
        sample,
        cache=system.cache,
        prefetch=system.prefetch,
        schedule=system.schedule,
        slots=24,
        window_bytes=10**9,
    )
    counts = counted(run).counts
    assert counts.steps == 26
    assert counts.misses == 0
    assert 26 * 60 <= counts.copies <= 26 * 60 + 12


def test_pregated_misses_nothing(sample: RoutingTrace) -> None:
    """Known one layer early, everything is on its way; only the first layer of all may be late."""
    counts = served("pregated", sample, slots=40).counts
    assert counts.misses <= sample.top_k * 6
    assert counts.bytes_prefetch_wasted == 0
