"""From what a foreign format gives, request by request, to the arrays of a trace.

Importers say what they found; here it is decided how it is laid out, so that all of them number
steps, positions and tokens in one way: the prompt is one step, each decode row a step of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from moesim.traces.errors import TraceError, blame
from moesim.traces.header import TraceHeader, first_problem
from moesim.traces.ids import as_expert_ids
from moesim.traces.schema import RoutingTrace

# T tokens, L MoE layers, K chosen, R requests.
Array = NDArray[Any]

LARGEST_INT32 = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRows:
    """One request as an importer found it.

    Attributes:
        expert_TLK: Expert ids; -1 where absent. Any integer type, see `as_expert_ids`.
        is_prefill_T: Whether the row is a prompt token; prompt rows come first.
        first_position: Position of the first row, where ``position_T`` is not given.
        step_T: Forward pass of each row, where the format records it.
        prompt_tokens: -1 where unknown.
        output_tokens: None where it follows from the rows: one more than the decode rows.
    """

    expert_TLK: Array
    is_prefill_T: NDArray[np.bool_]
    gate_TLK: Array | None = None
    first_position: int = 0
    position_T: Array | None = None
    step_T: Array | None = None
    task: str = ""
    prompt_tokens: int = -1
    output_tokens: int | None = None

    def steps(self) -> Array:
        """Return the forward pass of each row."""
        return step_numbers(self.is_prefill_T) if self.step_T is None else self.step_T

    def positions(self) -> Array:
        """Return the place of each row in the request."""
        if self.position_T is not None:
            return self.position_T
        return self.first_position + np.arange(len(self.is_prefill_T))

    def generated(self, *, teacher_forced: bool) -> int:
        """Return how many tokens the model sampled: the prompt's pass gives the first."""
        if self.output_tokens is not None:
            return self.output_tokens
        return 0 if teacher_forced else int((~self.is_prefill_T).sum()) + 1


def assemble(
    name: str,
    header: TraceHeader,
    requests: Sequence[RequestRows],
    signals: Mapping[str, Array] | None = None,
) -> RoutingTrace:
    """Lay the requests out one after another; the caller validates.

    Raises:
        TraceError: There is no request, an id does not fit int16, or only some have gates.
    """
    if not requests:
        blame(name, "requests", "there are none", "record at least one")
    lengths = [len(rows.is_prefill_T) for rows in requests]
    gates = [rows.gate_TLK for rows in requests if rows.gate_TLK is not None]
    if gates and len(gates) != len(requests):
        without = next(index for index, rows in enumerate(requests) if rows.gate_TLK is None)
        blame(name, f"request {without}", "no gates, but others have them", "give all or none")
    generated = [rows.generated(teacher_forced=header.teacher_forced) for rows in requests]
    ids = [as_expert_ids(name, rows.expert_TLK) for rows in requests]
    return RoutingTrace(
        header=header,
        expert_TLK=np.concatenate(ids),
        gate_TLK=np.concatenate(gates) if gates else None,
        step_T=_as_int32(name, "step", np.concatenate([rows.steps() for rows in requests])),
        request_T=np.repeat(np.arange(len(requests), dtype=np.int32), lengths),
        position_T=_as_int32(
            name, "position", np.concatenate([rows.positions() for rows in requests])
        ),
        is_prefill_T=np.concatenate([rows.is_prefill_T for rows in requests]),
        task_R=tuple(rows.task for rows in requests),
        arrival_ns_R=np.zeros(len(requests), dtype=np.int64),
        prompt_tokens_R=_as_int32(
            name, "prompt_tokens", np.array([rows.prompt_tokens for rows in requests])
        ),
        output_tokens_R=_as_int32(name, "output_tokens", np.array(generated)),
        signals=dict(signals or {}),
    )


def step_numbers(is_prefill_T: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the forward passes of one request: the whole prompt is one, each decode row another.

    >>> step_numbers(np.array([True, True, False, False])).tolist()
    [0, 0, 1, 2]
    """
    first_decode = 1 if is_prefill_T.any() else 0
    decode_before = np.cumsum(~is_prefill_T) - 1 + first_decode
    return np.where(is_prefill_T, 0, decode_before).astype(np.int32)


def _as_int32(name: str, what: str, values: Array) -> NDArray[np.int32]:
    """Return integers as int32; what does not fit is told, never wrapped around."""
    wrong = np.abs(values) > LARGEST_INT32
    if wrong.any():
        index = int(wrong.argmax())
        blame(name, f"{what} {index}", f"{values[index]}", "counts lie below 2^31")
    return values.astype(np.int32)


def make_header(name: str, **facts: object) -> TraceHeader:
    """Make a header of what an importer found.

    Raises:
        TraceError: The facts contradict each other; the first finding, in one line.
    """
    try:
        return TraceHeader.model_validate(facts)
    except ValidationError as error:
        raise TraceError(f"{name}: header: {first_problem(error)}") from error
