"""Copy what the gates said in the stored step that is most like the present one."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from moesim.simulator.errors import CapabilityError, InputError
from moesim.simulator.policies.base import (
    Demand,
    PrefetchPolicy,
    Question,
    RunInfo,
    View,
    Wish,
)
from moesim.simulator.policies.expert_maps import Floats, MapStore, Match, select
from moesim.traces import RoutingTrace

__all__ = ["ExpertMap"]

# T tokens, L MoE layers, E experts of a layer, M top-m, D width, N trajectories of the step.
PROBS = "router_probs_TLE"
TOP = "router_top_TLM"
TOP_SCORE = "router_top_score_TLM"
EMBEDDING = "embedding_TD"
SEARCH = "expert_map_search"


class ExpertMap(PrefetchPolicy):
    """FineMoE's search: by embedding for the first layers, then by what the gates said so far.

    Once layer l has been routed, layer l + distance is predicted by the stored map whose first
    layers are most like those of this step. Of its distribution the likeliest experts are wished
    for, until they hold 1 - similarity, and at least top-k; first what is likely and near:
    probability / layers ahead. A step's map enters the store when the step's last layer is routed.
    The distribution also goes to ``view.predicted``, for the cache policy.

    Args:
        distance: Layers between a prediction and its use (the paper: 3 for Mixtral, 4 for
            Phi-3.5, 6 for Qwen1.5-MoE).
        capacity: Maps in the store.
        fill: ``online`` begins with an empty store; ``profile`` with the steps of the profile
            trace. Both go on adding.
        maps: ``probs`` reads the whole distributions; ``top`` the best m, others count as 0.
        semantic: ``embedding`` reads the step's embedding; ``none`` predicts nothing for the first
            layers.
        search: ``inline`` searches while the host decides; ``ask`` has it done elsewhere, and
            wishes when the answer comes, for layers that still lie ahead.
        entries: ``step`` has one map for each step, the mean of its tokens; ``token`` one for each
            token, where the last token's trajectory predicts (the demo).
        crossing: Whether the expert that crosses 1 - similarity is taken; the demo leaves it out.
        enqueue: ``selected``, or ``all`` to wish for every expert of the layer as well, last (the
            demo).
        decay: ``inverse`` divides by the layers ahead; ``linear`` multiplies by 1 - (layer - first
            predicted) / (last predicted + 1) (the demo).
        reach: ``one`` predicts one layer from each trajectory; ``rest`` all from that one to the
            last (the demo).
    """

    needs = frozenset({PROBS, TOP, TOP_SCORE, EMBEDDING, "profile"})
    paper = "FineMoE (EuroSys'26, arXiv 2502.05370) section 4; IntelliSys-Lab/FineMoE-EuroSys26"

    def __init__(
        self,
        run: RunInfo,
        *,
        distance: int = 3,
        capacity: int = 1000,
        fill: Literal["online", "profile"] = "online",
        maps: Literal["probs", "top"] = "probs",
        semantic: Literal["embedding", "none"] = "embedding",
        search: Literal["inline", "ask"] = "inline",
        entries: Literal["step", "token"] = "step",
        crossing: bool = True,
        enqueue: Literal["selected", "all"] = "selected",
        decay: Literal["inverse", "linear"] = "inverse",
        reach: Literal["one", "rest"] = "one",
    ) -> None:
        super().__init__(run)
        for name, value in (("distance", distance), ("capacity", capacity)):
            if value < 1:
                raise InputError(
                    f"prefetch policy expert_map: option {name}={value}: expected at least 1"
                )
        self._distance = min(distance, run.layers)
        self._maps, self._semantic, self._by_token = maps, semantic, entries == "token"
        self._asks_elsewhere = search == "ask"
        self._crossing, self._enqueues_all = crossing, enqueue == "all"
        self._is_linear, self._predicts_rest = decay == "linear", reach == "rest"
        self._store = MapStore(capacity, run.layers, run.experts, self._distance)
        self._pending = 0  # questions without answer; meanwhile the store stays as it is
        self._new: list[tuple[Floats, Floats]] = []  # embeddings and maps that wait for that
        self._embedding_ND: Floats = np.zeros((1, 0), np.float32)
        self._seen_LNE: list[Floats] = []
        if fill == "profile":
            assert run.profile_trace is not None
            self._learn(run.profile_trace)

    @classmethod
    def needs_for(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """Return the signals that the options read, and the profile trace if it fills the store."""
        needs = {PROBS} if options["maps"] == "probs" else {TOP, TOP_SCORE}
        if options["semantic"] == "embedding":
            needs.add(EMBEDDING)
        if options["fill"] == "profile":
            needs.add("profile")
        return frozenset(needs)

    def asks(self, demand: Demand | None, view: View) -> Iterable[Question]:
        """Return the searches to be done elsewhere."""
        if not self._asks_elsewhere:
            return ()
        queries = self._observe(demand, view)
        self._pending += len(queries)
        questions = [
            Question(SEARCH, (view.step, layer, query.shape, query.tobytes()))
            for layer, query in queries
        ]
        self._keep_new()
        return questions

    def wants(self, demand: Demand | None, view: View) -> Iterable[Wish]:
        """Return what the maps found promise, unless they are searched for elsewhere."""
        if self._asks_elsewhere:
            return ()
        wishes: list[Wish] = []
        for layer, query in self._observe(demand, view):
            wishes += self._wishes(layer, self._find(query), view)
        self._keep_new()
        return wishes

    def compute(self, name: str, question: Any) -> Any:  # noqa: ANN401  the question is the policy's own
        """Return (step, layer, match); the store does not change while a question is open."""
        step, layer, shape, raw = question
        return step, layer, self._find(np.frombuffer(raw, np.float32).reshape(shape))

    def on_answer(self, name: str, answer: Any, view: View) -> Iterable[Wish]:  # noqa: ANN401
        """Return what the map found promises for layers that still lie ahead."""
        step, layer, match = answer
        self._pending -= 1
        wishes = list(self._wishes(layer, match, view)) if step == view.step else []
        self._keep_new()
        return wishes

    def _observe(self, demand: Demand | None, view: View) -> list[tuple[int, Floats]]:
        """Take note of what is new; return queries as (layer they predict from, vector or map)."""
        layers = self.run.layers
        if demand is None:
            self._seen_LNE = []
            if self._semantic == "none":
                return []
            rows_TD = np.asarray(view.signals[EMBEDDING], np.float32)
            self._embedding_ND = rows_TD if self._by_token else rows_TD.mean(axis=0, keepdims=True)
            return [(-1, row) for row in self._embedding_ND] if len(self._store) else []
        self._seen_LNE.append(self._entries(self._distributions(view)))
        if demand.layer == layers - 1:
            for n, map_LE in enumerate(np.stack(self._seen_LNE, axis=1)):
                row = n if n < len(self._embedding_ND) else 0
                self._new.append((self._embedding_ND[row], map_LE))
        if demand.layer + self._distance >= layers or not len(self._store):
            return []
        return [(demand.layer, np.stack([entries[-1] for entries in self._seen_LNE]))]

    def _distributions(self, view: View) -> Floats:
        if self._maps == "probs":
            return np.asarray(view.signals[PROBS], np.float32)
        return _spread(
            np.asarray(view.signals[TOP]), np.asarray(view.signals[TOP_SCORE]), self.run.experts
        )

    def _entries(self, probs_TE: Floats) -> Floats:
        return probs_TE if self._by_token else probs_TE.mean(axis=0, keepdims=True)

    def _find(self, query: Floats) -> Match | None:
        by_embedding = query.ndim == 1
        store = self._store
        return store.by_embedding(query) if by_embedding else store.by_trajectory(query)

    def _wishes(self, observed: int, match: Match | None, view: View) -> Iterator[Wish]:
        """Yield the wishes of a match for the layers that it predicts from this one."""
        if match is None:
            return
        at, similarity = match
        first = 0 if observed < 0 else observed + self._distance
        last = first
        if observed < 0:
            last = self._distance - 1
        elif self._predicts_rest:
            last = self.run.layers - 1
        for layer in range(max(first, view.layer + 1), last + 1):
            probs_E = self._store.maps_CLE[at, layer]
            begin = layer * self.run.experts
            view.predicted.update(enumerate(probs_E.tolist(), begin))
            chosen = select(probs_E, similarity, self.run.top_k, crossing=self._crossing)
            ahead = layer - view.layer
            near = 1 - (layer - first) / (last + 1) if self._is_linear else 1 / ahead
            for expert in chosen:
                yield Wish(begin + expert, -float(probs_E[expert]) * near)
            if self._enqueues_all:
                others = set(range(self.run.experts)).difference(chosen)
                yield from (Wish(begin + expert, 0.0) for expert in sorted(others))

    def _keep_new(self) -> None:
        if not self._pending:
            for embedding_D, map_LE in self._new:
                self._store.add(embedding_D, map_LE)
            self._new.clear()

    def _learn(self, trace: RoutingTrace) -> None:
        """Fill the store with the steps of another trace.

        Raises:
            CapabilityError: It lacks a signal.
        """
        names = [PROBS] if self._maps == "probs" else [TOP, TOP_SCORE]
        names += [EMBEDDING] if self._semantic == "embedding" else []
        for name in names:
            if name not in trace.signals:
                raise CapabilityError(
                    f"prefetch policy expert_map: the profile trace lacks the signal '{name}'; "
                    "record it with moesim record, or give fill=online"
                )
        keys = np.stack([np.asarray(trace.request_T), np.asarray(trace.step_T)])
        begins = [0, *(np.flatnonzero(np.any(np.diff(keys), axis=0)) + 1).tolist(), trace.tokens]
        for begin, end in pairwise(begins):
            rows = slice(begin, end)
            embedding_TD = np.zeros((end - begin, 0), np.float32)
            if self._semantic == "embedding":
                embedding_TD = np.asarray(trace.signals[EMBEDDING][rows], np.float32)
            maps_TLE = self._recorded(trace, rows)
            for embedding_D, map_LE in zip(
                self._entries(embedding_TD), self._entries(maps_TLE), strict=True
            ):
                self._store.add(embedding_D, map_LE)

    def _recorded(self, trace: RoutingTrace, rows: slice) -> Floats:
        if self._maps == "probs":
            return np.asarray(trace.signals[PROBS][rows], np.float32)
        top_TLM = np.asarray(trace.signals[TOP][rows])
        score_TLM = np.asarray(trace.signals[TOP_SCORE][rows])
        width = top_TLM.shape[2]
        flat = _spread(top_TLM.reshape(-1, width), score_TLM.reshape(-1, width), self.run.experts)
        return flat.reshape(len(top_TLM), self.run.layers, self.run.experts)


def _spread(ids_TM: Any, scores_TM: Any, experts: int) -> Floats:  # noqa: ANN401  arrays of a signal
    """Return distributions over all experts in which those that are not named have 0."""
    probs_TE = np.zeros((len(ids_TM), experts), np.float32)
    rows, columns = np.nonzero(ids_TM >= 0)
    probs_TE[rows, ids_TM[rows, columns]] = scores_TM[rows, columns]
    return probs_TE
