"""Any CSV or JSONL, once the user has named its columns."""

import json
from pathlib import Path

import pytest

from moesim.traces import RoutingTrace, TraceError, load, parse_mapping

LISTS = """\
req,tok,lay,ids,w,kind,pass
a,0,0,3 1,0.7 0.3,prompt,0
a,0,4,2 0,0.6 0.4,prompt,0
a,1,0,1 2,0.5 0.5,prompt,0
a,1,4,0 3,0.9 0.1,prompt,0
a,2,0,3 2,0.8 0.2,decode,1
a,2,4,1 0,0.8 0.2,decode,1
b,0,0,0 1,0.5 0.5,decode,5
b,0,4,2 1,0.5 0.5,decode,5
"""
ALL = "token=tok,layer=lay,experts=ids,gates=w,request=req,phase=kind,step=pass,num_experts=4"


def table(path: Path, text: str) -> Path:
    """Write the table to a file."""
    target = path / "routes.txt"
    target.write_text(text)
    return target


def loaded(path: Path, text: str, mapping: str) -> RoutingTrace:
    """Load a table by a mapping as the command line gives it."""
    return load(table(path, text), mapping=parse_mapping(mapping))


def test_a_csv_with_lists_is_read(tmp_path: Path) -> None:
    """Ids, gates, requests, phases and steps come out of the named columns."""
    trace = loaded(tmp_path, LISTS, ALL + ",model=org/m")
    assert trace.expert_TLK[:2].tolist() == [[[3, 1], [2, 0]], [[1, 2], [0, 3]]]
    assert trace.expert_TLK[2:].tolist() == [[[3, 2], [1, 0]], [[0, 1], [2, 1]]]
    assert trace.gate_TLK is not None
    assert pytest.approx(trace.gate_TLK[0, 0].tolist()) == [0.7, 0.3]
    assert trace.request_T.tolist() == [0, 0, 0, 1]
    assert trace.step_T.tolist() == [0, 0, 1, 5]
    assert trace.is_prefill_T.tolist() == [True, True, False, False]
    assert (trace.header.layer_ids, trace.experts, trace.header.model) == ((0, 4), 4, "org/m")
    assert trace.prompt_tokens_R.tolist() == [2, -1]
    assert trace.header.notes is None


def test_only_three_columns_are_needed(tmp_path: Path) -> None:
    """Without the others there is one request of decode rows, and the notes say so."""
    text = "".join(LISTS.splitlines(keepends=True)[:7])
    trace = loaded(tmp_path, text, "token=tok,layer=lay,experts=ids")
    assert not trace.has_prefill
    assert trace.step_T.tolist() == [0, 1, 2]
    assert (trace.requests, trace.experts, trace.gate_TLK) == (1, 4, None)
    assert "number of experts taken from the largest id; phase not given" in str(trace.header.notes)


def test_one_row_per_expert_gives_the_same(tmp_path: Path) -> None:
    """A long table, in any order of tokens and layers, reads as the one with lists."""
    lines = [line.split(",") for line in LISTS.splitlines()[1:]]
    long = [
        ",".join([*line[:3], ident, gate, *line[5:]])
        for line in lines
        for ident, gate in zip(line[3].split(), line[4].split(), strict=True)
    ]
    long[:8] = long[4:8] + long[:4]
    text = "\n".join([LISTS.splitlines()[0], *long]) + "\n"
    mapping = ALL.replace("experts", "expert", 1).replace("gates", "gate")
    expected = loaded(tmp_path, LISTS, ALL).content_hash()
    assert expected == loaded(tmp_path, text, mapping).content_hash()


@pytest.mark.parametrize("form", ["[3, 1]", "3;1", "(3|1)", " 3  1 "])
def test_lists_may_be_written_in_several_ways(form: str, tmp_path: Path) -> None:
    """Brackets and separators of a list do not matter."""
    text = f't,l,e\n0,0,"{form}"\n'
    assert loaded(tmp_path, text, "token=t,layer=l,experts=e").expert_TLK.tolist() == [[[3, 1]]]


