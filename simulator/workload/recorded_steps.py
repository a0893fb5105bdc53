"""The forward passes of a trace as flat arrays, its requests one after another."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.traces import RoutingTrace

Ints = NDArray[np.int64]
Flags = NDArray[np.int8]

# T tokens, S steps, R requests.


class Steps(NamedTuple):
    """The steps; ``begins_S1`` are rows of the trace, the number of all at the end."""

    begins_S1: Ints
    context_S: Ints
    request_S: Ints
    gives_S: Flags
    prefills_S: Flags
    ends_S: Flags


@lru_cache(maxsize=4)
def steps_of(trace: RoutingTrace) -> Steps:
    """Return the forward passes of a trace."""
    request_T, step_T = np.asarray(trace.request_T), np.asarray(trace.step_T)
    changes_T = (np.diff(request_T) != 0) | (np.diff(step_T) != 0)
    begins_S1 = np.concatenate([[0], np.flatnonzero(changes_T) + 1, [trace.tokens]])
    first_S, last_S = begins_S1[:-1], begins_S1[1:] - 1
    request_S = request_T[first_S].astype(np.int64)
    prefills_S = np.asarray(trace.is_prefill_T)[first_S]
    ends_S = np.append(np.diff(request_S) != 0, True)
    # A request's last row of prompt: as many rows in as it has of them.
    prompt_R = np.bincount(request_T, np.asarray(trace.is_prefill_T), trace.requests)
    last_prompt_R = trace.row_starts()[:-1] + prompt_R.astype(np.int64)
    return Steps(
        begins_S1.astype(np.int64),
        np.asarray(trace.position_T)[last_S].astype(np.int64) + 1,
        request_S,
        (~prefills_S | (begins_S1[1:] == last_prompt_R[request_S])).astype(np.int8),
        prefills_S.astype(np.int8),
        ends_S.astype(np.int8),
    )


def is_plain(trace: RoutingTrace) -> bool:
    """Whether every step has one token, with as many different experts in each layer as top-k."""
    expert_TLK = np.asarray(trace.expert_TLK)
    if len(steps_of(trace).context_S) < len(expert_TLK) or (expert_TLK < 0).any():
        return False
    ranks = [np.ascontiguousarray(expert_TLK[:, :, rank]) for rank in range(trace.top_k)]
    return not any(
        bool((ranks[one] == ranks[other]).any())
        for one in range(trace.top_k)
        for other in range(one)
    )
