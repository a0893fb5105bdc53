"""What must be true of a trace's arrays; each broken promise is told in one line.

A trace may be larger than memory, so rows are looked at in blocks. Order is checked on each row and
the one before it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from moesim.traces.errors import blame
from moesim.traces.header import TraceHeader
from moesim.traces.selection import check_selection
from moesim.traces.shapes import check_shapes

# T tokens, L MoE layers, E experts of a layer, K chosen, R requests.
Array = NDArray[Any]

BLOCK_VALUES = 2**21


def check(
    name: str, header: TraceHeader, task_R: Sequence[str], arrays: Mapping[str, Array]
) -> None:
    """Check names, types and shapes first, then the order of rows, the ids, the router's rule.

    Raises:
        TraceError: At the first finding; the message begins with ``name``.
    """
    check_shapes(name, header, len(task_R), arrays)
    _check_requests(name, len(task_R), arrays)
    _check_order(name, arrays)
    _check_lengths(name, len(task_R), arrays)
    tokens, layers, chosen = arrays["expert_TLK"].shape
    for rows in blocks(tokens, layers * chosen):
        _check_experts(name, header, rows, arrays)
        if "gate_TLK" in arrays:
            _check_gates(name, rows, arrays["gate_TLK"])
    if header.selection is not None and "router_probs_TLE" in arrays:
        _check_rule(name, header, arrays)


def blocks(rows: int, values_per_row: int = 1) -> Iterator[slice]:
    """Cut the rows into slices of about two million values."""
    step = max(1, BLOCK_VALUES // values_per_row)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _first(bad: Array) -> tuple[int, ...] | None:
    """Return the index of the first True, in row order; None if all are False."""
    if not bad.any():
        return None
    return tuple(int(axis) for axis in np.unravel_index(int(bad.argmax()), bad.shape))


def _check_requests(name: str, requests: int, arrays: Mapping[str, Array]) -> None:
    before = -1
    for rows in blocks(len(arrays["request_T"])):
        block = arrays["request_T"][rows].astype(np.int64)
        outside = _first((block < 0) | (block >= requests))
        if outside is not None:
            blame(
                name,
                f"request_T: row {rows.start + outside[0]}",
                f"request {block[outside]} is not in [0, {requests})",
                "number the requests from 0",
            )
        step = np.diff(block, prepend=before)
        jump = _first((step < 0) | (step > 1))
        if jump is not None:
            previous = block[jump] - step[jump]
            blame(
                name,
                f"request_T: row {rows.start + jump[0]}",
                f"request {block[jump]} "
                + (f"follows request {previous}" if previous >= 0 else "comes first"),
                "keep the rows of a request together and the requests in order, from 0",
            )
        before = int(block[-1])
    if before != requests - 1:
        blame(name, f"task_R: request {before + 1}", "the request has no rows", "drop or record it")


def _check_order(name: str, arrays: Mapping[str, Array]) -> None:
    for earlier in blocks(len(arrays["request_T"]) - 1):
        later = slice(earlier.start + 1, earlier.stop + 1)

        def blame_row(
            key: str, index: tuple[int, ...], problem: str, way_out: str, later: slice = later
        ) -> NoReturn:
            blame(name, f"{key}: row {later.start + index[0]}", problem, way_out)

        request = arrays["request_T"][later]
        same_request = arrays["request_T"][earlier] == request
        for key, least, way_out in (
            ("position_T", 1, "positions rise within a request"),
            ("step_T", 0, "step numbers never decrease within a request"),
        ):
            values = arrays[key][earlier.start : later.stop].astype(np.int64)
            bad = _first(same_request & (np.diff(values) < least))
            if bad is not None:
                row = bad[0]
                problem = f"{values[row + 1]} follows {values[row]} in request {request[row]}"
                blame_row(key, bad, problem, way_out)
        is_prefill = arrays["is_prefill_T"]
        back = _first(same_request & is_prefill[later] & ~is_prefill[earlier])
        if back is not None:
            problem = "a prompt row after a decode row of its request"
            blame_row("is_prefill_T", back, problem, "make each turn of a conversation a request")
        step = arrays["step_T"][later]
        mixed = _first(
            same_request
            & (step == arrays["step_T"][earlier])
            & (is_prefill[later] != is_prefill[earlier])
        )
        if mixed is not None:
            problem = f"step {step[mixed]} has prompt and decode rows"
            blame_row("step_T", mixed, problem, "give the first decode row a step of its own")


def _check_lengths(name: str, requests: int, arrays: Mapping[str, Array]) -> None:
    for key, least, way_out in (
        ("arrival_ns_R", 0, "0 is the start of the trace"),
        ("prompt_tokens_R", -1, "-1 says unknown"),
        ("output_tokens_R", -1, "-1 says unknown"),
    ):
        bad = _first(arrays[key] < least)
        if bad is not None:
            blame(name, f"{key}: request {bad[0]}", f"{arrays[key][bad]}", way_out)
    prompt_rows_R = np.zeros(requests, dtype=np.int64)
    for rows in blocks(len(arrays["request_T"])):
        negative = _first(arrays["position_T"][rows] < 0)
        if negative is not None:
            row = rows.start + negative[0]
            value = arrays["position_T"][row]
            blame(name, f"position_T: row {row}", f"position {value}", "positions start at 0")
        prompts = arrays["request_T"][rows][arrays["is_prefill_T"][rows]]
        prompt_rows_R += np.bincount(prompts, minlength=requests)
    known = arrays["prompt_tokens_R"] >= 0
    over = _first(known & (prompt_rows_R > arrays["prompt_tokens_R"]))
    if over is not None:
        blame(
            name,
            f"prompt_tokens_R: request {over[0]}",
            f"{arrays['prompt_tokens_R'][over]} tokens, but {prompt_rows_R[over]} prompt rows",
            "it is the length of the whole prompt",
        )


def _check_experts(
    name: str, header: TraceHeader, rows: slice, arrays: Mapping[str, Array]
) -> None:
    expert_TLK = arrays["expert_TLK"][rows]

    def blame_row(index: tuple[int, ...], problem: str, way_out: str) -> NoReturn:
        layer = f", layer {index[1]}" if len(index) > 1 else ""
        blame(name, f"expert_TLK: row {rows.start + index[0]}{layer}", problem, way_out)

    outside = _first((expert_TLK < -1) | (expert_TLK >= header.experts))
    if outside is not None:
        problem = f"expert {expert_TLK[outside]} is not in [0, {header.experts}), nor -1 for absent"
        blame_row(outside, problem, "correct the ids or header.experts")
    sorted_TLK = np.sort(expert_TLK, axis=2)
    repeat = _first((sorted_TLK[..., 1:] == sorted_TLK[..., :-1]) & (sorted_TLK[..., 1:] >= 0))
    if repeat is not None:
        problem = f"expert {sorted_TLK[repeat]} twice"
        blame_row(repeat, problem, "a token chooses an expert of a layer once")
    absent_TLK = expert_TLK < 0
    if not absent_TLK.any():
        return
    absent_TL = np.asarray(absent_TLK.all(axis=2))
    partly = _first(absent_TLK.any(axis=2) & ~absent_TL)
    if partly is not None:
        problem = f"{int(absent_TLK[partly].sum())} of {header.top_k} experts absent"
        blame_row(partly, problem, "a token's layer is recorded whole or not at all")
    decode = _first(absent_TL & ~arrays["is_prefill_T"][rows, None])
    if decode is not None:
        blame_row(decode, "no experts in a decode row", "only prompt rows may lack a layer")
    nothing = _first(np.asarray(absent_TL.all(axis=1)))
    if nothing is not None:
        blame_row(nothing, "no layer recorded", "drop the row")


def _check_gates(name: str, rows: slice, gate_TLK: Array) -> None:
    block = gate_TLK[rows]
    bad = _first(~(np.isfinite(block) & (block >= 0)))
    if bad is not None:
        place = f"gate_TLK: row {rows.start + bad[0]}, layer {bad[1]}"
        blame(name, place, f"gate {block[bad]}", "gates are finite and not negative")


def _check_rule(name: str, header: TraceHeader, arrays: Mapping[str, Array]) -> None:
    assert header.selection is not None
    expert_TLK, gate_TLK = arrays["expert_TLK"], arrays.get("gate_TLK")
    for rows in blocks(len(expert_TLK), len(header.layer_ids) * header.experts):
        finding = check_selection(
            header.selection,
            arrays["router_probs_TLE"][rows],
            expert_TLK[rows],
            None if gate_TLK is None else gate_TLK[rows],
        )
        if finding is not None:
            row, layer, problem = finding
            place = f"router_probs_TLE: row {rows.start + row}, layer {layer}"
            way_out = "correct header.selection, or leave it out if the router has another rule"
            blame(name, place, problem, way_out)
