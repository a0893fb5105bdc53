"""Predictors that need no training: what a trained one has to beat.

A rule tells, before prompt ``at`` is served, how much each expert will be used, from the prompts
before it; it never looks at ``at`` itself or later.
"""

from collections.abc import Callable, Mapping

import numpy as np

from moesim.backends.predictors.uses import Floats, Prompts

# R requests (prompts), L MoE layers, E experts of a layer.
Telling = Callable[[Prompts, int], Floats]
"""From all prompts and the number of the next one: its use, [L, E]."""

RECENT_PROMPTS = 20


def at_random(seed: int) -> Telling:
    """Return the rule that draws every expert's use anew for each prompt."""

    def tell(prompts: Prompts, at: int) -> Floats:
        rng = np.random.default_rng((seed, at))
        return rng.random(prompts.use_RLE.shape[1:], dtype=np.float32)

    return tell


def always(fit: Prompts) -> Telling:
    """Return the rule that always tells the mean use of the fit prompts: a static set."""
    mean_LE = fit.use_RLE.mean(axis=0)
    return lambda _prompts, _at: mean_LE


def by_recent(window: int) -> Telling:
    """Return the rule that tells the mean use of so many prompts before; nothing at the first."""

    def tell(prompts: Prompts, at: int) -> Floats:
        if at == 0:
            return np.zeros(prompts.use_RLE.shape[1:], np.float32)
        mean_LE: Floats = prompts.use_RLE[max(0, at - window) : at].mean(axis=0)
        return mean_LE

    return tell


def perfect(prompts: Prompts, at: int) -> Floats:
    """Tell what the prompt will use; not a predictor but the ceiling of those that aim at it."""
    return np.asarray(prompts.use_RLE[at])


def perfect_for(window: int) -> Telling:
    """Return the ceiling of all that hold one set for so many prompts: their mean use."""

    def tell(prompts: Prompts, at: int) -> Floats:
        mean_LE: Floats = prompts.use_RLE[at : at + window].mean(axis=0)
        return mean_LE

    return tell


def rules(fit: Prompts, seed: int) -> Mapping[str, Telling]:
    """Return the rules that every trained predictor is printed beside."""
    return {
        "random": at_random(seed),
        "last prompt": by_recent(1),
        "static set": always(fit),
        f"last {RECENT_PROMPTS}": by_recent(RECENT_PROMPTS),
    }
