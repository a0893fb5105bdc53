"""BigMoeOnEdge's route CSV, from a few lines and from the real log written out again."""

from pathlib import Path

import numpy as np
import pytest

from moesim.traces import RoutingTrace, TraceError, load

PREAMBLE = """\
# route_trace v1
# model=/data/local/tmp/Tiny-Q4.gguf arch=tiny n_layer=2 n_expert=4 n_expert_used=2
# layer=0 expert_bytes=100 dense_bytes=7
# layer=1 expert_bytes=80 dense_bytes=8
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes,dropped
"""
# The engine writes layer after layer; the last layer routes only the prompt's last token.
ROWS = """\
0,0,0,0,0,3,0.7,0,100,0
0,0,0,0,1,1,0.3,0,100,0
0,0,1,0,0,2,0.6,0,100,0
0,0,1,0,1,0,0.4,1,0,0
0,0,1,1,0,1,0.9,0,80,0
0,0,1,1,1,2,0.1,0,80,0
0,1,2,0,0,3,0.5,1,0,0
0,1,2,0,1,2,0.5,1,0,0
0,1,2,1,0,0,0.8,0,80,0
0,1,2,1,1,1,0.2,2,0,0
"""


def log(path: Path, text: str) -> Path:
    """Write the text to a file whose suffix says nothing."""
    target = path / "route.log"
    target.write_text(text)
    return target


def test_a_few_lines_are_read(tmp_path: Path) -> None:
    """Ids in slot order, gates, phases, positions and bytes per layer come out as written."""
    trace = load(log(tmp_path, PREAMBLE + ROWS))
    assert trace.expert_TLK.tolist() == [[[3, 1], [-1, -1]], [[2, 0], [1, 2]], [[3, 2], [0, 1]]]
    assert trace.gate_TLK is not None
    assert np.allclose([[[0.7, 0.3], [0, 0]]], trace.gate_TLK[:1])
    assert trace.is_prefill_T.tolist() == [True, True, False]
    assert trace.position_T.tolist() == [0, 1, 2]
    assert trace.step_T.tolist() == [0, 0, 1]
    assert (trace.header.expert_bytes, trace.header.dense_bytes) == ((100, 80), (7, 8))
    assert (trace.header.model, trace.experts, trace.top_k) == ("Tiny-Q4.gguf", 4, 2)
    assert (trace.prompt_tokens_R.tolist(), trace.output_tokens_R.tolist()) == ([2], [2])


def test_lines_in_another_order_give_the_same_trace(tmp_path: Path) -> None:
    """Rows are sorted by turn, step, layer and slot, wherever they stand."""
    ordered = load(log(tmp_path, PREAMBLE + ROWS)).content_hash()
    backwards = "".join(reversed(ROWS.splitlines(keepends=True)))
    assert ordered == load(log(tmp_path, PREAMBLE + backwards)).content_hash()


def test_each_turn_is_a_request(tmp_path: Path) -> None:
    """A second turn continues the context: its positions and prompt length count from the start."""
    second = "".join(
        f"1,{phase},{int(step) + 3},{rest}\n"
        for _, phase, step, rest in (line.split(",", 3) for line in ROWS.splitlines())
    )
    trace = load(log(tmp_path, PREAMBLE + ROWS + second))
    assert trace.task_R == ("turn 0", "turn 1")
    assert trace.position_T.tolist() == [0, 1, 2, 3, 4, 5]
    assert trace.prompt_tokens_R.tolist() == [2, 5]


