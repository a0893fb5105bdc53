"""From a prepared run to its figures: refuse, pack, serve in parts, read off what came of it."""

from collections.abc import Callable

import numpy as np

from moesim.simulator.controller import Controller
from moesim.simulator.engines.compiled import layout
from moesim.simulator.engines.compiled.layout import Run
from moesim.simulator.engines.compiled.packing import pack
from moesim.simulator.engines.compiled.serve import serve
from moesim.simulator.engines.compiled.wishes import Asked, no_wishes, wishes_of
from moesim.simulator.errors import BooksError, PolicyError
from moesim.simulator.ledger import Counts, RequestTimes, ServerCounts, Timings
from moesim.simulator.policies.prefetch.none import NoPrefetch
from moesim.simulator.runs import Prepared
from moesim.simulator.workload.recorded_steps import steps_of
from moesim.traces import RoutingTrace

PART_STEPS = 4096
"""Steps served at a time: between two parts progress is told and Ctrl-C is heard."""


def packed(run: Prepared, controller: Controller) -> Run:
    """Return a run as arrays; its policies were accepted."""
    spec = run.spec
    wishes = no_wishes()
    if run.policies["prefetch"].cls is not NoPrefetch:
        asked = Asked(spec.trace, spec.profile_trace, run.policies["prefetch"].text, spec.seed)
        wishes = wishes_of(asked, run.policies, run.sizes_L, run.costs)
    return pack(
        spec.trace,
        run.costs,
        run.policies,
        spec.system,
        run.costs.window_bytes,
        controller.residency,
        controller.initial(),
        wishes,
    )


def replay(
    run: Prepared, controller: Controller, on_step: Callable[[int], None] | None = None
) -> Timings:
    """Serve a run whose policies were accepted; the controller lends its pools and gets the counts.

    Raises:
        CapabilityError: The prefetch policy looks further than the engine does.
        PolicyError: A pool cannot hold what it must.
    """
    trace = run.spec.trace
    arrays = packed(run, controller)
    steps = steps_of(trace)
    last = len(steps.context_S)
    for first in range(0, last, PART_STEPS):
        after = min(first + PART_STEPS, last)
        serve(first, after, arrays)
        check_fault(arrays)
        if on_step is not None:
            on_step(int(steps.begins_S1[after] - steps.begins_S1[first]))
    enter(controller, arrays)
    peak = int(steps.context_S.max(initial=0))
    timings = timings_of(arrays, _requests(trace, arrays), peak)
    timings.server = ServerCounts(most_in_step=1, tokens=trace.tokens, requests_in_steps=last)
    return timings


def check_fault(run: Run) -> None:
    """Check that the loops went through.

    Raises:
        PolicyError: A pool cannot hold what it must.
        BooksError: A bug of ours.
    """
    fault = int(run.state[layout.FAULT])
    if fault == layout.TOO_SMALL:
        raise PolicyError("a pool cannot hold the expert that is sent there")
    if fault:
        raise BooksError(f"the compiled engine stopped with fault {fault}: a bug of ours")


def enter(controller: Controller, run: Run) -> None:
    """Enter what was counted."""
    state = run.state.tolist()
    experts = run.experts[: state[layout.EVERYONE]]
    sizes_X = run.layers[experts[:, layout.OF_LAYER], layout.SIZE]
    left_bytes = int(sizes_X[experts[:, layout.IS_UNUSED] > 0].sum())
    counts: Counts = controller.counts
    counts.steps = state[layout.STEPS]
    counts.output_tokens = state[layout.OUTPUT_TOKENS]
    counts.demands = state[layout.DEMANDED]
    counts.hits = state[layout.HITS]
    counts.late_hits = state[layout.LATE]
    counts.misses = state[layout.MISSES]
    counts.decode_demands = state[layout.DECODE_DEMANDS]
    counts.decode_hits = state[layout.DECODE_HITS]
    counts.evictions = state[layout.EVICTIONS]
    counts.copies = state[layout.NUMBERED]
    counts.waves = state[layout.WAVES]
    counts.bytes_demand = state[layout.BYTES_DEMAND]
    counts.bytes_prefetch_useful = state[layout.BYTES_USEFUL]
    counts.bytes_prefetch_late = state[layout.BYTES_LATE]
    counts.bytes_prefetch_wasted = state[layout.BYTES_WASTED] + left_bytes
    counts.bytes_initial = state[layout.BYTES_INITIAL]
    pools = (*controller.residency.caches, controller.residency.staging)
    capacity = sum(pool.capacity_bytes for pool in pools)
    counts.peak_expert_bytes = capacity - int(run.pools[:, layout.LEAST_FREE_BYTES].sum())


def timings_of(run: Run, requests: list[RequestTimes], peak_context_tokens: int) -> Timings:
    """Return what was measured."""
    state = run.state.tolist()
    busy = state[layout.GPU_BUSY : layout.GPU_BUSY + 4]
    engines = ("h2d", "d2h", "peer", "peer_out", "nvme")
    return Timings(
        span_ns=state[layout.NOW],
        gpu_busy_ns=sum(busy),
        dense_busy_ns=busy[layout.DENSE],
        experts_busy_ns=busy[layout.EXPERTS],
        head_busy_ns=busy[layout.HEAD],
        slow_down_ns=state[layout.SLOW_DOWN],
        host_busy_ns=state[layout.HOST_BUSY],
        decision_ns=state[layout.DECIDING],
        engines_busy_ns=dict.fromkeys(engines, 0) | {"h2d": state[layout.LINK_BUSY]},
        engine_bytes=dict.fromkeys(engines, 0) | {"h2d": state[layout.LINK_BYTES]},
        engine_copies=dict.fromkeys(engines, 0) | {"h2d": state[layout.COPIES]},
        requests=requests,
        peak_context_tokens=peak_context_tokens,
    )


def _requests(trace: RoutingTrace, run: Run) -> list[RequestTimes]:
    """Return when each request came and when its tokens were complete.

    The next one arrives at the end of the last step of the one before; see ``host.py``.
    """
    steps = steps_of(trace)
    began_S, ended_S = run.steps[:, layout.BEGAN], run.steps[:, layout.ENDED]
    ends = np.flatnonzero(steps.ends_S) + 1
    found, arrived_ns, first = [], 0, 0
    for request, last in enumerate(ends.tolist()):
        gives = steps.gives_S[first:last] > 0
        has_first_token = bool((gives & (steps.prefills_S[first:last] > 0)).any())
        prompt_tokens = max(0, int(trace.prompt_tokens_R[request]))
        token_ends_ns = ended_S[first:last][gives].tolist()
        began_ns = int(began_S[first])
        found.append(
            RequestTimes(
                request, arrived_ns, began_ns, prompt_tokens, token_ends_ns, has_first_token
            )
        )
        arrived_ns = int(ended_S[last - 1])
        first = last
    return found
