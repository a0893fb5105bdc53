"""Twins have the shapes of the models they stand for; upcycling keeps the function."""

import json
import lzma
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the twins are torch models")
transformers = pytest.importorskip("transformers", reason="the twins are transformers models")

from moesim.backends.models import find_moe  # noqa: E402 - after the skip
from moesim.backends.reference import twins  # noqa: E402 - after the skip
from moesim.backends.reference.architecture import (  # noqa: E402 - after the skip
    TWINS,
    Shape,
    make_config,
    make_model,
    use_dense_experts,
    use_grouped_experts,
)
from moesim.backends.reference.learning import Trainer  # noqa: E402 - after the skip
from moesim.backends.reference.upcycle import dense_shape, upcycle  # noqa: E402 - after the skip
from moesim.simulator import models  # noqa: E402 - after the skip
from moesim.traces import load  # noqa: E402 - after the skip

SMALL = Shape(2, 8, 3, width=64, expert_width=16)
SAMPLES = sorted((Path(__file__).resolve().parents[2] / "traces/samples").glob("twin-*.npz"))


def small() -> Any:
    """Return a small model with seeded weights."""
    torch.manual_seed(0)
    return transformers.Qwen3MoeForCausalLM(make_config(SMALL)).eval()


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_has_the_routing_shape_of_its_model(name: str) -> None:
    """Layers, experts and top-k are those of the shape that its trace's name finds."""
    twin = TWINS[name]
    found = models.match(f"moesim/twin-{name}", twin.layers, twin.experts, twin.top_k)
    assert found is not None
    assert (name, "") == (found.name, found.note)


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_learns_in_the_architecture_of_its_family(name: str) -> None:
    """Of two layers, it has the experts and top-k asked for, and a few steps lower its loss."""
    torch.manual_seed(0)
    model = make_model(replace(TWINS[name], layers=2))
    assert type(model).__name__ == f"{TWINS[name].family}ForCausalLM"
    parts = find_moe(model)
    assert (len(parts.layers), parts.experts, parts.top_k) == (
        2,
        TWINS[name].experts,
        TWINS[name].top_k,
    )
    use_dense_experts(model)
    trainer = Trainer(model, rate=1e-2, compiled=False)
    rows = np.tile(np.arange(33, dtype=np.uint16), (2, 1))
    losses = [float(trainer.step(rows, progress=0, warmth=1)[0]) for _ in range(4)]
    assert losses[-1] < losses[0] - 0.5


@pytest.fixture
def make_traces(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Return a function that makes one tiny twin's trace of our own code; it returns the folder."""
    code = "\f".join(path.read_text() for path in sorted((repository / "traces").glob("*.py")))
    (tmp_path / "code.txt.xz").write_bytes(lzma.compress(code.encode(), preset=0))
    entry = {"file": "code.txt.xz", "domain": "Python code", "open_licence": True}
    (tmp_path / "manifest.json").write_text(json.dumps([entry]))
    monkeypatch.setattr(twins, "TASKS", ("python",))
    shape = Shape(2, 8, 2, width=64, expert_width=8, family="Phimoe")
    monkeypatch.setitem(TWINS, "phi-3.5-moe", shape)

    def make(*more: object) -> Path:
        words = ["twins", tmp_path, "-o", tmp_path / "out", "--twins", "phi-3.5-moe"]
        words += ["--steps", 2, "--batch-rows", 2, "--row-tokens", 65, "--each", 3]
        words += ["--new-tokens", 3, "--batch", 2, *more]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        twins.main()
        return tmp_path / "out"

    return make


def test_traces_are_made_once_and_listed_with_their_hash(
    make_traces: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started again it trains nothing; a trace that is gone is recorded again, the same bytes.

    With other texts it is not judged and recorded on what it may have learned.
    """
    output = make_traces()
    whole = output / "twin-phi-3.5-moe.safetensors"
    listed = json.loads((output / "traces.json").read_text())
    assert listed[whole.name]["requests"] == 3
    assert twins.has_hash(whole, listed[whole.name]["sha256"])
    trace = load(whole)
    assert (trace.header.evidence, trace.has_prefill, trace.has_decode) == ("twin", True, True)
    monkeypatch.setattr(twins, "train_twin", None)
    whole.unlink()
    make_traces()
    assert twins.has_hash(whole, listed[whole.name]["sha256"])
    monkeypatch.setattr(twins, "record_twin", None)
    make_traces()
    with pytest.raises(ValueError, match="made with other options; delete it"):
        make_traces("--rate", 0.5)
    packed = tmp_path / "code.txt.xz"
    packed.write_bytes(lzma.compress(lzma.decompress(packed.read_bytes())[:-20_000], preset=0))
    with pytest.raises(ValueError, match="task python was trained on .* give all folders"):
        make_traces()


def test_grouped_experts_compute_what_dense_ones_do() -> None:
    """Sorted by expert, in bfloat16, the model's answer is the same within its rounding."""
    model = small()
    text = torch.arange(40)[None]
    with torch.no_grad():
        use_dense_experts(model)
        dense = model(text).logits
        use_grouped_experts(model)
        grouped = model(text).logits
    torch.testing.assert_close(grouped, dense, rtol=0.02, atol=0.02)


def test_an_upcycled_model_begins_as_the_dense_one() -> None:
    """With the feed-forward part in every expert, the logits are those before."""
    torch.manual_seed(1)
    dense = transformers.Qwen3MoeForCausalLM(make_config(dense_shape(SMALL))).eval()
    moe = upcycle(dense, SMALL).eval()
    text = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(moe(text).logits, dense(text).logits, rtol=1e-4, atol=1e-5)
    parts = find_moe(moe)
    assert (parts.experts, parts.top_k) == (8, 3)
    assert parts.layers[0].router.weight.std() > 0


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_committed_twin_is_whole(path: Path) -> None:
    """It has prompt and decode rows of several tasks, every signal, and says it is a twin."""
    trace = load(path)
    assert trace.header.evidence == "twin"
    assert trace.has_prefill
    assert trace.has_decode
    assert len(set(trace.task_R)) >= 3
    assert {"router_top_TLM", "look_in_TLHM", "look_out_TLHM", "embedding_TD", "token_T"} <= set(
        trace.signals
    )
    found = models.match(trace.header.model, trace.layers, trace.experts, trace.top_k)
    assert found is not None
    top_TLK = trace.signals["router_top_TLM"][..., : trace.top_k]
    np.testing.assert_array_equal(np.sort(top_TLK, axis=2), np.sort(trace.expert_TLK, axis=2))


def test_the_samples_are_small() -> None:
    """Together the twins' traces are at most 8 MiB."""
    assert sum(path.stat().st_size for path in SAMPLES) <= 8 * 2**20
