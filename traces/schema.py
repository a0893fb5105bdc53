"""A routing trace as data: which experts each token used, in arrays and a header.

Rows are tokens. The rows of a request lie together and the requests follow each other, so that a
request is a slice and a long trace is replayed from a memory map without being held in RAM. Inside
a request rows are in order of position, prompt rows first. Rows of one request with the same step
number went through the model in one forward pass; step numbers mean nothing across requests.

Signals are optional arrays, each declared in the header. The suffix of a name gives its axes and
the first is T or R. Names that the project's own recorder uses:

    router_logits_TLE    the router's answer as it gave it, float32
    router_probs_TLE     all router probabilities, before selection
    router_top_TLM       ids of the m experts that the router ranks highest, best first
    router_top_score_TLM their probabilities
    look_in_TLHM         ids of the m best experts that layer l's input promises for layer l+1+h,
                         best first, wrapping to the next token's first layers; -1 = unknown
    look_in_score_TLHM   their probabilities
    look_out_TLHM        the same from layer l's output, known at its end
    look_out_score_TLHM  their probabilities
    hidden_TLD           residual after layer l's attention, float16; large, so it is recorded of a
                         fit split, in a file of its own
    embedding_TD         mean of the step's token embeddings      token_T    token ids
    prompt_embedding_RD  mean of the prompt's token embeddings
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.checks import check
from moesim.traces.header import SelectionRule, SignalSpec, TraceHeader

__all__ = ["RoutingTrace", "SelectionRule", "SignalSpec", "TraceHeader"]

# T tokens, L MoE layers, E experts of a layer, K chosen, R requests, D width, H horizons, M top-m.
Array = NDArray[Any]

HASH_ROWS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutingTrace:
    """Which experts each token used; see the module for the order of rows.

    Compare traces by `content_hash`. Nothing is checked at construction: call `validate`.

    Attributes:
        expert_TLK: int16 expert ids in the router's order; a token and layer that was not recorded
            has -1 in all K places (prompt rows only).
        gate_TLK: Gate weight of each choice as the model used it, float16 or float32; 0 where
            absent; None if the trace has none.
        step_T: int32 forward pass of the row, counted per request.
        request_T: int32 request of the row, from 0, never decreasing.
        position_T: int32 place of the token in its request; the first prompt token is 0. Where the
            prompt was not recorded, decode rows start at its length.
        is_prefill_T: Whether the row is a prompt token.
        task_R: Label of each request, such as the data set of its prompt.
        arrival_ns_R: int64 arrival; all 0 where unknown.
        prompt_tokens_R: int32 length of the prompt, recorded or not; -1 where unknown.
        output_tokens_R: int32 tokens generated; -1 where unknown. The last is never fed back, so a
            fully recorded request has ``output_tokens - 1`` decode rows.
        signals: Optional arrays by name, each declared in ``header.signals``.
        known: The hash of a content that was computed before; see `knowing`.
    """

    header: TraceHeader
    expert_TLK: NDArray[np.int16]
    gate_TLK: NDArray[np.float16] | NDArray[np.float32] | None
    step_T: NDArray[np.int32]
    request_T: NDArray[np.int32]
    position_T: NDArray[np.int32]
    is_prefill_T: NDArray[np.bool_]
    task_R: tuple[str, ...]
    arrival_ns_R: NDArray[np.int64]
    prompt_tokens_R: NDArray[np.int32]
    output_tokens_R: NDArray[np.int32]
    signals: Mapping[str, Array] = field(default_factory=dict)
    known: "KnownHash | None" = field(default=None, repr=False)

    @property
    def tokens(self) -> int:
        """Number of rows, T."""
        return len(self.expert_TLK)

    @property
    def layers(self) -> int:
        """Number of MoE layers, L."""
        return len(self.header.layer_ids)

    @property
    def experts(self) -> int:
        """Number of routed experts of a layer, E."""
        return self.header.experts

    @property
    def top_k(self) -> int:
        """Number of experts chosen for a token in a layer, K."""
        return self.header.top_k

    @property
    def requests(self) -> int:
        """Number of requests, R."""
        return len(self.task_R)

    @property
    def has_decode(self) -> bool:
        """Whether any row is a decode step."""
        return not bool(self.is_prefill_T.all())

    @property
    def prefill_tokens(self) -> int:
        """Number of prompt rows."""
        return int(self.is_prefill_T.sum())

    @property
    def has_prefill(self) -> bool:
        """Whether any row is a prompt token."""
        return bool(self.is_prefill_T.any())

    def arrays(self) -> dict[str, Array]:
        """Return every array by name, signals included, in the order of the names."""
        found: dict[str, Array] = {
            "expert_TLK": self.expert_TLK,
            "step_T": self.step_T,
            "request_T": self.request_T,
            "position_T": self.position_T,
            "is_prefill_T": self.is_prefill_T,
            "arrival_ns_R": self.arrival_ns_R,
            "prompt_tokens_R": self.prompt_tokens_R,
            "output_tokens_R": self.output_tokens_R,
            **self.signals,
        }
        if self.gate_TLK is not None:
            found["gate_TLK"] = self.gate_TLK
        return dict(sorted(found.items()))

    def document(self) -> str:
        """Return header and task labels as canonical JSON: what a file holds beside the arrays."""
        return make_document(self.header, self.task_R)

    def row_starts(self) -> NDArray[np.int64]:
        """Return where each request's rows begin, and T at the end: request r has [r]:[r + 1]."""
        numbers = np.arange(self.requests + 1, dtype=self.request_T.dtype)
        return np.searchsorted(self.request_T, numbers).astype(np.int64)

    def validate(self, name: str) -> None:
        """Check everything that the class promises, in one pass that holds few rows at a time.

        Args:
            name: What the message calls the trace: the file or folder it came from.

        Raises:
            TraceError: One line with array, first offending row, value and way out.
        """
        check(name, self.header, self.task_R, self.arrays())

    def knowing(self, content_hash: str) -> "RoutingTrace":
        """Return the trace with its hash, which holds for these very arrays and this header."""
        arrays = tuple(self.arrays().values())
        return replace(self, known=KnownHash(content_hash, self.header, self.task_R, arrays))

    def content_hash(self) -> str:
        """Return the SHA-256 of header, labels and arrays; the file format does not enter."""
        if self.known is not None and self.known.is_of(self):
            return self.known.content_hash
        return self.computed_hash()

    def order_hash(self) -> str:
        """Return a hash of who was served in which order: labels, lengths and first choices."""
        first_RLK = np.ascontiguousarray(self.expert_TLK[self.row_starts()[:-1]], dtype="<i2")
        who = [
            list(self.task_R),
            self.prompt_tokens_R.tolist(),
            self.output_tokens_R.tolist(),
        ]
        digest = hashlib.sha256(json.dumps(who, separators=(",", ":")).encode())
        digest.update(first_RLK.data.cast("B"))
        return digest.hexdigest()[:16]

    def computed_hash(self) -> str:
        """Return `content_hash` as computed from every value, even if it is known."""
        digest = hashlib.sha256(self.document().encode())
        for name, array in self.arrays().items():
            little = array.dtype.newbyteorder("<")
            digest.update(f"\n{name} {little.str} {array.shape}\n".encode())
            for start in range(0, len(array), HASH_ROWS):
                rows = np.ascontiguousarray(array[start : start + HASH_ROWS], dtype=little)
                digest.update(rows.data.cast("B") if rows.size else b"")
        return digest.hexdigest()

    def head(self, *, requests: int) -> "RoutingTrace":
        """Return the first requests as views of the same memory."""
        kept = max(0, min(requests, self.requests))
        return self._take(slice(0, int(self.row_starts()[kept])), slice(0, kept))

    def one_request(self, request: int, rows: slice) -> "RoutingTrace":
        """Return one request, whose rows the caller knows, as views and numbered 0."""
        taken = self._take(rows, slice(request, request + 1))
        return replace(taken, request_T=np.zeros(taken.tokens, dtype=np.int32))

    def between(self, first: int, last: int) -> "RoutingTrace":
        """Return requests [first, last), numbered from 0; views where the memory is one piece."""
        starts = self.row_starts()
        rows = slice(int(starts[first]), int(starts[last]))
        taken = self._take(rows, slice(first, last))
        return replace(taken, request_T=taken.request_T - np.int32(first))

    def select_requests(self, ids: Sequence[int]) -> "RoutingTrace":
        """Return the requests named, in that order, numbered from 0, as a copy.

        Raises:
            IndexError: An id is not in [0, R).
        """
        for request in ids:
            if not 0 <= request < self.requests:
                raise IndexError(f"no request {request}; the trace has {self.requests}")
        starts = self.row_starts()
        spans = [np.arange(starts[request], starts[request + 1]) for request in ids]
        rows = np.concatenate([np.empty(0, dtype=np.int64), *spans])
        taken = self._take(rows, np.asarray(ids, dtype=np.int64))
        numbers = np.repeat(np.arange(len(ids), dtype=np.int32), [len(span) for span in spans])
        return replace(taken, request_T=numbers)

    def _take(
        self,
        rows: slice | NDArray[np.int64],
        requests: slice | NDArray[np.int64],
    ) -> "RoutingTrace":
        per_request = {name for name in self.signals if first_axis(name) == "R"}
        tasks = np.arange(self.requests)[requests]
        return replace(
            self,
            expert_TLK=self.expert_TLK[rows],
            gate_TLK=None if self.gate_TLK is None else self.gate_TLK[rows],
            step_T=self.step_T[rows],
            request_T=self.request_T[rows],
            position_T=self.position_T[rows],
            is_prefill_T=self.is_prefill_T[rows],
            task_R=tuple(self.task_R[request] for request in tasks),
            arrival_ns_R=self.arrival_ns_R[requests],
            prompt_tokens_R=self.prompt_tokens_R[requests],
            output_tokens_R=self.output_tokens_R[requests],
            signals={
                name: array[requests if name in per_request else rows]
                for name, array in self.signals.items()
            },
        )


@dataclass(frozen=True, slots=True, eq=False)
class KnownHash:
    """A content hash and the very objects that it was computed of."""

    content_hash: str
    header: TraceHeader
    task_R: tuple[str, ...]
    arrays: tuple[Array, ...]

    def is_of(self, trace: RoutingTrace) -> bool:
        """Whether a trace is still made of them."""
        arrays = tuple(trace.arrays().values())
        return (
            trace.header is self.header
            and trace.task_R is self.task_R
            and len(arrays) == len(self.arrays)
            and all(one is other for one, other in zip(arrays, self.arrays, strict=True))
        )


def make_document(header: TraceHeader, task_R: Sequence[str]) -> str:
    """Return header and task labels as canonical JSON."""
    said = header.model_dump(mode="json")
    if header.closed_loop is None:
        del said["closed_loop"]  # as before there was such a thing: hashes of traces stay
    content = {"header": said, "task_R": task_R}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def first_axis(name: str) -> str:
    """Return the first axis that an array's name declares.

    >>> first_axis("prompt_embedding_RD")
    'R'
    """
    return name.rpartition("_")[2][:1]
