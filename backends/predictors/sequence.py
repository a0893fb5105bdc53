"""A small XLNet that reads which experts the last prompts used and tells those of the next.

A token of its language is one layer of one prompt, the set e_l of its k experts. It reads the
latest prompts, oldest first, each layer by layer, then answers for the next prompt:

- ``all_layers`` (eMoE-A): one call. The next prompt stands as L blank tokens and every layer is
  answered at once.
- ``by_layer`` (eMoE-L): L calls. The next prompt stands as its own layers shifted by one; layer l
  is answered from layers before l, and the first from the last prompt's first.

eMoE-E is ``all_layers`` asked before every prompt. Scores are log shares of use; the paper takes
their arg-max. arXiv 2503.06823 section 3.2.2 (its XLNet has 108 million parameters and published no
recipe; ours has a size fit for a trace, and reads as many prompts as ``history`` says.)
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
import transformers
from torch import Tensor, nn

# B prompts of a batch, H prompts of history, L MoE layers, E experts of a layer, D width, S tokens.
Variant = Literal["all_layers", "by_layer"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
FLOOR = 1e-4


@dataclass(frozen=True, slots=True)
class Size:
    """What the network is built from.

    Attributes:
        layers: MoE layers, L.
        experts: Experts of a layer, E.
        variant: How it answers.
        history: Prompts that it reads, H.
        width: Width of a token, D.
        blocks: XLNet layers.
        heads: Attention heads of each.
        dropout: While learning.
    """

    layers: int
    experts: int
    variant: Variant = "all_layers"
    history: int = 1
    width: int = 64
    blocks: int = 2
    heads: int = 4
    dropout: float = 0.2

    def as_dict(self) -> dict[str, Any]:
        """Return every figure by name."""
        return asdict(self)


class ExpertSequence(nn.Module):
    """The network. Its tables of experts are shared by what it reads and what it answers."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        width = size.width
        self.expert = nn.Parameter(torch.randn(size.layers, size.experts, width) * width**-0.5)
        self.layer = nn.Parameter(torch.randn(size.layers, width) * width**-0.5)
        self.age = nn.Parameter(torch.randn(size.history + 1, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(size.layers, size.experts))
        make: Any = transformers.XLNetModel
        config: Any = transformers.XLNetConfig
        self.body = make(
            config(
                vocab_size=1,
                pad_token_id=None,
                bos_token_id=None,
                eos_token_id=None,
                d_model=width,
                n_layer=size.blocks,
                n_head=size.heads,
                d_inner=2 * width,
                ff_activation="gelu_new",  # the simulator computes it too, without an erf
                dropout=size.dropout,
                use_mems_eval=False,
                use_mems_train=False,
            )
        )

    def start_from(self, mean_use_LE: Tensor) -> None:
        """Let it begin as the static set does: every answer is the mean use."""
        with torch.no_grad():
            self.bias.copy_((mean_use_LE + FLOOR).log())

    def forward(self, history_BHLE: Tensor, current_BLE: Tensor | None = None) -> Tensor:
        """Return log shares of use of the next prompt, [B, L, E].

        Args:
            history_BHLE: Sets of the latest prompts as shares of 1/k, oldest first; zeros where
                there was none.
            current_BLE: Sets of the next prompt, for ``by_layer``; its layer l is read for the
                answers of the layers after l alone.
        """
        layers = self.size.layers
        read_BHLD = torch.einsum("bhle,led->bhld", history_BHLE, self.expert)
        read_BHLD = read_BHLD + self.layer + self.age[1:, None]
        asked_BLD = (self.layer + self.age[0]).expand(len(history_BHLE), -1, -1)
        if current_BLE is not None:
            first_BD = history_BHLE[:, -1, 0] @ self.expert[0]
            before_BLD = torch.einsum("ble,led->bld", current_BLE[:, :-1], self.expert[:-1])
            asked_BLD = asked_BLD + torch.cat([first_BD[:, None], before_BLD], dim=1)
        tokens_BSD = torch.cat([read_BHLD.flatten(1, 2), asked_BLD], dim=1)
        hidden_BSD = self.body(
            inputs_embeds=tokens_BSD,
            perm_mask=self._hidden_from(tokens_BSD),
            use_mems=False,
        ).last_hidden_state
        scores_BLE = torch.einsum("bld,led->ble", hidden_BSD[:, -layers:], self.expert)
        return (scores_BLE + self.bias).log_softmax(dim=-1)

    def _hidden_from(self, tokens_BSD: Tensor) -> Tensor:
        """Return 1 where a token may not look: history at the answer, a layer at later ones."""
        count = tokens_BSD.shape[1]
        hidden_SS = torch.zeros(count, count, device=tokens_BSD.device)
        begin = count - self.size.layers
        hidden_SS[:begin, begin:] = 1
        if self.size.variant == "by_layer":
            hidden_SS[begin:, begin:] = torch.ones_like(hidden_SS[begin:, begin:]).triu(1)
        return hidden_SS.expand(len(tokens_BSD), -1, -1)

    @torch.no_grad()
    def tell(self, history_BHLE: Tensor, top_k: int) -> Tensor:
        """Return shares of use of the next prompt, [B, L, E]; ``by_layer`` reads its own answers.

        Args:
            history_BHLE: As for `forward`.
            top_k: Experts of the sets that it reads.
        """
        self.eval()
        if self.size.variant == "all_layers":
            answer_BLE: Tensor = self(history_BHLE).exp()
            return answer_BLE
        batch, layers, experts = len(history_BHLE), self.size.layers, self.size.experts
        current_BLE = torch.zeros(batch, layers, experts, device=history_BHLE.device)
        told_BLE = torch.zeros_like(current_BLE)
        for layer in range(layers):
            told_BLE[:, layer] = self(history_BHLE, current_BLE)[:, layer].exp()
            current_BLE[:, layer] = as_sets(told_BLE[:, layer], top_k)
        return told_BLE


def as_sets(use_E: Tensor, top_k: int) -> Tensor:
    """Return 1/k for the k experts of largest use along the last axis, 0 for the others."""
    order = torch.argsort(-use_E, dim=-1, stable=True)[..., :top_k]
    return torch.zeros_like(use_E).scatter(-1, order, 1 / top_k)
