"""From what a foreign format gives, request by request, to the arrays of a trace.

Importers say what they found; here it is decided how it is laid out, so that all of them number
steps, positions and tokens in one way: the prompt is one step, each decode row a step of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from moesim.traces.errors import TraceError, blame
from moesim.traces.header import TraceHeader, first_problem
from moesim.traces.schema import RoutingTrace

# T tokens, L MoE layers, K chosen, R requests.
Array = NDArray[Any]

LARGEST_ID = np.iinfo(np.int16).max


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


@dataclass(frozen=True, slots=True)
class Columns:
    """Arrays with one entry per row, collected from the requests."""

    step: list[Array] = field(default_factory=list)
    position: list[Array] = field(default_factory=list)
    output: list[int] = field(default_factory=list)


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
    columns = Columns()
    for rows in requests:
        count = len(rows.is_prefill_T)
        position = (
            rows.first_position + np.arange(count) if rows.position_T is None else rows.position_T
        )
        columns.position.append(position)
        columns.step.append(step_numbers(rows.is_prefill_T) if rows.step_T is None else rows.step_T)
        decode_rows = count - int(rows.is_prefill_T.sum())
        generated = 0 if header.teacher_forced else decode_rows + 1
        columns.output.append(generated if rows.output_tokens is None else rows.output_tokens)
    lengths = [len(rows.is_prefill_T) for rows in requests]
    gates = [rows.gate_TLK for rows in requests if rows.gate_TLK is not None]
    if gates and len(gates) != len(requests):
        without = next(index for index, rows in enumerate(requests) if rows.gate_TLK is None)
        blame(name, f"request {without}", "no gates, but others have them", "give all or none")
    ids = [as_expert_ids(name, rows.expert_TLK) for rows in requests]
    return RoutingTrace(
        header=header,
        expert_TLK=np.concatenate(ids),
        gate_TLK=np.concatenate(gates) if gates else None,
        step_T=np.concatenate(columns.step).astype(np.int32),
        request_T=np.repeat(np.arange(len(requests), dtype=np.int32), lengths),
        position_T=np.concatenate(columns.position).astype(np.int32),
        is_prefill_T=np.concatenate([rows.is_prefill_T for rows in requests]),
        task_R=tuple(rows.task for rows in requests),
        arrival_ns_R=np.zeros(len(requests), dtype=np.int64),
        prompt_tokens_R=np.array([rows.prompt_tokens for rows in requests], dtype=np.int32),
        output_tokens_R=np.array(columns.output, dtype=np.int32),
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


def as_expert_ids(name: str, ids: Array) -> NDArray[np.int16]:
    """Return ids as int16; an id that does not fit is told, never wrapped around.

    Raises:
        TraceError: An id is below -1 or above 32767.
    """
    wrong = (ids < -1) | (ids > LARGEST_ID)
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        blame(name, f"row {row}", f"expert {ids[wrong][0]}", f"ids lie in [0, {LARGEST_ID}]")
    return ids.astype(np.int16)


def make_header(name: str, **facts: object) -> TraceHeader:
    """Make a header of what an importer found.

    Raises:
        TraceError: The facts contradict each other; the first finding, in one line.
    """
    try:
        return TraceHeader.model_validate(facts)
    except ValidationError as error:
        raise TraceError(f"{name}: header: {first_problem(error)}") from error
