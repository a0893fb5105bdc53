"""What each prompt of a trace used: the data that predictors are fitted on and judged by.

A prompt's *use* of a layer is the share of its choices that each expert got. eMoE writes the k
experts of a prompt at a layer as e_i and does not say how one set is made of many tokens; here e_i
are the k experts with the largest use, the lowest numbers among equals. A prompt's tokens are all
of its rows, generated ones included. eMoE: arXiv 2503.06823 section 3.2.2.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.workload.foresight import uses_by_request
from moesim.traces import RoutingTrace, TraceError

# R requests (prompts), L MoE layers, E experts of a layer, K chosen, D width.
Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Order = Literal["recorded", "mixed", "grouped", "drifting"]
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a trace in the order in which they are served.

    Attributes:
        use_RLE: Share of a prompt's choices in a layer that each expert got; rows sum to 1, or to 0
            where nothing was recorded.
        choices_RL: How many choices that were.
        task_R: Label of each prompt.
        top_k: Experts that a token uses in each layer.
        embedding_RD: Mean of the prompt's token embeddings; None where the trace has none.
    """

    use_RLE: Floats
    choices_RL: Ids
    task_R: tuple[str, ...]
    top_k: int
    embedding_RD: Floats | None = None

    def __len__(self) -> int:
        return len(self.use_RLE)

    def __getitem__(self, rows: slice) -> "Prompts":
        embedding_RD = None if self.embedding_RD is None else self.embedding_RD[rows]
        return Prompts(
            self.use_RLE[rows], self.choices_RL[rows], self.task_R[rows], self.top_k, embedding_RD
        )


def prompts_of(trace: RoutingTrace) -> Prompts:
    """Count what every prompt of a trace used.

    Raises:
        TraceError: A prompt has no recorded choice at all.
    """
    count_RLE = uses_by_request(trace)
    choices_RL = count_RLE.sum(axis=2)
    bare = np.flatnonzero(choices_RL.sum(axis=1) == 0)
    if bare.size:
        raise TraceError(
            f"request {bare[0]} has no recorded choice; leave it out before training a predictor"
        )
    use_RLE = (count_RLE / np.maximum(choices_RL, 1)[..., None]).astype(np.float32)
    embedding_RD = trace.signals.get("prompt_embedding_RD")
    return Prompts(
        use_RLE,
        choices_RL,
        trace.task_R,
        trace.top_k,
        None if embedding_RD is None else np.asarray(embedding_RD, np.float32),
    )


def in_order(task_R: tuple[str, ...], order: Order, seed: int) -> list[int]:
    """Return the numbers of the requests in another order.

    Args:
        task_R: Label of each request.
        order: ``recorded`` as they are; ``mixed`` at random; ``grouped`` task after task, at random
            inside a task; ``drifting`` the same tasks, whose shares rise and fall one after the
            other so that neighbours overlap.
        seed: Of what is random.
    """
    if order == "recorded":
        return list(range(len(task_R)))
    rng = np.random.default_rng(seed)
    shuffled = [int(request) for request in rng.permutation(len(task_R))]
    if order == "mixed":
        return shuffled
    tasks = {task: at for at, task in enumerate(dict.fromkeys(task_R[r] for r in shuffled))}
    grouped = sorted(shuffled, key=lambda request: tasks[task_R[request]])
    if order == "grouped":
        return grouped
    spread = len(task_R) / max(1, len(tasks))
    moved = np.arange(len(task_R)) + rng.normal(0, spread / 2, len(task_R))
    return [grouped[at] for at in np.argsort(moved, kind="stable")]


def top_experts(score_LE: NDArray[Any], count: int) -> Ids:
    """Return the experts of the highest scores along the last axis, the lowest of equals first."""
    return np.argsort(-score_LE, axis=-1, kind="stable")[..., :count]


def accuracy(told_LE: NDArray[Any], used_LE: NDArray[Any], top_k: int) -> float:
    """Return the share of the k experts of largest use that are among the k told; any first axes.

    With sets of equal size that is precision, recall and F1 alike. Layers without use do not count.
    """
    told, used = top_experts(told_LE, top_k), top_experts(used_LE, top_k)
    same = (told[..., :, None] == used[..., None, :]).any(axis=-1).mean(axis=-1)
    known = np.asarray(used_LE).sum(axis=-1) > 0
    return float(same[known].mean()) if known.any() else 0.0


def served(told_LE: NDArray[Any], used_LE: NDArray[Any], slots: int) -> float:
    """Return the share of choices that fall on the so many experts told first; any first axes."""
    kept = np.zeros(np.shape(used_LE), bool)
    np.put_along_axis(kept, top_experts(told_LE, slots), True, axis=-1)
    return float((used_LE * kept).sum() / np.asarray(used_LE).sum())
