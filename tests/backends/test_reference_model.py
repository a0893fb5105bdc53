"""The reference model: its recipe runs, and the weights that ship have learned."""

import json
import lzma
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference model is a torch model")
transformers = pytest.importorskip("transformers", reason="it is a model of transformers")

from moesim.backends.models import find_moe  # noqa: E402 - after the skip
from moesim.backends.recorder import Origin, Request, Sampling, record  # noqa: E402
from moesim.backends.reference import train  # noqa: E402
from moesim.backends.reference.architecture import Shape, make_config, use_dense_experts  # noqa: E402
from moesim.backends.reference.judge import (  # noqa: E402
    bigram_bits,
    gzip_bits,
    judge,
    measure,
    only_experts,
    random_routes,
    reuse,
    usage,
)
from moesim.backends.reference.learning import balance_loss  # noqa: E402
from moesim.backends.reference.texts import pack_rows  # noqa: E402
from moesim.backends.reference.vocabulary import make_tokenizer  # noqa: E402
from moesim.traces import RoutingTrace, load  # noqa: E402

# T tokens, L MoE layers, E experts of a layer, K chosen, B rows, S tokens of a row.
MiB = 2**20


@pytest.fixture(scope="module")
def weights(repository: Path) -> Path:
    """Return the folder of the weights that ship."""
    return repository / "backends" / "reference" / "weights"


@pytest.fixture(scope="module")
def reference(weights: Path) -> Any:
    """Return the reference model in float32."""
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def sample(repository: Path) -> RoutingTrace:
    """Return the sample trace that ships."""
    return load(repository / "traces" / "samples" / "reference-12x32.npz")


@pytest.fixture(scope="module")
def sample_rows(sample: RoutingTrace) -> Any:
    """Return the sample's texts as rows of tokens."""
    tokens = [sample.signals["token_T"][sample.request_T == number] for number in range(15)]
    shortest = min(map(len, tokens))
    return np.stack([of_request[:shortest] for of_request in tokens]).astype(np.uint16)


def test_dense_experts_give_what_dispatched_experts_give() -> None:
    """Computing every expert and masking is the same function up to rounding."""
    torch.manual_seed(0)
    model = transformers.Qwen3MoeForCausalLM(make_config(Shape(2, 32, 4))).eval()
    ids = torch.randint(0, 256, (2, 33))
    with torch.no_grad():
        dispatched = model(ids).logits
        use_dense_experts(model)
        dense = model(ids).logits
    torch.testing.assert_close(dense, dispatched, rtol=1e-4, atol=1e-5)


def test_balance_is_1_when_even_and_more_when_not() -> None:
    """The load-balancing loss has its minimum at even load."""
    even = torch.eye(8).repeat(4, 1) * 20
    skewed = torch.zeros(32, 8)
    skewed[:, 0] = 20
    assert pytest.approx(1.0, abs=1e-3) == float(balance_loss([even, even], 1))
    assert float(balance_loss([skewed], 1)) > 7.9


def test_the_tokenizer_is_the_bytes() -> None:
    """Ids are bytes after a separator, and decoding gives the text back."""
    tokenizer = make_tokenizer()
    text = "  aé中\n\tx"
    ids = tokenizer(text).input_ids
    assert [256, *text.encode()] == ids
    assert text == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("more", [[], ["--upcycle"]])
