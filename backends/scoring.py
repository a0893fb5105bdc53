"""How well a model foretells given text while a system serves it: measured under teacher forcing.

A text is fed as it is, whatever the model would say, and every token behind the first is foretold
once. So a lossy system's loss is the text's own, not that of a text which drifted away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from moesim.backends.execution import Execution
from moesim.backends.generation import Request

# N tokens foretold, V vocabulary.


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over the tokens foretold.

    Attributes:
        tokens: How many.
        perplexity: Of one token.
        bits: Of one token.
        agreement: Share of tokens where the full model holds the same one likeliest.
        kl_bits: Of the full model's distribution to this one.
    """

    tokens: int
    perplexity: float
    bits: float
    agreement: float
    kl_bits: float


@dataclass(frozen=True, slots=True)
class PerToken:
    """What is known of every token foretold, so that texts can be resampled.

    Attributes:
        nats_N: Of the token that the text has.
        kl_nats_N: Of the full model's distribution to this one.
        agrees_N: Whether both hold the same token likeliest.
    """

    nats_N: Tensor
    kl_nats_N: Tensor
    agrees_N: Tensor


def forced(tokens: Sequence[int], prompt_tokens: int, task: str = "") -> Request:
    """Return a text as a request: a prompt, and an answer that is given.

    Args:
        tokens: The text, longer than its prompt.
        prompt_tokens: How many of them are the prompt.
        task: Label of the request.
    """
    return Request(
        prompt=list(tokens[:prompt_tokens]), task=task, forced=list(tokens[prompt_tokens:])
    )


def foretold(done: Execution) -> Tensor:
    """Return the logits of every token foretold, text after text: [N, V].

    The execution kept all logits, and its requests were made by `forced`.
    """
    assert done.prompt_logits is not None
    assert done.logits is not None
    return torch.cat(
        [
            torch.cat([prompt_TV, *(step_V[None] for step_V in steps[1:])])
            for prompt_TV, steps in zip(done.prompt_logits, done.logits, strict=True)
        ]
    ).float()


def targets(requests: Sequence[Request]) -> Tensor:
    """Return the tokens that `foretold` foretells: [N]."""
    return torch.tensor(
        [token for one in requests for token in [*one.prompt, *(one.forced or ())][1:]]
    )


def in_answers(requests: Sequence[Request]) -> Tensor:
    """Return which of those tokens a decode step foretells: all of an answer but its first: [N]."""
    return torch.cat(
        [
            torch.arange(len(one.prompt) + len(one.forced or ()) - 1) >= len(one.prompt)
            for one in requests
        ]
    )


def per_token(logits_NV: Tensor, full_NV: Tensor, target_N: Tensor) -> PerToken:
    """Score every token foretold; arguments as of `score`."""
    log_NV, full_log_NV = logits_NV.log_softmax(dim=-1), full_NV.log_softmax(dim=-1)
    return PerToken(
        cross_entropy(logits_NV, target_N, reduction="none"),
        (full_log_NV.exp() * (full_log_NV - log_NV)).sum(dim=-1),
        logits_NV.argmax(dim=-1) == full_NV.argmax(dim=-1),
    )


def score(logits_NV: Tensor, full_NV: Tensor, target_N: Tensor, counts_N: Tensor) -> Scores:
    """Score what was foretold.

    Args:
        logits_NV: By the system.
        full_NV: By the full model.
        target_N: What the text says.
        counts_N: Which tokens count.
    """
    each = per_token(logits_NV[counts_N], full_NV[counts_N], target_N[counts_N])
    nats, kl_nats = float(each.nats_N.mean()), float(each.kl_nats_N.mean())
    same = float(each.agrees_N.float().mean())
    return Scores(len(each.nats_N), exp(nats), nats / log(2), same, max(0.0, kl_nats) / log(2))