def test_jsonl_is_read(tmp_path: Path) -> None:
    """Objects, one per line, with lists as lists."""
    rows = [{"t": t, "l": 2, "e": [t, t + 1], "g": [0.5, 0.25], "task": "law"} for t in range(3)]
    text = "\n".join(json.dumps(row) for row in rows)
    trace = loaded(tmp_path, text, "token=t,layer=l,experts=e,gates=g,task=task")
    assert trace.expert_TLK.tolist() == [[[0, 1]], [[1, 2]], [[2, 3]]]
    assert trace.task_R == ("law",)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("1 2,0.5 0.5", "1 2 3,0.5 0.3 0.2", "line 4: 3 experts for token 1, layer 0; every token"),
        ("1 2,0.5 0.5", "1 2,0.5", "line 4: 1 gates for 2 experts; one gate each"),
        ("1 2,0.5", "1 two,0.5", "line 4, ids: 'two' is not a whole number"),
        ("1 2,0.5 0.5", "1 2,0.5 half", "line 4, w: 'half' is not a number"),
        ("a,1,0", "a,one,0", "line 4, tok: 'one' is not a whole number"),
        ("a,1,0,1 2", "a,1,0,1 -2", "line 4: expert -2; ids lie in [0, 32767]"),
        ("a,1,0,1 2", "a,1,0,1 4", "expert_TLK: row 1, layer 0: expert 4 is not in [0, 4), nor"),
        (
            "a,1,0,1 2,0.5 0.5,prompt",
            "a,1,0,1 2,0.5 0.5,later",
            "line 4, phase: 'later'; say prompt",
        ),
        ("a,1,4", "a,1,0", "line 4: 4 experts for token 1, layer 0; every token and layer has 2"),
        ("a,2,4,1 0,0.8 0.2,decode,1", "a,2,4", "line 7: 3 fields, the first line names 7; is the"),
        ("a,2,4,1 0,0.8 0.2,decode,1\n", "", "expert_TLK: row 2, layer 1: no experts in a decode"),
        ("a,1,4,0 3,0.9 0.1,prompt,0", "a,1,4,0 3,0.9 0.1,prompt,1", "line 5: token 1 changes its"),
        ("tok", "token", "line 2: no column 'tok' for token; there are req, token, lay, ids, w"),
    ],
)
def test_a_wrong_table_is_told(old: str, new: str, expected: str, tmp_path: Path) -> None:
    """One line names the file, the line or row, the column and the value."""
    assert old in LISTS
    with pytest.raises(TraceError) as caught:
        loaded(tmp_path, LISTS.replace(old, new, 1), ALL)
    assert str(caught.value).startswith(f"{tmp_path / 'routes.txt'}: {expected}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("token=t,layer=l,experts", "'experts': no column named; write experts=COLUMN"),
        ("token=t,token=u,layer=l,experts=e", "token: given twice; name one column"),
        ("token=t,layer=l,expertz=e", "expertz: unknown key; there are token, layer, experts"),
        ("layer=l,experts=e", "token: missing; write token=COLUMN"),
        ("token=t,experts=e", "layer: missing; write layer=COLUMN"),
        ("token=t,layer=l", "experts: name a column of lists (experts=) or of ids (expert=)"),
        ("token=t,layer=l,experts=e,expert=f", "experts: name a column of lists (experts=) or of"),
        ("token=t,layer=l,experts=e,gate=g", "gate: goes with expert=; rows of one kind hold both"),
    ],
)
def test_a_wrong_mapping_is_told(text: str, expected: str) -> None:
    """One line names the key and how to write it."""
    with pytest.raises(TraceError) as caught:
        parse_mapping(text)
    assert str(caught.value).startswith(f"--map: {expected}")


def test_a_table_without_rows_is_told(tmp_path: Path) -> None:
    """A header alone, and bytes that are no text, are one line each."""
    with pytest.raises(TraceError, match="table: it has no rows; record at least one token"):
        loaded(tmp_path, LISTS.splitlines()[0], ALL)
    (tmp_path / "routes.txt").write_bytes(b"\x1f\x8b\x08\xff\xfe")
    with pytest.raises(TraceError, match=r"not UTF-8 text; is it compressed\?$"):
        load(tmp_path / "routes.txt", mapping=parse_mapping(ALL))
