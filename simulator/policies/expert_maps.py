"""FineMoE's expert map store: what the gates said in earlier steps, and the step most like this.

A *map* is the gate's whole distribution in each layer of one step, and the embedding of the step's
tokens. FineMoE (arXiv 2502.05370, EuroSys'26) sections 4.2 and 4.4.
"""

import numpy as np
from numpy.typing import NDArray

# L MoE layers, E experts of a layer, C maps in the store, D width.

Floats = NDArray[np.float32]
Match = tuple[int, float]
"""Number of a map and its similarity, -1 to 1."""


class MapStore:
    """Up to so many maps; when full, a new one replaces the one most like it (RDY).

    Args:
        capacity: Maps kept.
        layers: MoE layers.
        experts: Experts of each layer.
        distance: Prefetch distance in layers; RDY weighs the embeddings by distance / layers.
    """

    def __init__(self, capacity: int, layers: int, experts: int, distance: int) -> None:
        self.maps_CLE: Floats = np.zeros((0, layers, experts), np.float32)
        self._embeddings_CD: Floats = np.zeros((0, 0), np.float32)
        self._norms_CL: Floats = np.zeros((0, layers), np.float32)
        self._capacity = capacity
        self._layers = layers
        self._experts = experts
        self._semantic_share = distance / layers
        self._size = 0
        self._seen_LE: Floats = np.zeros((0, experts), np.float32)
        self._products_C: Floats = np.zeros(0, np.float32)

    def __len__(self) -> int:
        return self._size

    def by_embedding(self, embedding_D: Floats) -> Match | None:
        """Return the map whose embedding is most like this one; the oldest among equals."""
        return _best(self._semantic(embedding_D)) if self._size else None

    def by_trajectory(self, seen_LE: Floats) -> Match | None:
        """Return the map whose first layers are most like those seen; the oldest among equals."""
        return _best(self._along(seen_LE)) if self._size else None

    def add(self, embedding_D: Floats, map_LE: Floats) -> None:
        """Keep a map, in the place of the most redundant one if there is no other room."""
        if self._size < self._capacity:
            at = self._size
            self._grow(embedding_D.size)
            self._size += 1
        else:
            share = self._semantic_share
            redundancy_C = (1 - share) * self._along(map_LE)
            if embedding_D.size:
                redundancy_C += share * self._semantic(embedding_D)
            at = int(np.argmax(redundancy_C))
        self.maps_CLE[at] = map_LE
        self._embeddings_CD[at] = _unit(embedding_D)
        self._norms_CL[at] = np.sqrt(np.cumsum(np.square(map_LE).sum(axis=1)))
        self._forget()

    def _semantic(self, embedding_D: Floats) -> Floats:
        return self._embeddings_CD[: self._size] @ _unit(embedding_D)

    def _along(self, seen_LE: Floats) -> Floats:
        """Return the cosine of what was seen with the same layers of every map.

        Products are added up layer by layer, and kept: the next search of a step adds one layer.
        """
        known = len(self._seen_LE)
        if known > len(seen_LE) or not np.array_equal(self._seen_LE, seen_LE[:known]):
            self._forget()
            known = 0
        for layer in range(known, len(seen_LE)):
            self._products_C = (
                self._products_C + self.maps_CLE[: self._size, layer] @ seen_LE[layer]
            )
        self._seen_LE = seen_LE
        norms_C = self._norms_CL[: self._size, len(seen_LE) - 1] * np.linalg.norm(seen_LE)
        cosines_C = np.zeros_like(norms_C)
        np.divide(self._products_C, norms_C, out=cosines_C, where=norms_C > 0)
        return cosines_C

    def _forget(self) -> None:
        """Drop the products: another step begins, or the store has changed."""
        self._seen_LE = np.zeros((0, self._experts), np.float32)
        self._products_C = np.zeros(self._size, np.float32)

    def _grow(self, width: int) -> None:
        """Double the room for maps as they come."""
        if self._size < len(self.maps_CLE):
            return
        room = min(self._capacity, max(16, 2 * self._size))
        for name, shape in (
            ("maps_CLE", (room, self._layers, self._experts)),
            ("_embeddings_CD", (room, width)),
            ("_norms_CL", (room, self._layers)),
        ):
            larger = np.zeros(shape, np.float32)
            if self._size:
                larger[: self._size] = getattr(self, name)[: self._size]
            setattr(self, name, larger)


def select(probs_E: Floats, similarity: float, least: int, *, crossing: bool = True) -> list[int]:
    """Return the likeliest experts until they hold the share that similarity leaves open.

    Args:
        probs_E: The distribution of one layer in the map that was found.
        similarity: Of that map; the share is 1 - similarity, 0 to 1.
        least: How many are taken at least.
        crossing: Whether the expert that crosses the share is taken (the paper) or not (the demo).
    """
    share = min(max(1 - similarity, 0.0), 1.0)
    order = np.argsort(-probs_E, kind="stable")
    sums = np.cumsum(probs_E[order])
    taken = int((sums < share).sum()) + 1 if crossing else int((sums <= share).sum())
    return [int(expert) for expert in order[: max(taken, least)]]


def _unit(vector: Floats) -> Floats:
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 0 else vector


def _best(similarity_C: Floats) -> Match:
    at = int(np.argmax(similarity_C))
    return at, float(similarity_C[at])
