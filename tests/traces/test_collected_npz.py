"""The folder layout of the collected logs, on made-up folders and on the real ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.traces import TraceError, describe, load

META: dict[str, Any] = {
    "model": "org/some-moe (8 experts)",
    "n_experts": 8,
    "top_k": 2,
    "layer_ids": [1, 2],
    "seq_domain": ["law", "code"],
    "source": "github:a/b",
    "commit": "abc",
    "licence": "MIT",
    "notes": "as logged",
}


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    """Return 2 sequences: 3 prompt rows and 2 decode rows, then 1 prompt row and 1 decode row."""
    rng = np.random.default_rng(0)
    experts = rng.permuted(np.tile(np.arange(8, dtype=np.uint8), (7, 2, 1)), axis=2)[..., :2]
    experts[:2, 1] = 255
    return {
        "experts": experts,
        "weights": np.full((7, 2, 2), 0.5, dtype=np.float16),
        "seq_start": np.array([0, 5, 7]),
        "phase": np.array([0, 0, 0, 1, 1, 0, 1], dtype=np.uint8),
    }


def folder(path: Path, meta: dict[str, Any], **changed: Any) -> Path:
    """Write the folder; None removes an array."""
    kept = {key: value for key, value in (arrays() | changed).items() if value is not None}
    np.savez_compressed(path / "trace.npz", **kept)
    (path / "meta.json").write_text(json.dumps(meta))
    return path


def test_sequences_become_requests(tmp_path: Path) -> None:
    """A prompt is one step, each decode row its own; 255 is absent; lengths follow the rows."""
    trace = load(folder(tmp_path, META))
    assert trace.step_T.tolist() == [0, 0, 0, 1, 2, 0, 1]
    assert trace.position_T.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert trace.request_T.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert trace.expert_TLK[0, 1].tolist() == [-1, -1]
    assert (arrays()["experts"][2:] == trace.expert_TLK[2:]).all()
    assert trace.task_R == ("law", "code")
    assert trace.prompt_tokens_R.tolist() == [3, 1]
    assert trace.output_tokens_R.tolist() == [3, 2]
    assert (trace.header.model, trace.header.source) == ("org/some-moe", "github:a/b@abc")
    assert trace.header.notes == "model: org/some-moe (8 experts); as logged"


def test_the_array_file_stands_for_its_folder(tmp_path: Path) -> None:
    """Giving trace.npz reads the same trace as giving the folder."""
    path = folder(tmp_path, META)
    assert load(path).content_hash() == load(path / "trace.npz").content_hash()


def test_decode_rows_without_their_prompt_start_at_its_length(tmp_path: Path) -> None:
    """A decode-only log takes positions from prompt_len, and tokens become a signal."""
    meta = META | {"prompt_len": [10, 20]}
    phase = np.ones(7, dtype=np.uint8)
    experts = np.tile(np.array([3, 4], dtype=np.uint8), (7, 2, 1))
    token = np.arange(7, dtype=np.int32)
    trace = load(folder(tmp_path, meta, phase=phase, experts=experts, token=token))
    assert trace.position_T.tolist() == [10, 11, 12, 13, 14, 20, 21]
    assert trace.step_T.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert trace.prompt_tokens_R.tolist() == [10, 20]
    assert trace.output_tokens_R.tolist() == [6, 3]
    assert list(range(7)) == trace.signals["token_T"].tolist()
    assert trace.header.signals["token_T"].evidence == "derived"


def test_teacher_forced_rows_are_prompt_rows(tmp_path: Path) -> None:
    """The phase of a teacher-forced log is honoured: prompts only, nothing generated."""
    meta = META | {"notes": "teacher-forced forward over examples"}
    trace = load(folder(tmp_path, meta, phase=np.zeros(7, dtype=np.uint8)))
    assert trace.header.teacher_forced
    assert not trace.has_decode
    assert trace.step_T.tolist() == [0] * 7
    assert trace.output_tokens_R.tolist() == [0, 0]
    assert "teacher-forced rows are read as prompt rows" in str(trace.header.notes)


@pytest.mark.parametrize(
    ("meta", "changed", "expected"),
    [
        (
            {},
            {"phase": None},
            "trace.npz: phase: the array is missing; it needs experts, seq",
        ),
        (
            {},
            {"experts": np.zeros((7, 3, 2), dtype=np.uint8)},
            "trace.npz: experts: shape [7, 3, 2], expected [7, 2, 2]; phase, layer_ids and top_k",
        ),
        ({}, {"experts": np.zeros((7, 2, 2))}, "trace.npz: experts: dtype float64; it holds whole"),
        (
            {},
            {"phase": np.array([0, 0, 0, 1, 2, 0, 1])},
            "trace.npz: phase: row 4: phase 2; 0 is prompt, 1 is decode",
        ),
        (
            {},
            {"seq_start": np.array([0, 0, 7])},
            "trace.npz: seq_start: entry 1: it does not rise; drop empty sequences",
        ),
        (
            {},
            {"seq_start": np.array([0, 5, 8])},
            "trace.npz: seq_start: runs from 0 to 8, there are 7 rows; it runs from 0 to",
        ),
        (
            {},
            {"seq_start": np.array([0, 7])},
            "trace.npz: seq_start: 2 entries for 2 sequences; it has one more than seq_domain",
        ),
        (
            {},
            {"token": np.arange(3)},
            "trace.npz: token: shape [3]; it has one entry per row",
        ),
        (
            {},
            {"phase": np.zeros((7, 1), dtype=np.uint8)},
            "trace.npz: phase: shape [7, 1]; it has 1",
        ),
        ({"n_experts": "many"}, {}, "meta.json: n_experts: 'many' is not a whole number"),
        ({"seq_domain": "law"}, {}, "meta.json: seq_domain: 'law'; it is a list"),
        (
            {"prompt_len": [3]},
            {},
            "meta.json: prompt_len: 1 entries for 2 sequences; it has one per sequence",
        ),
        (
            {"prompt_len": [3, 0]},
            {},
            ": prompt_tokens_R: request 1: 0 tokens, but 1 prompt rows; it is the length of",
        ),
        (
            {"n_experts": 300},
            {},
            "trace.npz: experts: n_experts is 300; 255 must be free for absent",
        ),
        (
            {"n_experts": 4},
            {},
            ": expert_TLK: row 0, layer 0: expert 4 is not in [0, 4), nor -1 for absent; correct",
        ),
        ({"expert_bytes": [1]}, {}, "meta.json: header: expert_bytes has 1 entries for 2 MoE"),
    ],
)
def test_a_wrong_folder_is_told(
    meta: dict[str, Any], changed: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    """One line names the file in the folder, the array or key, the row and the value."""
    path = folder(tmp_path, META | meta, **changed)
    with pytest.raises(TraceError) as caught:
        load(path)
    message = str(caught.value)
    assert message.removeprefix(str(path)).lstrip("/").startswith(expected)
    assert "\n" not in message


def test_a_missing_key_and_a_torn_file_are_told(tmp_path: Path) -> None:
    """A key that meta.json lacks is named; a cut-off trace.npz and a cut-off meta.json too."""
    meta = {key: value for key, value in META.items() if key != "top_k"}
    with pytest.raises(TraceError, match=r"meta\.json: top_k: the key is missing; it needs model"):
        load(folder(tmp_path, meta))
    path = folder(tmp_path, META) / "trace.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(TraceError, match=r"trace\.npz: damaged or cut off \("):
        load(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps(META)[:-1])
    with pytest.raises(TraceError, match=r"meta\.json: line 1, column \d+: .*; is the file cut"):
        load(tmp_path)


SETS = {
    "gpt-oss-20b": (60_298, 200, 0, 24, 32, 4),
    "deepseek-v2-lite-esft": (33_279, 213, 33_279, 26, 64, 6),
    "bigmoe-qwen": (156, 1, 28, 48, 128, 6),
}


@pytest.mark.parametrize("name", SETS)
def test_the_collected_logs_load(name: str, shared_data: Path) -> None:
    """Each real set is valid and has the sizes that its description gives."""
    trace = load(shared_data / "traces" / name)
    facts = describe(trace)
    keys = ("tokens", "requests", "prefill_tokens", "layers", "experts", "top_k")
    assert SETS[name] == tuple(facts[key] for key in keys)
    assert (name == "deepseek-v2-lite-esft") == trace.header.teacher_forced


def test_the_phone_log_knows_its_bytes_and_its_gap(shared_data: Path) -> None:
    """Two expert sizes; the last layer was recorded only for the last prompt token."""
    trace = load(shared_data / "traces" / "bigmoe-qwen")
    assert trace.header.expert_bytes is not None
    assert {3_059_712, 2_654_208} == set(trace.header.expert_bytes)
    assert len(trace.header.dense_bytes or ()) == 48
    absent_TL = (trace.expert_TLK < 0).all(axis=2)
    assert [[row, 47] for row in range(27)] == np.argwhere(absent_TL).tolist()
