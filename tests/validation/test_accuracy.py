"""The accuracy of lossy systems, measured on a tiny model from texts to tables."""

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="accuracy is measured by execution")

from moesim.backends.reference.texts import Split
from moesim.backends.reference.vocabulary import make_tokenizer
from moesim.validation.accuracy import choose_texts, main
from moesim.validation.accuracy_options import parse

CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "moe_intermediate_size": 16,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "initializer_range": 0.4,
    "max_position_embeddings": 64,
}
TWO = ("--tasks", "python,go", "--texts", "4", "--fit-texts", "2", "--order-seeds", "0,1")
FEW = (*TWO, "--prompt-tokens", "12", "--decode-tokens", "2")


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    """Return a folder of texts of two tasks."""
    folder = tmp_path / "texts"
    folder.mkdir()
    rng = np.random.default_rng(0)
    manifest = []
    for name, domain in (("p", "Python code"), ("g", "Go code")):
        lines = ["".join(map(chr, rng.integers(97, 123, 60))) for _ in range(2_000)]
        text = "\n\n".join("\n".join(lines[at : at + 20]) for at in range(0, 2_000, 20))
        (folder / f"{name}.txt.xz").write_bytes(lzma.compress(text.encode(), preset=0))
        manifest.append({"file": f"{name}.txt.xz", "domain": domain, "open_licence": True})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the folder of a tiny model of bytes."""
    import torch  # noqa: PLC0415  after the skip
    import transformers  # noqa: PLC0415

    folder = tmp_path / "tiny"
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    made: Callable[..., Any] = transformers.Qwen3MoeForCausalLM
    config = transformers.Qwen3MoeConfig(vocab_size=len(tokenizer), eos_token_id=256, **CONFIG)
    made(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_table_of_memory_against_accuracy(
    model: Path, corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all experts nothing is lost; with half something is, and no lossless system loses."""
    output, chart = tmp_path / "accuracy.json", tmp_path / "periods.svg"
    options = ("--shares", "0.5,1", "--periods", "1,4", "--period", "1", "--share", "0.5")
    words = [str(model), str(corpora), "-o", str(output), "--plot", str(chart), *options, *FEW]
    assert main(words) == 0
    first = output.read_bytes()
    document = json.loads(first)
    rows = {(row["arm"], row["share"]): row for row in document["rows"]}
    half, whole = rows["emoe", 0.5], rows["emoe", 1.0]
    assert (whole["kl_bits"], whole["agreement"], whole["changed"]) == (0, 1, 0)
    assert half["kl_bits"] > 0.01
    assert half["changed"] > 0
    assert (half["loop"], half["open_loop"]["loop"]) == ("closed", "open")
    assert half["executed_bytes"] == half["bytes_total"]
    lossless = rows["lru", 0.5]
    assert (lossless["kl_bits"], lossless["perplexity"]) == (0, whole["perplexity"])
    assert [row["period"] for row in document["by_period"]] == [1, 4]
    assert (document["scored_texts"], document["fit_texts"]) == (8, 4)
    assert document["command"].startswith(
        "python -m moesim.validation.accuracy tiny texts -o accuracy.json --plot periods.svg"
    )
    low, high = half["perplexity_95"]
    assert low < half["perplexity"] < high
    assert (half["orders"], lossless["orders"]) == (2, 1)
    assert len(half["perplexity_by_order"]) == 2
    apart = half["against"]
    assert apart["bits_95"][0] <= apart["bits"] <= apart["bits_95"][1]
    assert chart.stat().st_size > 0
    assert "emoe" in capsys.readouterr().out
    assert main(words) == 0
    assert first == output.read_bytes()


def test_texts_that_were_learnt_are_refused(
    model: Path, corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the training report knows of another training half nothing is scored."""
    report = {"provenance": {"seed": 1, "train_bytes": {"python": 1}}}
    (model / "report.json").write_text(json.dumps(report))
    output = tmp_path / "accuracy.json"
    assert main([str(model), str(corpora), "-o", str(output), *FEW]) == 2
    assert "task python was trained on 1 bytes, these folders leave" in capsys.readouterr().err
    assert not output.exists()


def test_nothing_is_profiled_on_the_documents_that_are_scored() -> None:
    """Texts of either kind come from documents of their own, from as many as there are."""
    documents = [bytes([65 + number]) * 200 for number in range(6)]
    options = parse(["model", "texts", "-o", "out", *FEW, "--tasks", "python"])
    held_out = {"python": [*documents, b"too short"]}
    fit, scored = choose_texts(options, Split({}, held_out, {}, seed=0))
    of_fit, of_scored = ([chr(text.prompt[1]) for text in texts] for texts in (fit, scored))
    assert of_fit == ["A", "C"]
    assert of_scored == ["B", "D", "F", "B"]


def test_too_few_texts_are_told(
    model: Path, corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task that is not there, or has too little text, is one line, and nothing is written."""
    output = tmp_path / "accuracy.json"
    words = [str(model), str(corpora), "-o", str(output)]
    assert main([*words, "--tasks", "law"]) == 2
    assert main([*words, "--tasks", "go", "--texts", "100000"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "--tasks law: the texts have go, python" in told[0]
    assert "ask fewer" in told[1]
    assert not output.exists()
