"""The small XLNet: what it may see, what it learns, and what its file keeps."""

from pathlib import Path

import numpy as np
import pytest

from moesim.simulator.errors import InputError
from moesim.simulator.policies.expert_network import read_network
from moesim.simulator.policies.mixture import Counters
from moesim.traces import RoutingTrace

torch = pytest.importorskip("torch", reason="the predictors' networks are torch's")
pytest.importorskip("transformers", reason="the body of the networks is transformers' XLNet")

from moesim.backends.predictors.files import (  # noqa: E402  after the skip
    Predictors,
    read_predictors,
    write_predictors,
)
from moesim.backends.predictors.judging import judge  # noqa: E402
from moesim.backends.predictors.learning import (  # noqa: E402
    as_rule,
    histories,
    mean_ahead,
    train,
)
from moesim.backends.predictors.light import Light, fit_light  # noqa: E402
from moesim.backends.predictors.rules import rules  # noqa: E402
from moesim.backends.predictors.sequence import (  # noqa: E402
    VARIANTS,
    ExpertSequence,
    Size,
    as_sets,
)
from moesim.backends.predictors.uses import prompts_of  # noqa: E402

SMALL = {"width": 16, "blocks": 1, "heads": 2, "dropout": 0.0}


def network(variant: str) -> ExpertSequence:
    """Return a small network of three layers of eight experts."""
    torch.manual_seed(0)
    return ExpertSequence(Size(3, 8, variant, history=2, **SMALL)).eval()


def test_a_layer_is_answered_from_those_before_it() -> None:
    """By layer, changing what the next prompt uses in layer 1 changes layer 2's answer alone."""
    made = network("by_layer")
    history = as_sets(torch.rand(1, 2, 3, 8), 2)
    current = as_sets(torch.rand(1, 3, 8), 2)
    other = current.clone()
    other[:, 1] = as_sets(torch.rand(1, 8).flip(1), 2)
    with torch.no_grad():
        one, two = made(history, current), made(history, other)
    assert torch.equal(one[:, :2], two[:, :2])
    assert not torch.allclose(one[:, 2], two[:, 2])


@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_are_shares(variant: str) -> None:
    """Each layer's answer sums to one, whatever history there is."""
    told = network(variant).tell(torch.zeros(2, 2, 3, 8), 2)
    assert told.shape == (2, 3, 8)
    assert torch.allclose(told.sum(dim=-1), torch.ones(2, 3))


def test_it_begins_as_the_static_set() -> None:
    """With tables of zero the answer is the mean use."""
    made = network("all_layers")
    mean = torch.rand(3, 8)
    mean /= mean.sum(dim=-1, keepdim=True)
    made.start_from(mean)
    made.expert.data.zero_()
    assert torch.allclose(made.tell(torch.zeros(1, 2, 3, 8), 2)[0], mean, atol=1e-3)


def test_histories_are_the_prompts_before() -> None:
    """Oldest first, and zeros before the first."""
    sets = torch.arange(1.0, 5.0)[:, None, None]
    found = histories(sets, torch.tensor([0, 1, 3]), 2)
    assert found[:, :, 0, 0].tolist() == [[0, 0], [0, 1], [2, 3]]


def test_the_mean_ahead_ends_with_the_trace() -> None:
    """The target of a horizon of two is the mean of a prompt and the next, if there is one."""
    use = torch.tensor([1.0, 3.0, 7.0])[:, None, None]
    assert mean_ahead(use, 2).ravel().tolist() == [2.0, 5.0, 7.0]
    assert mean_ahead(use, 1).ravel().tolist() == [1.0, 3.0, 7.0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_succession_is_learned(patterned: RoutingTrace, variant: str) -> None:
    """Where each kind of prompt is followed by one other, the network tells what no rule can."""
    prompts = prompts_of(patterned)
    fit = prompts[slice(0, 32)]
    size = Size(3, 8, variant, **SMALL)
    made = train(fit, size, epochs=160, horizon=1, seed=0)
    judged, _ = judge({**rules(fit, 0), "XLNet": as_rule(made)}, prompts, 32, period=4, slots=2)
    assert judged["XLNet"].each > 0.85
    assert all(judged[rule].each < 0.8 for rule in rules(fit, 0))


def test_a_file_keeps_the_answers_and_repeats_its_bytes(
    tmp_path: Path, patterned: RoutingTrace
) -> None:
    """What is read back answers alike; the same training writes the same file."""
    prompts = prompts_of(patterned)
    fit = prompts[slice(0, 8)]
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        made = train(fit, Size(3, 8, "all_layers", **SMALL), epochs=1, horizon=1, seed=0)
        write_predictors(Predictors({"all_layers": made}, fit_light(fit), {"seed": 0}), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    back = read_predictors(paths[0])
    assert back.provenance == {"seed": 0}
    expected = as_rule(made)(prompts, 9)
    assert expected.tolist() == as_rule(back.networks["all_layers"])(prompts, 9).tolist()
    assert np.array_equal(back.light.weight_LP, fit_light(fit).weight_LP)


def test_a_file_that_is_no_predictor_is_refused(tmp_path: Path) -> None:
    """One line names the file and the way out."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"not at all")
    with pytest.raises(InputError, match=r"x\.safetensors: cannot be read as a predictor"):
        read_predictors(path)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("blocks", [1, 2])
def test_policies_get_the_same_answers_without_torch(
    tmp_path: Path, variant: str, blocks: int
) -> None:
    """What numpy computes from the file is what torch answers, to rounding."""
    torch.manual_seed(1)
    made = ExpertSequence(Size(3, 8, variant, history=2, **{**SMALL, "blocks": blocks})).eval()
    for weight in made.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    path = tmp_path / "p.safetensors"
    light = Light(np.zeros((3, 4), np.float32), Counters(3, 8))
    write_predictors(Predictors({variant: made}, light, {}), path)
    history = as_sets(torch.rand(2, 3, 8), 2)
    told = read_network(path, variant).tell(history.numpy(), 2)
    expected = made.tell(history[None], 2)[0].numpy()
    assert np.abs(expected - told).max() < 1e-5
    assert np.abs(expected - expected.mean()).max() > 0.01


def test_a_network_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A policy that wants a variant which the file lacks says what writes one."""
    path = tmp_path / "p.safetensors"
    light = Light(np.zeros((3, 4), np.float32), Counters(3, 8))
    write_predictors(Predictors({}, light, {}), path)
    with pytest.raises(InputError, match=r"no by_layer predictor of version 2; make one with"):
        read_network(path, "by_layer")