def test_unknown_weights_are_no_gates(tmp_path: Path) -> None:
    """Where the graph exposed no weight the engine writes nan, and the trace has no gates."""
    lines = [line.split(",") for line in ROWS.splitlines()]
    text = "".join(",".join([*line[:6], "nan", *line[7:]]) + "\n" for line in lines)
    assert load(log(tmp_path, PREAMBLE + text)).gate_TLK is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PREAMBLE + ROWS[:-10], "line 15: 7 fields, the first line names 10; is the file cut off?"),
        (
            PREAMBLE + ROWS.replace("0,1,2,1,0,0", "0,1,2,1,0,x"),
            "line 14, expert: 'x' is not a whole number",
        ),
        (PREAMBLE + ROWS.replace("0.8", "high"), "line 14, weight: 'high' is not a number"),
        (
            PREAMBLE + ROWS.replace("0,1,2,1,0,0", "0,1,2,1,0,-3"),
            "line 14: expert -3; ids lie in [0, 32767]",
        ),
        (
            PREAMBLE + ROWS.replace("0,1,2,1,0,0", "0,1,2,1,0,4"),
            (
                "expert_TLK: row 2, layer 1: expert 4 is not in [0, 4), nor -1 for absent; "
                "correct the ids or header.experts"
            ),
        ),
        (
            PREAMBLE + ROWS.replace("0,1,2,1,1,1,0.2,2,0,0\n", ""),
            "line 14: 1 experts for token 2, layer 1; every token and layer has 2",
        ),
        (
            PREAMBLE + ROWS.replace("0,1,2,1,0,0", "0,0,2,1,0,0"),
            "line 14: token 2 changes its phase; a token goes through the model once",
        ),
        (PREAMBLE + ROWS.replace("0.8", "nan"), "gate_TLK: row 2, layer 1: gate nan; gates are"),
        (PREAMBLE, "table: it has no rows; record at least one token"),
        (
            PREAMBLE.replace("n_expert=4 ", "") + ROWS,
            "n_expert: it is missing from the # lines; record again with --route-trace",
        ),
        (
            PREAMBLE.replace("slot", "rank") + ROWS,
            "column slot: it is missing; it needs turn,phase,step,layer,slot,expert,weight",
        ),
        (
            PREAMBLE.replace("n_expert=4", "n_expert=four") + ROWS,
            "n_expert: 'four' is not a whole number",
        ),
    ],
)
def test_a_wrong_file_is_told(text: str, expected: str, tmp_path: Path) -> None:
    """One line names the file, the line of it, the column and the value."""
    path = log(tmp_path, text)
    with pytest.raises(TraceError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {expected}")
    assert "\n" not in str(caught.value)


def as_csv(trace: RoutingTrace) -> str:
    """Write a trace of one request as the engine would."""
    header = trace.header
    assert header.expert_bytes is not None
    assert header.dense_bytes is not None
    assert trace.gate_TLK is not None
    lines = [
        "# route_trace v1",
        f"# model=/tmp/{header.model} n_expert={header.experts} n_expert_used={header.top_k}",
    ]
    sizes = zip(header.layer_ids, header.expert_bytes, header.dense_bytes, strict=True)
    lines += [f"# layer={i} expert_bytes={e} dense_bytes={d}" for i, e, d in sizes]
    lines.append("turn,phase,step,layer,slot,expert,weight,residency,expert_bytes")
    for row, layer, slot in np.argwhere(trace.expert_TLK >= 0):
        phase = int(not trace.is_prefill_T[row])
        cell = trace.expert_TLK[row, layer, slot], trace.gate_TLK[row, layer, slot]
        lines.append(
            f"0,{phase},{trace.position_T[row]},{header.layer_ids[layer]},{slot},"
            f"{cell[0]},{float(cell[1])!r},0,0"
        )
    return "\n".join(lines) + "\n"


def test_the_phone_log_survives_its_own_format(shared_data: Path, tmp_path: Path) -> None:
    """The real log, written as CSV, reads back to the same ids, steps, gates and bytes."""
    trace = load(shared_data / "traces" / "bigmoe-qwen")
    back = load(log(tmp_path, as_csv(trace)))
    assert (trace.expert_TLK == back.expert_TLK).all()
    assert (trace.step_T == back.step_T).all()
    assert (trace.gate_TLK == back.gate_TLK).all()
    assert trace.header.expert_bytes == back.header.expert_bytes
