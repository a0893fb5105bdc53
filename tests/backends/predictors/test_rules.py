"""Predictors without training, and the light mixture."""

import numpy as np
import pytest

from moesim.backends.predictors.judging import judge
from moesim.backends.predictors.light import fit_light
from moesim.backends.predictors.rules import by_recent, perfect_for, rules
from moesim.backends.predictors.uses import Prompts, prompts_of
from moesim.simulator.policies.mixture import PARTS
from moesim.traces import RoutingTrace


@pytest.fixture(scope="session")
def prompts(patterned: RoutingTrace) -> Prompts:
    """Return the prompts of the patterned trace."""
    return prompts_of(patterned)


def blind(prompts: Prompts, at: int) -> Prompts:
    """Return the prompts with everything from this one on made something else."""
    use_RLE = prompts.use_RLE.copy()
    use_RLE[at:] = use_RLE[at:, :, ::-1]
    return Prompts(use_RLE, prompts.choices_RL, prompts.task_R, prompts.top_k)


@pytest.mark.parametrize("name", ["random", "last prompt", "static set", "last 20", "light"])
def test_no_predictor_looks_at_what_it_foretells(prompts: Prompts, name: str) -> None:
    """What a predictor tells does not depend on the prompt asked about or any later one."""
    fit = prompts[slice(0, 24)]
    tellings = [{**rules(fit, 0), "light": fit_light(fit)}[name] for _ in range(2)]
    for at in (24, 30):
        seen, unseen = (
            tell(of, at) for tell, of in zip(tellings, (prompts, blind(prompts, at)), strict=True)
        )
        assert seen.tolist() == unseen.tolist()


def test_recent_prompts_are_averaged(prompts: Prompts) -> None:
    """The last two, and nothing where there is none before."""
    expected = prompts.use_RLE[3:5].mean(axis=0)
    assert by_recent(2)(prompts, 5).tolist() == expected.tolist()
    assert not by_recent(2)(prompts, 0).any()


def test_the_light_mixture_finds_which_part_tells(prompts: Prompts) -> None:
    """Where the task decides nearly all, its weight is the largest, and it beats the static set."""
    kinds = tuple(str(at % 4) for at in range(len(prompts)))
    labelled = Prompts(prompts.use_RLE, prompts.choices_RL, kinds, prompts.top_k)
    fit = labelled[slice(0, 24)]
    light = fit_light(fit)
    assert np.allclose(light.weight_LP.sum(axis=1), 1, atol=1e-5)
    assert PARTS[int(light.weight_LP.mean(axis=0).argmax())] == "task"
    judged, _ = judge({**rules(fit, 0), "light": light}, labelled, 24, period=4, slots=2)
    assert judged["light"].each == 1.0
    assert judged["static set"].each < 0.9


def test_a_light_answer_takes_less_than_a_millisecond(prompts: Prompts) -> None:
    """The median over prompts, learning from the prompt before included."""
    fit = prompts[slice(0, 24)]
    judged, _ = judge({"light": fit_light(fit)}, prompts, 24, period=4, slots=2)
    assert judged["light"].answer_us is not None
    assert judged["light"].answer_us < 1000


def test_the_nearest_embeddings_are_asked() -> None:
    """Prompts whose embedding tells their kind are foretold by it, whatever the task is called."""
    rng = np.random.default_rng(0)
    kind_R = rng.integers(0, 4, 60)
    use_RLE = np.eye(8, dtype=np.float32)[kind_R][:, None]
    embedding_RD = (np.eye(4)[kind_R] + rng.normal(0, 0.1, (60, 4))).astype(np.float32)
    ones = np.ones((60, 1), np.int64)
    known = Prompts(use_RLE, ones, ("any",) * 60, 1, embedding_RD)
    unknown = Prompts(use_RLE, ones, ("any",) * 60, 1)
    each = [
        judge({"light": fit_light(of[slice(0, 40)])}, of, 40, period=4, slots=1)[0]["light"].each
        for of in (known, unknown)
    ]
    assert each[0] == 1.0
    assert each[1] < 0.7


def test_perfect_answers_are_the_ceilings(prompts: Prompts) -> None:
    """Told each prompt nothing is wrong; no set held for p serves more than that of their mean."""
    fit = prompts[slice(0, 24)]
    judged, _ = judge(rules(fit, 0), prompts, 24, period=4, slots=3)
    assert judged["perfect"].each == 1.0
    ceiling = judged["perfect for 4"].served_held
    assert all(
        figures.served_held <= ceiling + 1e-6
        for name, figures in judged.items()
        if name != "perfect for 4"
    )
    assert perfect_for(4)(prompts, 47).tolist() == prompts.use_RLE[47].tolist()
