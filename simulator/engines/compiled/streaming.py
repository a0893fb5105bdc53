"""A long trace under the compiled engine, piece by piece: what has been served is let go.

The engine's whole state is in arrays that do not grow with the trace, but for what is demanded and
when each step began and ended. Those are made of one piece of whole requests at a time, and the
state goes on. Policies whose own state grows with the trace (LFU's counts, Belady's future) and
prefetches, which look into the next step, are refused by name.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from moesim.simulator.controller import Controller
from moesim.simulator.engines.compiled import layout
from moesim.simulator.engines.compiled.acceptance import CACHES
from moesim.simulator.engines.compiled.layout import Run
from moesim.simulator.engines.compiled.running import check_fault, enter, packed, timings_of
from moesim.simulator.engines.compiled.serve import serve
from moesim.simulator.errors import CapabilityError
from moesim.simulator.ledger import ServerCounts, Timings
from moesim.simulator.policies.prefetch.none import NoPrefetch
from moesim.simulator.results.streamed_times import StreamedTimes
from moesim.simulator.runs import Prepared
from moesim.simulator.workload.recorded_steps import steps_of
from moesim.traces import RoutingTrace
from moesim.traces.chunks import cut

# S steps.

ROWS = 16_384
STREAMED = (layout.LRU, layout.FIFO, layout.PASSING)


def check_streamed(run: Prepared) -> None:
    """Check that a run's policies need no more room however long the trace is.

    Raises:
        CapabilityError: One does; the message names it.
    """
    cache, prefetch = run.policies["cache"], run.policies["prefetch"]
    if CACHES[cache.cls] not in STREAMED:
        raise CapabilityError(
            f"{run.spec.trace_name} is replayed piece by piece, and cache policy {cache.text} "
            "keeps more the longer a trace is; take lru, fifo, static or transient, or replay "
            "fewer requests with --requests"
        )
    if prefetch.cls is not NoPrefetch:
        raise CapabilityError(
            f"{run.spec.trace_name} is replayed piece by piece, and prefetch policy "
            f"{prefetch.text} is answered for the whole trace at once; replay fewer requests with "
            "--requests"
        )


def stream(
    run: Prepared,
    controller: Controller,
    on_step: Callable[[int], None] | None = None,
    *,
    rows: int | None = None,
) -> Timings:
    """Serve a run whose policies were accepted; tokens' times are summed up, not kept.

    Args:
        run: The run.
        controller: Lends its pools and gets the counts.
        on_step: Called after every piece with the number of tokens processed.
        rows: Rows of a piece at most, unless one request has more; `ROWS` by default.
    """
    trace = run.spec.trace
    times, peak = StreamedTimes(), 0
    served: Run | None = None
    left = trace.tokens
    for piece in cut(trace, ROWS if rows is None else rows):
        left -= piece.tokens
        here = packed(_of_piece(run, piece), controller)
        steps = steps_of(piece)
        here = _going_on(here, served, trace.layers, is_last=left == 0)
        first = 0 if served is None else 1
        serve(first, first + len(steps.context_S), here)
        check_fault(here)
        part = slice(first, first + len(steps.context_S))
        times.add_steps(
            steps.ends_S > 0,
            steps.gives_S > 0,
            steps.prefills_S > 0,
            here.steps[part, layout.BEGAN],
            here.steps[part, layout.ENDED],
        )
        peak = max(peak, int(steps.context_S.max()))
        served = here
        if on_step is not None:
            on_step(piece.tokens)
    assert served is not None
    enter(controller, served)
    timings = timings_of(served, [], peak)
    timings.streamed = times
    timings.server = ServerCounts(
        most_in_step=1,
        tokens=trace.tokens,
        requests_in_steps=int(served.state[layout.STEPS]),
    )
    return timings


def _of_piece(run: Prepared, piece: RoutingTrace) -> Prepared:
    """Return the run as if a piece were its trace."""
    return replace(run, spec=replace(run.spec, trace=piece))


def _going_on(here: Run, served: Run | None, layers: int, *, is_last: bool) -> Run:
    """Return the run of a piece with the state that the pieces before have left.

    Its tables begin with a step that is not served, since the engine begins the run at step 0, and
    end with one, since it ends the run at the last.
    """
    if served is not None:
        state = served.state
        state[layout.EVENTS] = here.state[layout.EVENTS] + layers
        state[layout.IS_PLAIN] = here.state[layout.IS_PLAIN]
        state[layout.EVENT] = layers - 1
        here = here._replace(
            begins_N1=np.concatenate([np.zeros(layers, np.int64), here.begins_N1]),
            steps=np.concatenate([np.zeros_like(here.steps[:1]), here.steps]),
            layers=served.layers,
            experts=served.experts,
            last_use_X=served.last_use_X,
            rest=served.rest,
            pools=served.pools,
            marks=served.marks,
            scores=served.scores,
            lists=served.lists,
            commands=served.commands,
            copies=served.copies,
            kernels=served.kernels,
            state=state,
        )
    if not is_last:
        here = here._replace(steps=np.concatenate([here.steps, np.zeros_like(here.steps[:1])]))
    return here
