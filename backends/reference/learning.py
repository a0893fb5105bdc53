"""One step of learning: loss, load balance, a cosine rate, and how fast it all goes."""

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moesim.backends.models import Model, Router, find_moe
from moesim.backends.reference.vocabulary import SEPARATOR

# T tokens, E experts of a layer, K chosen.
LOAD_BALANCE = 0.005  # of the reference model: experts may become those of a task
FINAL_RATE = 0.02
MATRIX_DECAY = 0.1
LARGEST_GRADIENT = 1.0
SPEED_STEPS = (12, 24)


def balance_loss(logits_of_layers: Sequence[Tensor], top_k: int) -> Tensor:
    """Return the load-balancing loss over the whole batch, mean over layers; 1 when even.

    It is the loss of the Switch Transformer, taken for each layer by itself.
    """
    losses = []
    for logits_TE in logits_of_layers:
        probs_TE = logits_TE.float().softmax(dim=-1)
        experts = probs_TE.shape[1]
        chosen_TK = probs_TE.topk(top_k, dim=-1).indices
        load_E = torch.zeros(experts, device=probs_TE.device).scatter_add(
            0, chosen_TK.flatten(), torch.ones_like(chosen_TK.flatten(), dtype=torch.float32)
        )
        losses.append(experts * (load_E / chosen_TK.numel() * probs_TE.mean(dim=0)).sum())
    return torch.stack(losses).mean()


def _keep_logits(module: Router, inputs: object, output: tuple[Tensor, ...]) -> None:
    """Keep a router's logits on the router: a list would be a different graph for each layer."""
    del inputs
    module.kept_logits = output[0]


class Trainer:
    """One model on its way: its optimiser and the step.

    Attributes:
        model: What learns.
        rate: Peak learning rate.
        load_balance: Weight of the load-balancing loss.
    """

    def __init__(
        self, model: Model, *, rate: float, compiled: bool, load_balance: float = LOAD_BALANCE
    ) -> None:
        """Prepare the optimiser; matrices decay, vectors don't. A GPU multiplies in bfloat16."""
        self.model = model
        self.rate = rate
        self.load_balance = load_balance
        self.device: torch.device = next(model.parameters()).device
        matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        self._optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": MATRIX_DECAY},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=rate,
            betas=(0.9, 0.95),
            fused=self.device.type == "cuda",
        )
        parts = find_moe(model)
        self._top_k = parts.top_k
        self._routers: list[Router] = [layer.router for layer in parts.layers]
        for router in self._routers:
            router.register_forward_hook(_keep_logits)
        if compiled:
            for layer in parts.layers:
                layer.decoder_layer.compile()

    def step(
        self, rows: NDArray[np.uint16], progress: float, warmth: float
    ) -> tuple[Tensor, Tensor]:
        """Learn from one batch.

        Args:
            rows: Tokens, each row a text; every token but the first of a row is a target.
            progress: Share of the run that is over, in [0, 1]; the rate falls by a cosine.
            warmth: Share of that rate, for the first steps.

        Returns:
            loss: Cross-entropy in nats per token, on the device.
            balance: Load-balancing loss, on the device.
        """
        batch = torch.from_numpy(rows.astype(np.int64)).to(self.device, non_blocking=True)
        on_gpu = self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=on_gpu):
            logits = self.model(batch[:, :-1], use_cache=False).logits
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
            balance = balance_loss([router.kept_logits for router in self._routers], self._top_k)
        torch.autograd.backward(loss + self.load_balance * balance)
        nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
        cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in self._optimiser.param_groups:
            group["lr"] = self.rate * warmth * cosine
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return loss.detach(), balance.detach()

    def settle(self) -> None:
        """Wait until the device has done all it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def steps_per_second(
    make_trainer: Callable[[], Trainer], batch_rows: int, row_tokens: int
) -> float:
    """Measure a throw-away model on random bytes."""
    rng = np.random.default_rng(0)
    trainer = make_trainer()
    warm, total = SPEED_STEPS
    started = 0.0
    for step in range(total):
        if step == warm:
            trainer.settle()
            started = time.perf_counter()
        rows = rng.integers(0, SEPARATOR, (batch_rows, row_tokens), dtype=np.uint16)
        trainer.step(rows, progress=0.5, warmth=1.0)
    trainer.settle()
    return (total - warm) / (time.perf_counter() - started)
