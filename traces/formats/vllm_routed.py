"""API responses of vLLM and SGLang that carry routed experts: JSON, a list of them, or JSONL.

Where the ids are (read from the projects' documentation, tests and sources):

* vLLM 0.21 (docs/training/routed_experts_replay.md): ``prompt_routed_experts`` at the top, nested
  lists [prompt tokens, MoE layers, k], and ``choices[i].routed_experts`` for generated tokens; -1
  marks prompt tokens found in the prefix cache.
* later vLLM, /v1/completions: ``choices[i].routed_experts`` is a base64 .npy with the rows of
  prompt and generated tokens but the last, which is never fed back.
* later vLLM, /v1/chat/completions: ``choices[i].routed_experts`` is nested lists with one row per
  generated token, each of the pass that *produced* it. The first row is thus the last prompt
  token's; it is dropped, since the rest of the prompt is not there.
* SGLang: ``meta_info.routed_experts`` (/generate) or ``sglext.routed_experts`` is base64 int32
  [prompt + generated - 1, decoder layers, k], possibly from a later start.

Engines that count all decoder layers leave dense ones 0 throughout: those are dropped. There are no
gates. SGLang needs the model's ``config.json`` beside the dump for layers and k; for vLLM it gives
the number of experts, which otherwise is taken from the largest id, with a note.
"""

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.assemble import RequestRows, assemble, make_header
from moesim.traces.errors import blame
from moesim.traces.ids import as_expert_ids, from_base64, id_array, ids_of_npy
from moesim.traces.model_config import CONFIG_NAME, ModelShape, shape_beside
from moesim.traces.schema import RoutingTrace
from moesim.traces.texts import head, integer, json_lines, parse_json

__all__ = ["read", "sniff"]

# T tokens, L MoE layers, K chosen.
Array = NDArray[Any]

KEY = b'routed_experts"'
SERVE = "serve with --enable-return-routed-experts and dump the whole response"


def sniff(path: Path) -> bool:
    """Whether the file, or the first JSON in the folder, is JSON with the key in it."""
    files = _files(path)
    if not files or head(files[0]).lstrip()[:1] not in (b"{", b"["):
        return False
    with files[0].open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(KEY) >= 0


def read(path: Path) -> RoutingTrace:
    """Read all responses; each choice is a request.

    Raises:
        TraceError: Names file, response and field.
    """
    shape = shape_beside(path)
    requests: list[RequestRows] = []
    models: set[str] = set()
    for name, place, response in _responses(path):
        if not isinstance(response, dict):
            blame(name, place, f"{response!r:.60}", "each response is an object")
        if response.get("model"):
            models.add(str(response["model"]))
        requests.extend(_requests(name, place, response, shape))
    name = str(path)
    if not requests:
        blame(name, "file", "no responses", SERVE)
    first = requests[0].expert_TLK.shape[1:]
    for index, request in enumerate(requests):
        if request.expert_TLK.shape[1:] != first:
            problem = f"{list(request.expert_TLK.shape[1:])} layers and k, the first {list(first)}"
            blame(name, f"request {index}", problem, "keep the dumps of two models apart")
    layer_ids, requests = _without_dense_layers(requests)
    largest = max(int(request.expert_TLK.max()) for request in requests)
    header = make_header(
        name,
        model=shape.name or "+".join(sorted(models)) or "unknown",
        layer_ids=layer_ids,
        experts=shape.experts or largest + 1,
        top_k=first[1],
        evidence="recorded",
        notes=None if shape.experts else "number of experts taken from the largest id",
    )
    return assemble(name, header, requests)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [file for file in path.glob("*.json*") if file.name != CONFIG_NAME]
    return sorted(file for file in found if file.stat().st_size)


