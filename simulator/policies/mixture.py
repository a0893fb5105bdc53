"""A light predictor: a mixture of simple rules whose weights were fitted; microseconds an answer.

The parts tell how a prompt will use each layer: as all prompts do, as those of its task do, as the
latest did (with decay), as the last did, and as those with the nearest embedding did, where
embeddings are known. Their weights are fitted layer by layer by expectation maximisation: what
mixture makes the choices of the fit prompts likeliest. It learns on while it serves: the parts are
counted online, only the weights stay. Ours, as an alternative to eMoE's XLNet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# R requests (prompts), L MoE layers, E experts of a layer, P parts of the mixture, D width.
Floats = NDArray[np.float32]

DECAY = 0.9
NEAREST = 5
ROUNDS = 60
FLOOR = 1e-4
PARTS = ("all", "task", "recent", "last", "nearest")


@dataclass(slots=True)
class Counters:
    """What the parts of the mixture have seen so far.

    Attributes:
        layers: MoE layers, L.
        experts: Experts of a layer, E.
        capacity: Prompts whose embedding is kept; the oldest leaves.
    """

    layers: int
    experts: int
    capacity: int = 1_000
    _sum_LE: Floats = field(init=False)
    _recent_LE: Floats = field(init=False)
    _last_LE: Floats = field(init=False)
    _of_task: dict[str, Floats] = field(default_factory=dict)
    _seen: list[tuple[Floats, Floats]] = field(default_factory=list)
    _unit_RD: Floats | None = None

    def __post_init__(self) -> None:
        shape = (self.layers, self.experts)
        self._sum_LE = np.full(shape, 1 / self.experts, np.float32)
        self._recent_LE = self._sum_LE.copy()
        self._last_LE = self._sum_LE.copy()

    def learn(self, use_LE: Floats, task: str, embedding_D: Floats | None = None) -> None:
        """Take note of a prompt that has been served: its share of choices of each expert."""
        self._sum_LE = self._sum_LE + use_LE
        self._recent_LE = DECAY * self._recent_LE + use_LE
        self._last_LE = use_LE
        standing = self._of_task.get(task)
        self._of_task[task] = use_LE.copy() if standing is None else standing + use_LE
        if embedding_D is not None:
            self._seen.append((_unit(embedding_D), use_LE))
            if len(self._seen) > self.capacity:
                self._seen.pop(0)
            self._unit_RD = None

    def tell(self, task: str, embedding_D: Floats | None = None) -> Floats:
        """Return what each part tells of the next prompt, [P, L, E]; rows sum to 1."""
        return np.stack(
            [
                _share(self._sum_LE),
                _share(self._of_task.get(task, self._sum_LE)),
                _share(self._recent_LE),
                _share(self._last_LE),
                _share(self._nearest(embedding_D)),
            ]
        )

    def _nearest(self, embedding_D: Floats | None) -> Floats:
        if embedding_D is None or not self._seen:
            return self._sum_LE
        if self._unit_RD is None:
            self._unit_RD = np.stack([unit_D for unit_D, _ in self._seen])
        likeness_R = self._unit_RD @ _unit(embedding_D)
        nearest = np.argsort(-likeness_R, kind="stable")[:NEAREST]
        mean_LE: Floats = np.mean([self._seen[at][1] for at in nearest], axis=0)
        return mean_LE


@dataclass(slots=True)
class Mixture:
    """Fitted weights over counters.

    Attributes:
        weight_LP: Share of each part in each layer; rows sum to 1.
        counters: What has been seen.
    """

    weight_LP: Floats
    counters: Counters

    def tell(self, task: str, embedding_D: Floats | None = None) -> Floats:
        """Return the use of the next prompt, [L, E]; rows sum to 1."""
        parts_PLE = self.counters.tell(task, embedding_D)
        told_LE: Floats = np.einsum("lp,ple->le", self.weight_LP, parts_PLE)
        return told_LE


def fit(use_RLE: Floats, task_R: Sequence[str], embedding_RD: Floats | None = None) -> Mixture:
    """Fit the weights on prompts in the order in which they were served, and remember the prompts.

    Every prompt's parts are those that stood before it was served, so nothing is fitted on what it
    foretells.

    Args:
        use_RLE: Share of each prompt's choices in a layer that each expert got.
        task_R: Label of each prompt.
        embedding_RD: Embedding of each prompt, where they are known.
    """
    _, layers, experts = use_RLE.shape
    counters = Counters(layers, experts)
    told = []
    for at, use_LE in enumerate(use_RLE):
        embedding_D = None if embedding_RD is None else embedding_RD[at]
        told.append(counters.tell(task_R[at], embedding_D))
        counters.learn(use_LE, task_R[at], embedding_D)
    told_RPLE = np.stack(told) + FLOOR / experts
    weight_LP = np.full((layers, len(PARTS)), 1 / len(PARTS))
    for _ in range(ROUNDS):
        joint_RPLE = told_RPLE * weight_LP.T[None, :, :, None]
        share_RPLE = joint_RPLE / joint_RPLE.sum(axis=1, keepdims=True)
        weight_LP = np.einsum("rple,rle->lp", share_RPLE, use_RLE)
        weight_LP /= np.maximum(weight_LP.sum(axis=1, keepdims=True), FLOOR)
    return Mixture(weight_LP.astype(np.float32), counters)


def _share(use_LE: Floats) -> Floats:
    share_LE: Floats = use_LE / np.maximum(use_LE.sum(axis=1, keepdims=True), FLOOR)
    return share_LE


def _unit(vector_D: Floats) -> Floats:
    unit_D: Floats = vector_D / max(float(np.linalg.norm(vector_D)), 1e-12)
    return unit_D
