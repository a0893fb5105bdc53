"""Responses of vLLM (three encodings) and SGLang that carry routed experts."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.traces import TraceError, load

# A prompt of 3 tokens and 3 generated ones, the last never fed: 5 rows of 2 MoE layers, top-2.
IDS = np.array(
    [
        [[0, 1], [2, 3]],
        [[4, 5], [6, 7]],
        [[1, 0], [3, 2]],
        [[5, 4], [7, 6]],
        [[2, 0], [1, 7]],
    ]
)
USAGE = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
CONFIG = {"num_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 2, "model_type": "moe"}


def npy(ids: np.ndarray[Any, Any]) -> str:
    """Encode as vLLM's completions do."""
    buffer = io.BytesIO()
    np.save(buffer, ids.astype(np.int16))
    return base64.b64encode(buffer.getvalue()).decode()


def raw(ids: np.ndarray[Any, Any]) -> str:
    """Encode as SGLang does."""
    return base64.b64encode(ids.astype("<i4").tobytes()).decode()


def vllm(choice: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """Return a response with one choice."""
    return {"model": "org/moe", "usage": USAGE, "choices": [choice]} | changed


def dump(path: Path, content: object) -> Path:
    """Write the response to a file."""
    target = path / "dump.json"
    target.write_text(json.dumps(content))
    return target


WHOLE = {
    "vllm_lists": vllm(
        {"routed_experts": IDS[3:].tolist()}, prompt_routed_experts=IDS[:3].tolist()
    ),
    "vllm_npy": vllm({"routed_experts": npy(IDS)}),
    "sglang_generate": {
        "text": "…",
        "meta_info": {"routed_experts": raw(IDS), "prompt_tokens": 3, "completion_tokens": 3},
    },
    "sglang_openai": vllm({"message": {}}, sglext={"routed_experts": raw(IDS)}),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_every_encoding_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    """Prompt rows are one step, each fed token one more; ids are as served; no gates."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    trace = load(dump(tmp_path, WHOLE[kind]))
    assert IDS.tolist() == trace.expert_TLK.tolist()
    assert trace.is_prefill_T.tolist() == [True, True, True, False, False]
    assert trace.step_T.tolist() == [0, 0, 0, 1, 2]
    assert trace.position_T.tolist() == [0, 1, 2, 3, 4]
    assert (trace.prompt_tokens_R.tolist(), trace.output_tokens_R.tolist()) == ([3], [3])
    assert (trace.experts, trace.gate_TLK, trace.header.notes) == (8, None, None)


def test_a_chat_response_is_read_from_the_second_row(tmp_path: Path) -> None:
    """Chat rows belong to the pass that made each token: the first, the prompt's, is dropped."""
    trace = load(dump(tmp_path, vllm({"routed_experts": IDS[2:].tolist()})))
    assert IDS[3:].tolist() == trace.expert_TLK.tolist()
    assert not trace.has_prefill
    assert trace.position_T.tolist() == [3, 4]
    assert (trace.header.model, trace.prompt_tokens_R.tolist()) == ("org/moe", [3])
    assert trace.header.notes == "number of experts taken from the largest id"


def test_cached_prompt_tokens_are_left_out(tmp_path: Path) -> None:
    """Rows of -1 are prompt tokens that the prefix cache answered; the length still counts them."""
    prompt = IDS[:3].copy()
    prompt[:2] = -1
    response = vllm({"routed_experts": IDS[3:].tolist()}, prompt_routed_experts=prompt.tolist())
    trace = load(dump(tmp_path, response))
    assert trace.position_T.tolist() == [2, 3, 4]
    assert trace.prompt_tokens_R.tolist() == [3]


def test_the_token_never_fed_is_left_out(tmp_path: Path) -> None:
    """A last row of -1 stands for the token that ended the answer."""
    generated = np.concatenate([IDS[3:], np.full((1, 2, 2), -1)])
    response = vllm({"routed_experts": generated.tolist()}, prompt_routed_experts=IDS[:3].tolist())
    assert IDS.tolist() == load(dump(tmp_path, response)).expert_TLK.tolist()


def test_rows_may_start_later(tmp_path: Path) -> None:
    """A dump that leaves out the first prompt rows keeps the positions of the others."""
    trace = load(dump(tmp_path, vllm({"routed_experts": npy(IDS[1:])})))
    assert trace.position_T.tolist() == [1, 2, 3, 4]
    assert trace.is_prefill_T.tolist() == [True, True, False, False]


def test_layers_of_zeros_are_dense(tmp_path: Path) -> None:
    """SGLang counts all decoder layers; a dense one has only zeros and is dropped."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 3}))
    padded = np.concatenate([np.zeros((5, 1, 2), dtype=np.int64), IDS], axis=1)
    meta = {"routed_experts": raw(padded), "prompt_tokens": 3, "completion_tokens": 3}
    trace = load(dump(tmp_path, {"meta_info": meta}))
    assert IDS.tolist() == trace.expert_TLK.tolist()
    assert trace.header.layer_ids == (1, 2)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_many_responses_and_choices_are_many_requests(suffix: str, tmp_path: Path) -> None:
    """A list or lines of responses; each choice, told apart by its token ids, is a request."""
    short = {"routed_experts": npy(IDS[:4]), "token_ids": [7, 8]}
    long = {"routed_experts": npy(IDS), "token_ids": [7, 8, 9]}
    responses = [vllm(long), {**vllm(short), "choices": [short, long]}]
    path = tmp_path / f"dump{suffix}"
    lines = "\n".join(json.dumps(response) for response in responses)
    path.write_text(lines if suffix == ".jsonl" else json.dumps(responses))
    trace = load(path)
    assert trace.row_starts().tolist() == [0, 5, 9, 14]
    assert trace.output_tokens_R.tolist() == [3, 2, 3]
    assert trace.content_hash() == load(tmp_path).content_hash()


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (
            vllm({"routed_experts": None}),
            "response 0, choice 0: routed_experts is missing or null; serve with --enable-return",
        ),
        (
            {"model": "m", "routed_experts": 1},
            "response 0: no routed_experts; serve with --enable-return-routed-experts and dump",
        ),
        (
            vllm({"routed_experts": npy(IDS)}, usage={}),
            "response 0, choice 0: usage.prompt_tokens is missing; the rows cannot be split",
        ),
        (
            vllm({"routed_experts": npy(IDS)}, usage=USAGE | {"completion_tokens": 2}),
            "response 0, choice 0: 5 rows for 3 prompt and 2 generated tokens; at most 4 are fed",
        ),
        (
            vllm({"routed_experts": npy(IDS)[:-9]}),
            "response 0, choice 0: routed_experts is not base64 (",
        ),
        (
            vllm({"routed_experts": npy(IDS)[:-12]}),
            "response 0, choice 0: routed_experts is not a base64 .npy (",
        ),
        (
            vllm({"routed_experts": [[[1, 2], [3, 4]], [[1, 2], [3]]]}),
            "response 0, choice 0, routed_experts, row 1: [[1, 2], [3]]; expert ids are whole",
        ),
        (
            vllm({"routed_experts": [[[1, 2], [3, "a"]]]}),
            "response 0, choice 0, routed_experts, row 0: [[1, 2], [3, 'a']]; expert ids are",
        ),
        (
            vllm({"routed_experts": IDS[3:].tolist()}, prompt_routed_experts=[[[1, 2]]]),
            "response 0, choice 0, prompt_routed_experts: shape [1, 1, 2], routed_experts [2, 2",
        ),
        (
            vllm({"routed_experts": IDS[:1].tolist()}, usage=USAGE | {"completion_tokens": 1}),
            "response 0, choice 0: only the last prompt token's experts; generate more than one",
        ),
        (
            [vllm({"routed_experts": npy(IDS)}), vllm({"routed_experts": npy(IDS[:, :1])})],
            "request 1: [1, 2] layers and k, the first [2, 2]; keep the dumps of two models apart",
        ),
        (["routed_experts"], "response 0: 'routed_experts'; each response is an object"),
        (
            {"meta_info": {"routed_experts": raw(IDS), "prompt_tokens": 3}},
            "response 0: SGLang's routed_experts do not say their shape; put the model's config",
        ),
    ],
)
def test_a_wrong_response_is_told(response: object, expected: str, tmp_path: Path) -> None:
    """One line names the file, the response, the field and what would do."""
    path = dump(tmp_path, response)
    with pytest.raises(TraceError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {expected}")
    assert "\n" not in str(caught.value)


def test_bytes_that_do_not_fit_the_config_are_told(tmp_path: Path) -> None:
    """A config.json of another model does not divide SGLang's bytes into rows."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 3}))
    meta = {"routed_experts": raw(IDS), "prompt_tokens": 3, "completion_tokens": 3}
    path = dump(tmp_path, {"meta_info": meta})
    expected = "response 0: 80 bytes are not rows of 3 layers x 2; is config.json the model's?"
    with pytest.raises(TraceError) as caught:
        load(path)
    assert f"{path}: {expected}" == str(caught.value)


def test_a_cut_off_line_is_told(tmp_path: Path) -> None:
    """A JSONL dump that ends in the middle of a response names the line."""
    path = tmp_path / "dump.jsonl"
    line = json.dumps(vllm({"routed_experts": npy(IDS)}))
    path.write_text(f"{line}\n{line[:-20]}")
    with pytest.raises(TraceError, match=r"dump\.jsonl: line 2: .*; is the file cut off\?$"):
        load(path)