def _responses(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield file, place in it and response."""
    for file in _files(path):
        name = str(file)
        if file.suffix == ".jsonl":
            for number, response in json_lines(file):
                yield name, f"line {number}", response
            continue
        content = parse_json(name, file.read_bytes())
        for index, response in enumerate(content if isinstance(content, list) else [content]):
            yield name, f"response {index}", response


@dataclass(frozen=True, slots=True)
class Tokens:
    """How many tokens a request had; None where the response does not say."""

    prompt: int | None
    generated: int | None


def _requests(
    name: str, place: str, response: Mapping[str, Any], shape: ModelShape
) -> Iterator[RequestRows]:
    meta = _object(response.get("meta_info"))
    raw = (_object(response.get("sglext")) or meta).get("routed_experts")
    usage = meta or _object(response.get("usage"))
    tokens = Tokens(
        _count(name, place, usage, "prompt_tokens"), _count(name, place, usage, "completion_tokens")
    )
    if raw is not None:
        yield _from_whole(name, place, _sglang_rows(name, place, raw, shape), tokens)
        return
    choices = response.get("choices")
    if not isinstance(choices, list) or not choices:
        blame(name, place, "no routed_experts", SERVE)
    for index, item in enumerate(choices):
        where, choice = f"{place}, choice {index}", _object(item)
        value = choice.get("routed_experts")
        if value is None:
            blame(name, where, "routed_experts is missing or null", SERVE)
        if isinstance(choice.get("token_ids"), list):
            tokens = replace(tokens, generated=len(choice["token_ids"]))
        elif len(choices) > 1:
            tokens = replace(tokens, generated=None)
        if isinstance(value, str):
            yield _from_whole(name, where, ids_of_npy(name, where, value), tokens)
        else:
            yield _from_parts(name, where, response, value, tokens)


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(name: str, place: str, usage: Mapping[str, Any], key: str) -> int | None:
    if usage.get(key) is None:
        return None
    count = integer(name, f"{place}, {key}", usage[key])
    if count < 0:
        blame(name, f"{place}, {key}", f"{count}", "a request has no fewer than 0 tokens")
    return count


def _from_whole(name: str, place: str, rows: Array, tokens: Tokens) -> RequestRows:
    """Split rows that cover prompt and generated tokens but the last; they may start later."""
    prompt, generated = tokens.prompt, tokens.generated
    if prompt is None:
        blame(name, place, "usage.prompt_tokens is missing", "the rows cannot be split without it")
    expected = len(rows) if generated is None else prompt + generated - 1
    if len(rows) > expected:
        problem = f"{len(rows)} rows for {prompt} prompt and {generated} generated tokens"
        blame(name, place, problem, f"at most {expected} are fed to the model")
    return _request(rows, np.arange(expected - len(rows), expected), prompt)


def _from_parts(
    name: str, place: str, response: Mapping[str, Any], value: object, tokens: Tokens
) -> RequestRows:
    """Join prompt rows and generated rows given as nested lists."""
    rows = id_array(name, f"{place}, routed_experts", value, axes=3)
    prompt_value = response.get("prompt_routed_experts")
    if prompt_value is not None:
        prompt_rows = id_array(name, f"{place}, prompt_routed_experts", prompt_value, axes=3)
        if prompt_rows.shape[1:] != rows.shape[1:]:
            problem = f"shape {list(prompt_rows.shape)}, routed_experts {list(rows.shape)}"
            blame(name, f"{place}, prompt_routed_experts", problem, "layers and k are the same")
        rows = np.concatenate([prompt_rows, rows])
        return _request(rows, np.arange(len(rows)), len(prompt_rows))
    if "prompt_routed_experts" not in response and len(rows) == tokens.generated:
        rows = rows[1:]
    if not len(rows):
        blame(name, place, "only the last prompt token's experts", "generate more than one token")
    return _request(rows, (tokens.prompt or 0) + np.arange(len(rows)), tokens.prompt)


def _request(rows: Array, position_T: Array, prompt_tokens: int | None) -> RequestRows:
    """Make a request, without the prompt rows that the prefix cache answered."""
    is_prefill_T = position_T < (prompt_tokens or 0)
    absent_T = np.asarray((rows < 0).all(axis=(1, 2)))
    never_fed = absent_T & (np.arange(len(rows)) == len(rows) - 1)
    keep = ~(absent_T & is_prefill_T | never_fed)
    return RequestRows(
        expert_TLK=rows[keep],
        is_prefill_T=is_prefill_T[keep],
        position_T=position_T[keep],
        prompt_tokens=-1 if prompt_tokens is None else prompt_tokens,
    )


def _sglang_rows(name: str, place: str, text: object, shape: ModelShape) -> Array:
    if shape.decoder_layers is None or shape.top_k is None:
        problem = "SGLang's routed_experts do not say their shape"
        blame(name, place, problem, f"put the model's {CONFIG_NAME} beside the dump")
    raw = from_base64(name, place, text)
    row_bytes = 4 * shape.decoder_layers * shape.top_k
    if not raw or len(raw) % row_bytes:
        problem = f"{len(raw)} bytes are not rows of {shape.decoder_layers} layers x {shape.top_k}"
        blame(name, place, problem, f"is {CONFIG_NAME} the model's?")
    ids = np.frombuffer(raw, dtype="<i4").reshape(-1, shape.decoder_layers, shape.top_k)
    return as_expert_ids(name, ids, place)


def _without_dense_layers(requests: list[RequestRows]) -> tuple[list[int], list[RequestRows]]:
    """Drop layers whose ids are all 0: k equal ids are no choice. Layers are counted from 0."""
    layers, chosen = requests[0].expert_TLK.shape[1:]
    dense = np.ones(layers, dtype=np.bool_)
    for request in requests:
        dense &= (request.expert_TLK == 0).all(axis=(0, 2))
    if chosen == 1 or not dense.any() or dense.all():
        return list(range(layers)), requests
    kept = np.flatnonzero(~dense)
    return [int(layer) for layer in kept], [
        replace(request, expert_TLK=request.expert_TLK[:, kept]) for request in requests
    ]
