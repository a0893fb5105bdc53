"""Made-up routing has the structure it was asked for, and the same seed gives the same trace."""

from collections.abc import Callable

import numpy as np
import pytest

from moesim.traces import RoutingTrace, layer_statistics, synthetic

GENERATORS: list[Callable[..., RoutingTrace]] = [
    synthetic.uniform,
    synthetic.zipf,
    synthetic.sticky,
]


@pytest.mark.parametrize("make", GENERATORS)
@pytest.mark.parametrize(("prompt", "decode"), [(3, 5), (0, 5), (3, 0)])
def test_every_generator_gives_a_valid_trace(
    make: Callable[..., RoutingTrace], prompt: int, decode: int
) -> None:
    """Prompt and decode, decode only, prompts only; labelled synthetic; seeds decide."""
    size = {"prompt_tokens": prompt, "decode_tokens": decode, "horizons": 2, "requests": 2}
    trace = make(seed=3, **size)
    trace.validate("synthetic")
    assert trace.header.evidence == "synthetic"
    assert (bool(prompt), bool(decode)) == (trace.has_prefill, trace.has_decode)
    assert trace.content_hash() == make(seed=3, **size).content_hash()
    assert trace.content_hash() != make(seed=4, **size).content_hash()


def test_zipf_is_skewed_and_uniform_is_not() -> None:
    """The exponent sets the popularity of the experts."""
    size = synthetic.Shape(layers=2, experts=16, top_k=1, requests=1, decode_tokens=4000)
    share_E = 1 / np.arange(1, 17)
    share_E /= share_E.sum()
    expected = -(share_E * np.log(share_E)).sum() / np.log(16)
    skewed = layer_statistics(synthetic.zipf(seed=0, exponent=1.0, **size))
    flat = layer_statistics(synthetic.uniform(seed=0, **size))
    assert expected == pytest.approx(skewed.entropy_L.mean(), abs=0.01)
    assert pytest.approx(flat.entropy_L.mean(), abs=0.01) == 1.0


def test_sticky_repeats_as_often_as_asked() -> None:
    """Reuse at lag 1 is the chance to keep, plus the chance to be drawn again."""
    trace = synthetic.sticky(
        seed=0, reuse=0.5, layers=2, experts=64, top_k=2, requests=1, decode_tokens=3000
    )
    measured = layer_statistics(trace).reuse_L_by_lag[1].mean()
    assert pytest.approx(measured, abs=0.02) == 0.5 + 0.5 * 2 / 64


@pytest.mark.parametrize("recall", [1.0, 0.7, 0.0])
def test_the_look_ahead_has_the_recall_asked_for(recall: float) -> None:
    """Among the first k listed are the experts of the layer ahead, as often as asked."""
    trace = synthetic.uniform(
        seed=1,
        layers=3,
        experts=32,
        top_k=4,
        requests=1,
        prompt_tokens=2,
        decode_tokens=400,
        horizons=3,
        recall=recall,
    )
    look_in_TLHM = trace.signals["look_in_TLHM"]
    assert look_in_TLHM.shape == (402, 3, 3, 8)
    flat = trace.expert_TLK.reshape(-1, 4)
    for horizon in range(3):
        listed = look_in_TLHM[5:350, :, horizon, :4].reshape(-1, 4)
        truth = flat[5 * 3 + 1 + horizon :][: len(listed)]
        hits = (truth[:, :, None] == listed[:, None, :]).any(axis=2)
        assert recall == pytest.approx(hits.mean(), abs=0.02)


def test_the_look_ahead_knows_nothing_past_the_end() -> None:
    """The last row's last layers, and prompt rows that would look into the same pass, are -1."""
    trace = synthetic.uniform(seed=1, layers=3, requests=1, prompt_tokens=2, horizons=1)
    unknown_TL = (trace.signals["look_in_TLHM"][:, :, 0] < 0).all(axis=2)
    assert np.argwhere(unknown_TL).tolist() == [[0, 2], [9, 2]]
