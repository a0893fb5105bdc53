"""Scores of foretold text: against values by hand, and that forcing feeds the text as it is."""

from collections.abc import Callable
from math import log
from typing import Any

import pytest

pytest.importorskip("torch", reason="scoring runs a real model")

import torch

from moesim.backends.controllers import Deciding
from moesim.backends.execution import Keep, execute
from moesim.backends.generation import Sampling
from moesim.backends.scoring import forced, foretold, score, targets
from moesim.backends.store import ExpertStore

TEXTS = ([5, 9, 200, 17, 33, 4, 90], [7, 8, 9, 10, 11, 12, 13])


def test_scores_by_hand() -> None:
    """Two tokens: odds 3 to 1 where the full model has 1 to 1, and the same elsewhere."""
    full_NV = torch.tensor([[0.0, 0.0], [log(4.0), 0.0], [0.0, 9.0]])
    logits_NV = torch.tensor([[log(3.0), 0.0], [log(4.0), 0.0], [9.0, 0.0]])
    counts_N = torch.tensor([True, True, False])
    found = score(logits_NV, full_NV, torch.tensor([0, 1, 0]), counts_N)
    assert found.tokens == 2
    bits = (-log(0.75) - log(0.2)) / 2 / log(2)
    assert found.bits == pytest.approx(bits)
    assert found.perplexity == pytest.approx(2**bits)
    assert found.agreement == 1.0
    assert found.kl_bits == pytest.approx(0.5 * (0.5 * log(0.5 / 0.75) + 0.5 * log(2)) / log(2))


@pytest.mark.parametrize("prompt_tokens", [6, 3])
def test_what_is_foretold_is_the_models_own(
    make_model: Callable[[str], Any], prompt_tokens: int
) -> None:
    """However a text is parted into prompt and answer, the logits are those of one plain pass."""
    model = make_model("Qwen3Moe")
    with torch.inference_mode():
        expected = torch.cat([model(torch.tensor([text[:-1]])).logits[0] for text in TEXTS])
    store = ExpertStore.take_from(model)
    requests = [forced(text, prompt_tokens) for text in TEXTS]
    done = execute(
        model,
        store,
        requests,
        Deciding(
            policies={"cache": "lru", "prefetch": "none", "schedule": "resident_first"},
            budget_bytes=store.total_bytes,
        ),
        Sampling(new_tokens=1, ignore_eos=True),
        keep=Keep(logits=True, prompt_logits=True),
    )
    assert targets(requests).tolist() == [token for text in TEXTS for token in text[1:]]
    assert torch.allclose(expected, foretold(done), atol=1e-4, rtol=1e-4)
