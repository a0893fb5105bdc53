"""The Hugging Face selection traces: one JSON file per request, entry 0 is the prefill."""

import json
from pathlib import Path
from typing import Any

import pytest

from moesim.traces import TraceError, load

# Two MoE layers of four, two prompt tokens, then two decode steps, top-2.
REQUEST: list[dict[str, Any]] = [
    {"0": None, "1": [[3, 1], [0, 2]], "2": None, "3": [[5, 4], [1, 0]]},
    {"0": None, "1": [[2, 3]], "2": None, "3": [[4, 0]]},
    {"0": None, "1": [[1, 0]], "2": None, "3": [[2, 5]]},
]


def write(path: Path, content: object) -> Path:
    """Write indented JSON, as the set does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4))
    return path


def test_one_file_is_one_request(tmp_path: Path) -> None:
    """Null layers are dense, entry 0 is one step of all prompt tokens, gates are absent."""
    trace = load(write(tmp_path / "law" / "0.json", REQUEST))
    assert trace.expert_TLK[:2].tolist() == [[[3, 1], [5, 4]], [[0, 2], [1, 0]]]
    assert trace.expert_TLK[2:].tolist() == [[[2, 3], [4, 0]], [[1, 0], [2, 5]]]
    assert trace.step_T.tolist() == [0, 0, 1, 2]
    assert trace.is_prefill_T.tolist() == [True, True, False, False]
    assert (trace.header.layer_ids, trace.experts, trace.top_k) == ((1, 3), 6, 2)
    assert (
        trace.task_R,
        trace.prompt_tokens_R.tolist(),
        trace.output_tokens_R.tolist(),
    ) == (("law",), [2], [3])
    assert trace.gate_TLK is None
    assert trace.header.notes == "number of experts taken from the largest id"


def test_a_folder_is_many_requests(tmp_path: Path) -> None:
    """Files are read by subject and number; model and experts come from path and config.json."""
    root = tmp_path / "profiling_result" / "Qwen" / "Qwen3-235B"
    for subject, number in (("anatomy", 10), ("anatomy", 2), ("law", 0)):
        write(root / "mmlu" / subject / f"{number}.json", REQUEST[: 1 + number % 3])
    write(root / "config.json", {"num_experts": 128, "num_experts_per_tok": 8})
    trace = load(root)
    assert trace.task_R == ("anatomy", "anatomy", "law")
    assert [int((trace.request_T == request).sum()) for request in range(3)] == [4, 3, 2]
    assert (trace.header.model, trace.experts) == ("Qwen/Qwen3-235B", 128)


def test_two_models_are_not_mixed(tmp_path: Path) -> None:
    """A folder above several models is refused with their names."""
    for model in ("a", "b"):
        write(tmp_path / "profiling_result" / "org" / model / "mmlu" / "law" / "0.json", REQUEST)
    with pytest.raises(TraceError, match=r"folder: models org/a, org/b; give the folder of one"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("entry", "layer", "value", "expected"),
    [
        (1, "3", [[4]], "entry 1, layer 3: [1, 1] ids, layer 1 has [1, 2]; tokens times k"),
        (1, "3", [["x", 0]], "entry 1, layer 3, row 0: ['x', 0]; expert ids are whole numbers"),
        (0, "1", [[3, 1], [0]], "entry 0, layer 1, row 1: [0]; expert ids are whole numbers in"),
        (0, "1", [], "entry 0, layer 1: []; expert ids are whole numbers in lists 2 deep"),
        (0, "1", 7, "entry 0, layer 1: 7; expert ids are whole numbers in lists 2 deep"),
        (1, "1", [[2.5, 3]], "entry 1, layer 1, row 0: [2.5, 3]; expert ids are whole"),
        (
            1,
            "2",
            [[0, 1]],
            "entry 1: experts in 3 layers, elsewhere in 2; every entry has the",
        ),
        (1, "layer", [[0, 1]], "entry 1: layer 'layer'; layers are numbers"),
        (1, "1", [[99_999, 3]], "entry 1, layer 1, row 0: expert 99999; ids lie in [0, 32767]"),
        (1, "1", [[3, 3]], "expert_TLK: row 2, layer 0: expert 3 twice; a token chooses"),
    ],
)
def test_a_wrong_entry_is_told(
    entry: int, layer: str, value: object, expected: str, tmp_path: Path
) -> None:
    """One line names the file, the entry, the layer, the row and the value."""
    content: list[dict[str, Any]] = [dict(part) for part in REQUEST]
    content[entry][layer] = value
    path = write(tmp_path / "0.json", content)
    with pytest.raises(TraceError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {expected}")
    assert "\n" not in str(caught.value)


def test_a_cut_off_file_is_told(tmp_path: Path) -> None:
    """JSON that ends too early is told with line and column."""
    path = write(tmp_path / "0.json", REQUEST)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(TraceError, match=r"0\.json: line \d+, column \d+: .*; is the file cut off"):
        load(path)


def test_an_entry_without_experts_is_told(tmp_path: Path) -> None:
    """An entry whose layers are all null, and a list without objects, are one line each."""
    path = write(tmp_path / "0.json", [*REQUEST, {"0": None}])
    with pytest.raises(TraceError, match="entry 3: no layer has experts; drop the entry"):
        load(path)
    path = write(tmp_path / "0.json", [*REQUEST, 3])
    with pytest.raises(TraceError, match="file: not a list of objects; one object per forward"):
        load(path)
