"""Intervals hold what they should, and say noise where there is nothing else."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="losses come of executions")

from moesim.backends.formats import FORMATS  # noqa: E402 - after the skip
from moesim.backends.generation import Request  # noqa: E402
from moesim.simulator.errors import CapabilityError  # noqa: E402
from moesim.validation.accuracy_intervals import Losses, against, interval, summary  # noqa: E402
from moesim.validation.accuracy_measure import mislabelled  # noqa: E402
from moesim.validation.accuracy_rounding import rounded, rounding  # noqa: E402

TEXTS = 200


def losses(nats_OR: Any) -> Losses:
    """Return losses of texts of ten tokens each."""
    nats_OR = np.asarray(nats_OR, np.float64)
    return Losses(np.full(nats_OR.shape[1], 10.0), nats_OR, 0 * nats_OR, 0 * nats_OR + 5)


def test_an_interval_is_that_of_the_mean() -> None:
    """Two standard errors either way, for many texts of one length."""
    sums_R = np.random.default_rng(1).normal(20, 4, TEXTS)
    low, high = interval(sums_R, np.full(TEXTS, 10.0))
    error = sums_R.std() / 10 / TEXTS**0.5
    mean = sums_R.mean() / 10
    assert (mean - low, high - mean) == pytest.approx((1.96 * error,) * 2, rel=0.15)


def test_a_constant_loss_has_no_interval() -> None:
    """Where all texts lose alike nothing is uncertain."""
    row = summary(losses(np.full((2, TEXTS), 20.0)))
    assert row["perplexity"] == pytest.approx(np.exp(2))
    assert row["perplexity_95"] == pytest.approx([np.exp(2)] * 2)
    assert (row["agreement"], row["tokens"]) == (0.5, 2_000)


def test_pairs_tell_what_single_means_do_not() -> None:
    """A small loss in every text counts, however much texts differ; orders that disagree do not."""
    texts_R = np.random.default_rng(2).normal(20, 8, TEXTS)
    base = losses([texts_R])
    worse = against(losses([texts_R + 0.1, texts_R + 0.2]), base, "base")
    assert not worse["within_noise"]
    assert worse["bits"] == pytest.approx(0.015 / np.log(2))
    assert against(losses([texts_R + 0.1, texts_R - 0.05]), base, "base")["within_noise"]


def test_a_share_of_the_labels_is_wrong() -> None:
    """So many requests bear another task's label, the same ones each time; texts stay."""
    requests = [Request(prompt=(n,), task="ab"[n % 2]) for n in range(20)]
    found = mislabelled(requests, 0.2, seed=3)
    assert sum(a.task != b.task for a, b in zip(requests, found, strict=True)) == 4
    assert [one.prompt for one in found] == [one.prompt for one in requests]
    assert found == mislabelled(requests, 0.2, seed=3)


def test_weights_are_rounded_for_a_while() -> None:
    """Four bits lose more than eight; afterwards the store is what it was."""
    weights = torch.randn(4, 128, generator=torch.manual_seed(0))
    errors = [
        float((rounded(weights, FORMATS[name]) - weights).abs().mean()) for name in ("fp8", "int4")
    ]
    assert 0 < errors[0] < errors[1] < 0.2
    with pytest.raises(CapabilityError, match="no multiple of"):
        rounded(weights[:, :100], FORMATS["int4"])
    blob_EB = weights.clone()
    store: Any = SimpleNamespace(
        layers_EB=[blob_EB],
        sizes_L=(1,),
        parts=SimpleNamespace(experts=1),
        matrices=lambda _: {"up": blob_EB},
    )
    with rounding(store, FORMATS["int4"]):
        assert not torch.equal(blob_EB, weights)
    assert torch.equal(blob_EB, weights)
