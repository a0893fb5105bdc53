"""Trains the sequence model on the first prompts of a trace, and makes a predictor of it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from moesim.backends.predictors.rules import Telling
from moesim.backends.predictors.sequence import ExpertSequence, Size, as_sets
from moesim.backends.predictors.uses import Floats, Prompts
from moesim.simulator.policies.expert_network import ExpertNetwork
from moesim.simulator.policies.expert_network import as_sets as sets_of

# R requests (prompts), B prompts of a batch, H history, L MoE layers, E experts of a layer.
BATCH_PROMPTS = 32
RATE = 2e-3
WEIGHT_DECAY = 0.05


def train(
    fit: Prompts,
    size: Size,
    *,
    epochs: int,
    horizon: int,
    seed: int,
    advance: Callable[[int], None] = lambda _epochs: None,
) -> ExpertSequence:
    """Return a network trained on prompts in the order in which they were served.

    Args:
        fit: The prompts.
        size: Of the network.
        epochs: Times that every prompt is a target.
        horizon: What is foretold is the mean use of so many prompts, the next included: 1 for a
            predictor that is asked before every prompt, p for one that is asked before every p-th.
        seed: Of its first weights, the order of batches and dropout.
        advance: Told of every epoch.
    """
    with _one_thread():
        return _train(fit, size, epochs, horizon, seed, advance)


def _train(
    fit: Prompts, size: Size, epochs: int, horizon: int, seed: int, advance: Callable[[int], None]
) -> ExpertSequence:
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    use_RLE = torch.from_numpy(fit.use_RLE)
    sets_RLE = as_sets(use_RLE, fit.top_k)
    target_RLE = mean_ahead(use_RLE, horizon)
    network = ExpertSequence(size)
    network.start_from(use_RLE.mean(dim=0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * math.ceil(len(fit) / BATCH_PROMPTS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(epochs):
        network.train()
        for at_B in torch.split(torch.randperm(len(fit), generator=order), BATCH_PROMPTS):
            current_BLE = sets_RLE[at_B] if size.variant == "by_layer" else None
            told_BLE = network(histories(sets_RLE, at_B, size.history), current_BLE)
            loss = -(target_RLE[at_B] * told_BLE).sum(dim=-1).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        advance(1)
    return network.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one core: matrices as small as these gain nothing, and a second core spins."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def histories(sets_RLE: Tensor, at_B: Tensor, history: int) -> Tensor:
    """Return the sets of the prompts before each of these, oldest first; zeros before the first."""
    before_BH = at_B[:, None] - torch.arange(history, 0, -1)
    found_BHLE = sets_RLE[before_BH.clamp(min=0)]
    return found_BHLE * (before_BH >= 0)[..., None, None]


def mean_ahead(use_RLE: Tensor, horizon: int) -> Tensor:
    """Return the mean use of each prompt and those after it, so many in all where there are."""
    total_RLE = torch.cat([torch.zeros_like(use_RLE[:1]), use_RLE.double().cumsum(dim=0)])
    begin_R = torch.arange(len(use_RLE))
    end_R = (begin_R + horizon).clamp(max=len(use_RLE))
    mean_RLE = (total_RLE[end_R] - total_RLE[begin_R]) / (end_R - begin_R)[:, None, None]
    return mean_RLE.float()


def as_rule(network: ExpertSequence) -> Telling:
    """Return the network as a predictor that is asked before each prompt, as policies ask it."""
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    asked = ExpertNetwork(arrays, network.size.as_dict())

    def tell(prompts: Prompts, at: int) -> Floats:
        _, layers, experts = prompts.use_RLE.shape
        history_HLE = np.zeros((asked.history, layers, experts), np.float32)
        for age in range(1, min(asked.history, at) + 1):
            history_HLE[-age] = sets_of(prompts.use_RLE[at - age], prompts.top_k)
        return asked.tell(history_HLE, prompts.top_k)

    return tell