def test_the_recipe_runs_from_texts_to_report(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    """Some steps on our own source code write a folder that loads, and a report that judges it."""
    sources = sorted((repository / "traces").glob("*.py")) + sorted(
        (repository / "simulator").rglob("*.py")
    )
    code = "\f".join(path.read_text() for path in sources)
    (tmp_path / "code.txt.xz").write_bytes(lzma.compress(code.encode(), preset=0))
    entry = {"file": "code.txt.xz", "domain": "Python code", "open_licence": True}
    (tmp_path / "manifest.json").write_text(json.dumps([entry]))
    words = ["train", tmp_path, "-o", tmp_path / "out", "--layers", 1, "--steps", 24]
    words += ["--batch-rows", 4, "--row-tokens", 65, "--judge-rows", 1, *more]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    train.main()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["provenance"]["steps"] == 24
    assert report["provenance"]["upcycled"] == bool(more)
    assert report["curve"][-1][1] < report["curve"][0][1]
    assert report["trained"]["overall"]["bits_per_byte"] < report["untrained"]["bits_per_byte"]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert len(find_moe(loaded).layers) == 1


def test_baselines_know_simple_texts() -> None:
    """A text of two alternating bytes costs a bigram model nearly nothing, and gzip little."""
    text = [b"ab" * 4_000]
    assert bigram_bits(text, pack_rows(text, 1_025)) < 0.02
    assert gzip_bits(text) < 0.1


def test_usage_and_reuse_count_experts() -> None:
    """By hand: three tokens of one layer, two experts each."""
    expert_BSLK = np.array([[[[0, 1]], [[1, 2]], [[3, 4]]]], dtype=np.int16)
    np.testing.assert_allclose([[1 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 3]], usage(expert_BSLK, 5))
    assert reuse(expert_BSLK) == 0.25


def test_all_experts_allowed_changes_nothing(reference: Any, sample_rows: Any) -> None:
    """The rerouting that the gates use is the router's own rule when nothing is forbidden."""
    everything = torch.ones((12, 32), dtype=torch.bool)
    own, own_BSLK = measure(reference, sample_rows[:3])
    same, same_BSLK = measure(reference, sample_rows[:3], reroute=only_experts(everything))
    assert pytest.approx(own, abs=1e-4) == same
    np.testing.assert_array_equal(own_BSLK, same_BSLK)


def test_the_reference_model_has_learned_and_its_routes_matter(
    reference: Any, sample_rows: Any
) -> None:
    """Far under 8 bits on its sample's texts; random experts cost more than 2 bits per byte."""
    own, _ = measure(reference, sample_rows)
    generator = torch.Generator().manual_seed(0)
    random, _ = measure(reference, sample_rows, reroute=random_routes(32, generator))
    assert own < 2.5
    assert own + 2 < random


def test_an_untrained_model_fails_the_same_gates(sample_rows: Any) -> None:
    """The gates tell learning from chance: the same shape with random weights fails both."""
    torch.manual_seed(0)
    model = transformers.Qwen3MoeForCausalLM(make_config()).eval()
    own, _ = measure(model, sample_rows[:4])
    generator = torch.Generator().manual_seed(0)
    random, _ = measure(model, sample_rows[:4], reroute=random_routes(32, generator))
    assert own > 7
    assert abs(random - own) < 0.2


def test_judging_a_task_gives_every_figure(reference: Any) -> None:
    """Every figure is a finite number, and restricting experts never helps much."""
    text = [b"def add(first, second):\n    return first + second\n" * 60]
    figures = judge(reference, {"python": text}, {"python": text}, seed=0, most_rows=1)
    task = figures["tasks"]["python"]
    assert all(np.isfinite(value) for value in task.values())
    assert task["bits_per_byte"] < task["random_routing"]
    assert task["bits_per_byte"] < task["own_half"] + 0.05


def test_the_weights_are_those_of_the_report_and_small(weights: Path) -> None:
    """At most 24 MiB, bfloat16, with the provenance of a GPU run beside them."""
    assert (weights / "model.safetensors").stat().st_size <= 24 * MiB
    report = json.loads((weights / "report.json").read_text())
    provenance = report["provenance"]
    assert {
        "gpu",
        "driver",
        "torch",
        "transformers",
        "date",
        "seed",
        "steps",
        "texts_sha256",
    } <= set(provenance)
    overall = report["trained"]["overall"]
    assert overall["bits_per_byte"] < overall["gzip"] < overall["bigram"]
    assert overall["random_routing"] >= overall["bits_per_byte"] + 2
    assert overall["least_load_over_even"] >= 0.25
    assert overall["reuse_at_lag_1"] > overall["reuse_if_independent"]


def test_the_sample_is_several_tasks_with_prefill_and_decode(
    repository: Path, sample: RoutingTrace
) -> None:
    """At least 4 tasks and 12 requests, 32 to 96 prompt bytes, at least 48 decode rows each."""
    samples = repository / "traces" / "samples"
    assert (samples / "reference-12x32.npz").stat().st_size <= 2 * MiB
    assert sample.header.evidence == "recorded"
    assert len(set(sample.task_R)) >= 4
    assert sample.requests >= 12
    assert sample.prompt_tokens_R.min() >= 33
    assert sample.prompt_tokens_R.max() <= 97
    decode_R = np.bincount(sample.request_T[~sample.is_prefill_T], minlength=sample.requests)
    assert decode_R.min() >= 48
    assert sample.header.licence is not None
    lines = (samples / "reference-12x32.prompts.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = make_tokenizer()
    for number, line in enumerate(lines):
        rows = (sample.request_T == number) & sample.is_prefill_T
        assert (
            tokenizer(json.loads(line)["prompt"]).input_ids
            == sample.signals["token_T"][rows].tolist()
        )


def test_the_sample_can_be_recorded_again(reference: Any, sample: RoutingTrace) -> None:
    """The first request, fed its text again, takes the same routes.

    Another processor rounds differently, so a choice may differ where the k-th and the next
    probability are within 0.1 %; elsewhere the experts must be the same.
    """
    first = sample.head(requests=1)
    tokens = first.signals["token_T"].tolist()
    prompt = int(first.prompt_tokens_R[0])
    request = Request(prompt=tokens[:prompt], forced=[*tokens[prompt:], 0])
    again = record(reference, [request], Sampling(new_tokens=64), Origin(model="again"))
    probs_TLE = -np.sort(-first.signals["router_probs_TLE"].astype(np.float32), axis=2)
    clear_TL = probs_TLE[..., 3] - probs_TLE[..., 4] > 1e-3
    assert clear_TL.mean() > 0.85
    same_TL = (np.sort(first.expert_TLK, axis=2) == np.sort(again.expert_TLK, axis=2)).all(axis=2)
    assert same_TL[clear_TL].all()


def test_a_real_model_repeats_experts_more_than_chance(sample: RoutingTrace) -> None:
    """In the sample, the next token uses an expert again twice as often as independent draws."""
    same_request = sample.request_T[1:] == sample.request_T[:-1]
    now, later = sample.expert_TLK[:-1][same_request], sample.expert_TLK[1:][same_request]
    again = (now[..., :, None] == later[..., None, :]).any(axis=3).mean()
    popularity_LE = usage(sample.expert_TLK[None], 32)
    independent = (popularity_LE**2).sum(axis=1).mean() / 4
    assert again > 2 * independent
