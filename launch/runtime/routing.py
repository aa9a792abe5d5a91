"""Which experts a token goes to, and which of its choices are dropped.

    scores  = softmax(x R^T) or sigmoid(x R^T), in float32 at least
    chosen  = the k largest of scores (+ bias), from the best expert groups where there are groups
    weights = scores of the chosen, divided by their sum (`norm_topk`), times `routed_scale`

Softmax as in Mixtral (Jiang et al. 2024, arXiv:2401.04088) and Qwen-MoE; sigmoid, selection bias
and groups as in DeepSeek-V3 (arXiv:2412.19437, section 2.1.2), as the Hugging Face models compute
them.

Capacity: consecutive tokens of a sequence form groups (GShard, Lepikhin et al. 2020,
arXiv:2006.16668, section 2.2); of each group an expert takes `ceil(factor * k * tokens / e)`
choices, first choices before second ones, earlier tokens before later ones. No rank needs to know
about another's tokens, and what is dropped is the same in every layout.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from launch.runtime.norm import replicated
from profiler.model import ModelSpec


class Router(nn.Module):
    """Scores the experts for each token."""

    bias: Tensor | None

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.model = model
        self.weight = nn.Parameter(torch.empty(model.num_experts, model.hidden_size))
        bias = torch.zeros(model.num_experts) if model.router_bias else None
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [n, h] -> ids [n, k] and weights [n, k] of the chosen experts."""
        wide = torch.promote_types(x.dtype, torch.float32)
        logits = F.linear(x.to(wide), replicated(self.weight).to(wide))
        soft = self.model.router_score == "softmax"
        scores = logits.softmax(-1) if soft else logits.sigmoid()
        ids = self._choose(scores.detach())
        weights = scores.gather(1, ids)
        if self.model.norm_topk:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids, (weights * self.model.routed_scale).to(x.dtype)

    def _choose(self, scores: Tensor) -> Tensor:
        model = self.model
        if self.bias is not None:
            scores = scores + self.bias.to(scores.dtype)
        if model.num_expert_groups > 1:
            by_group = scores.view(len(scores), model.num_expert_groups, -1)
            best = by_group.topk(2, dim=-1).values.sum(-1)
            chosen = best.topk(model.num_chosen_groups, dim=-1).indices
            mask = torch.zeros_like(best, dtype=torch.bool).scatter_(1, chosen, value=True)
            scores = by_group.masked_fill(~mask[..., None], 0.0).flatten(1)
        return scores.topk(model.num_experts_per_token, dim=-1).indices


def kept_choices(ids: Tensor, model: ModelSpec) -> Tensor | None:
    """Choices [n, k] that fit the experts' capacity; None where nothing is ever dropped.

    The n tokens are whole capacity groups, one after the other.
    """
    if not model.capacity_factor:
        return None
    group, k, e = model.capacity_group, model.num_experts_per_token, model.num_experts
    capacity = math.ceil(model.capacity_factor * k * group / e)
    # [groups, k * tokens]: first choices of all tokens before their second ones
    order = ids.view(-1, group, k).transpose(1, 2).flatten(1)
    taken = F.one_hot(order, e).cumsum(1)
    position = taken.gather(2, order[..., None]).squeeze(2)
    kept = position <= capacity
    return kept.view(-1, k, group).transpose(1, 2).reshape(-1, k)
