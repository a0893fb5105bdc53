"""From recorded logits to experts and gates: the selection rules of the families, in torch.

It is what the routers of transformers do, said once more and independently, so that a recording can
be checked against it. Phi-MoE's rule can't be said in a trace's header: it needs the logits.
"""

import torch
from torch import Tensor

from moesim.backends.models import ModelError, MoeParts, Router
from moesim.traces import SelectionRule

# T tokens, E experts of a layer, K chosen, G groups.
SMALLEST_SUM = 1e-20


def choose_experts(parts: MoeParts, layer: int, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
    """Return gates and ids, [T, K] each, that a layer's rule gives for its router's logits.

    Args:
        parts: What `find_moe` found.
        layer: Place of the layer in ``parts.layers``.
        logits_TE: As the router answered them.

    Raises:
        ModelError: The rule of this router is not known.
    """
    router: Router = parts.layers[layer].router
    if parts.selection is not None:
        return _by_rule(parts.selection, layer, logits_TE, parts.top_k)
    if type(router).__name__ == "PhimoeTopKRouter":
        return _sparsemixer(logits_TE, router.router_jitter_noise, parts.top_k)
    raise ModelError(f"{type(router).__name__}: its selection rule is not known")


def _by_rule(
    rule: SelectionRule, layer: int, logits_TE: Tensor, top_k: int
) -> tuple[Tensor, Tensor]:
    logits_TE = logits_TE.float()
    probs_TE = logits_TE.softmax(dim=-1) if rule.score == "softmax" else logits_TE.sigmoid()
    rank_TE = probs_TE
    if rule.bias_LE is not None:
        rank_TE = probs_TE + torch.tensor(rule.bias_LE[layer], device=probs_TE.device)
    if rule.groups > 1:
        grouped_TGE = rank_TE.view(len(rank_TE), rule.groups, -1)
        best = 1 if rule.group_score == "max" else 2
        score_TG = grouped_TGE.topk(best, dim=-1).values.sum(dim=-1)
        kept_TG = torch.zeros_like(score_TG, dtype=torch.bool)
        kept_TG.scatter_(1, score_TG.topk(rule.groups_kept, dim=-1).indices, value=True)
        rank_TE = grouped_TGE.masked_fill(~kept_TG[..., None], float("-inf")).flatten(1)
    expert_TK = rank_TE.topk(top_k, dim=-1).indices
    gate_TK = probs_TE.gather(1, expert_TK)
    if rule.normalise:
        gate_TK = gate_TK / (gate_TK.sum(dim=-1, keepdim=True) + SMALLEST_SUM)
    return gate_TK * rule.scale, expert_TK


def _sparsemixer(logits_TE: Tensor, jitter: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Choose the best expert again and again; each gate is its share among those close to it.

    Paper: SparseMixer (Liu et al., 2409.12136), as Phi-MoE evaluates it.
    """
    left_TE = logits_TE
    gates, ids = [], []
    for _ in range(top_k):
        best_T1, id_T1 = left_TE.max(dim=-1, keepdim=True)
        distance_TE = (best_T1 - logits_TE) / logits_TE.abs().clamp(min=best_T1)
        close_TE = left_TE.masked_fill(distance_TE > 2 * jitter, float("-inf"))
        gates.append(close_TE.softmax(dim=-1).gather(1, id_T1))
        ids.append(id_T1)
        left_TE = left_TE.scatter(1, id_T1, float("-inf"))
    return torch.cat(gates, dim=1), torch.cat(ids, dim=1)
