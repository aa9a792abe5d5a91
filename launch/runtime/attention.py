"""Attention: of whole sequences by PyTorch's own kernel, and of blocks with their logsumexp.

A block is some queries and some keys. It gives its output and lse, the logsumexp of its scores, by
which blocks can be joined; given out and lse of whole rows, a block's gradients need nothing of the
other blocks (Dao et al. 2022, FlashAttention, arXiv:2205.14135, appendix B). Tensors are
[b, s, heads, d], lse is [b, heads, s].
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor


def whole_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of whole sequences [b, s, heads, d]."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
        is_causal=True, enable_gqa=q.shape[2] != k.shape[2],
    )  # fmt: skip
    return out.transpose(1, 2)


def _uses_flash(q: Tensor) -> bool:
    """CUDA's flash kernels take half precision and certain head sizes; the CPU's take all."""
    if q.device.type == "cuda":
        return q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] % 8 == 0
    return q.device.type == "cpu"


def block_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention of some queries to some keys -> out [b, s, heads, d] and lse [b, heads, s]."""
    if not _uses_flash(q):
        return plain_forward(q, k, v, causal)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    aten = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    else:
        out, lse = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[:2]
    return out.transpose(1, 2), lse


def block_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """This block's part of the gradients of q, k, v; `out` and `lse` are those of whole rows."""
    if not _uses_flash(q):
        return plain_backward(grad, q, k, v, out, lse, causal)
    grad, q, k, v, out = (t.transpose(1, 2) for t in (grad, q, k, v, out))
    lse = lse.contiguous()
    aten = torch.ops.aten
    if q.device.type == "cpu":
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal
        )
    else:
        unused = torch.zeros(2, dtype=torch.uint64, device=q.device)  # the state of dropout
        dq, dk, dv = aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, causal, unused, unused
        )
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


def _scores(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """[b, kv heads, query heads of each, queries, keys]."""
    scores = torch.einsum("bsngd,btnd->bngst", q, k) / math.sqrt(q.shape[-1])
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores


def plain_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """`block_forward` by its definition, where there is no kernel that returns lse."""
    wide = torch.promote_types(q.dtype, torch.float32)
    grouped = torch.unflatten(q.to(wide), 2, (k.shape[2], -1))
    scores = _scores(grouped, k.to(wide), causal)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp()
    out = torch.einsum("bngst,btnd->bsngd", weights, v.to(wide))
    return out.flatten(2, 3).to(q.dtype), lse.flatten(1, 2)


def plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`block_backward` by its definition: with P = exp(scores - lse), dS = P * (dO V^T -
    rowsum(dO * O)) (Dao et al. 2022, appendix B)."""
    wide, num_kv = lse.dtype, k.shape[2]
    grad, grouped, out = (torch.unflatten(t.to(wide), 2, (num_kv, -1)) for t in (grad, q, out))
    k, v, dtype = k.to(wide), v.to(wide), k.dtype
    lse = torch.unflatten(lse, 1, (num_kv, -1))
    weights = (_scores(grouped, k, causal) - lse[..., None]).exp()
    dv = torch.einsum("bngst,bsngd->btnd", weights, grad)
    row = (grad * out).sum(-1).permute(0, 2, 3, 1)[..., None]
    ds = weights * (torch.einsum("bsngd,btnd->bngst", grad, v) - row) / math.sqrt(q.shape[-1])
    dq = torch.einsum("bngst,btnd->bsngd", ds, k).flatten(2, 3)
    dk = torch.einsum("bngst,bsngd->btnd", ds, grouped)
    return dq.to(dtype), dk.to(dtype), dv.to(dtype)
