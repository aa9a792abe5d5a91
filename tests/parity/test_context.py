"""Context-parallel attention and uneven exchanges against one process that holds everything.

Tolerances are relative to the largest entry of the expected float64 tensor. float64: 1e-10, far
above rounding (measured: at most 3e-15) and far below any wrong term. float32: 1e-5 (measured: at
most 7e-7). bfloat16: 2e-2 (measured: at most 1.2e-2, where unsharded attention has 6e-3): inputs
and results round to 2^-9 = 2e-3, and so do the gradients of k and v each time they are added.
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo  # `checkpoint` imports it: here once, not in every rank
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from fork import run_ranks
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from launch.runtime.attention import (
    block_backward,
    block_forward,
    plain_backward,
    plain_forward,
)
from launch.runtime.context import ContextAttention, sequence_index
from launch.runtime.exchange import all_to_all, gather_uneven, reduce_scatter_uneven
from launch.runtime.record import Recorder
from planner.config import CpMethod
from profiler.errors import UserError

pytestmark = pytest.mark.distributed

METHODS: tuple[CpMethod, ...] = ("ring", "all_gather", "ulysses")
BATCH, SEQ_LEN, HEADS, HEAD_DIM = 2, 48, 8, 16
KV_HEADS = (8, 4, 2, 1)  # 8: multi-head; 2 and 1: fewer than a group of 4, of 2
EXACT, SINGLE, HALF = 1e-10, 1e-5, 2e-2
Rows = list[list[Any]]


def _drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _inputs(kv_heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and the gradient of the output, for whole sequences."""
    shapes = (HEADS, kv_heads, kv_heads, HEADS)
    q, k, v, grad = (_drawn(i, BATCH, SEQ_LEN, h, HEAD_DIM) for i, h in enumerate(shapes))
    return q, k, v, grad


def _with_gradients(attend: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    """Output and gradients; the last tensor is the output's gradient."""
    *inputs, grad = tensors
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    out = attend(*leaves)
    out.backward(grad)
    return [out.detach(), *(t.grad for t in leaves if t.grad is not None)]


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def _off(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Largest deviation, relative to the largest entry of its tensor."""
    assert [t.shape for t in actual] == [t.shape for t in expected]
    pairs = zip(actual, expected, strict=True)
    return max(((a - e).abs().max() / e.abs().max()).item() for a, e in pairs)


def _attention_of(
    method: CpMethod, kv_heads: int, group: dist.ProcessGroup | None, recorder: Recorder, *,
    recompute: bool = False, dtype: torch.dtype = torch.float64,
) -> float:  # fmt: skip
    """How far this rank's output and gradients are off those of whole sequences."""
    size, rank = (1, 0) if group is None else (group.size(), group.rank())
    whole = _inputs(kv_heads)
    index = sequence_index(SEQ_LEN, size, rank, method)
    attention = ContextAttention(method, group, recorder)
    attend: Callable[..., Tensor] = attention
    if recompute:
        attend = functools.partial(checkpoint, attention, use_reentrant=False)
    actual = _with_gradients(attend, *(t[:, index].to(dtype) for t in whole))
    expected = [t[:, index] for t in _with_gradients(_sdpa, *whole)]
    return _off(actual, expected)


def _every_head_count(method: CpMethod) -> list[float]:
    return [_attention_of(method, n, dist.group.WORLD, Recorder()) for n in KV_HEADS]


@pytest.mark.parametrize("cp", [1, 2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_attention_over_shards_is_attention_over_the_sequence(method: CpMethod, cp: int) -> None:
    for off in run_ranks(cp, _every_head_count, method):
        assert max(off) <= EXACT


def _rounded(method: CpMethod) -> list[float]:
    dtypes = (torch.float32, torch.bfloat16)
    return [_attention_of(method, 2, dist.group.WORLD, Recorder(), dtype=d) for d in dtypes]


@pytest.mark.parametrize("method", METHODS)
def test_attention_in_lower_precision(method: CpMethod) -> None:
    for single, half in run_ranks(4, _rounded, method):
        assert single <= SINGLE
        assert half <= HALF


def _in_any_group() -> tuple[float, ...]:
    """Members out of order, and two groups at once of which a rank is in one."""
    permuted = dist.new_group([2, 0, 3, 1], sort_ranks=False)
    assert permuted.rank() == [2, 0, 3, 1].index(dist.get_rank())
    pairs = [dist.new_group(ranks, sort_ranks=False) for ranks in ([3, 0], [2, 1])]
    groups = (permuted, pairs[0] if dist.get_rank() in (3, 0) else pairs[1], None)
    return tuple(_attention_of(m, 2, g, Recorder()) for m in METHODS for g in groups)


def test_members_of_a_group_in_any_order() -> None:
    assert max(max(off) for off in run_ranks(4, _in_any_group)) <= EXACT


def _recorded(method: CpMethod, recompute: bool) -> tuple[float, Rows]:
    recorder = Recorder({dist.group.WORLD.group_name: "world"})
    with recorder.active():
        off = _attention_of(method, 2, dist.group.WORLD, recorder, recompute=recompute)
    return off, recorder.drain()["collectives"]


# Forward: n - 1 messages, one gather, two all-to-alls. Backward: n - 1 messages with keys and n
# with gradients; a gather and a scatter; two all-to-alls. A forward run again ends with the last
# tensor that backward needs, which for Ulysses comes before the second all-to-all.
NUM_ROWS = {("ring", 4): (3, 3 + 4), ("all_gather", 4): (1, 2), ("ulysses", 4): (2, 2)}
NUM_ROWS |= {("ring", 2): (1, 1 + 2)}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("method", "cp"), NUM_ROWS)
def test_every_collective_is_recorded(method: CpMethod, cp: int, recompute: bool) -> None:
    forward, backward = NUM_ROWS[method, cp]
    again = (1 if method == "ulysses" else forward) if recompute else 0
    for off, rows in run_ranks(cp, _recorded, method, recompute):
        assert off <= EXACT
        assert [row[:2] for row in rows] == [["cp", k] for k in range(forward + again + backward)]
        for _, _, issued, wait_start, wait_end in rows:
            assert issued <= wait_start <= wait_end


def test_positions_of_a_rank() -> None:
    assert sequence_index(8, 2, 0, "ring").tolist() == [0, 1, 6, 7]
    assert sequence_index(8, 2, 1, "all_gather").tolist() == [2, 3, 4, 5]
    assert sequence_index(8, 2, 1, "ulysses").tolist() == [4, 5, 6, 7]
    assert sequence_index(7, 1, 0, "ring").tolist() == list(range(7))
    with pytest.raises(UserError, match="6 tokens do not divide into 4 chunks"):
        sequence_index(6, 2, 0, "ring")


def _too_few_heads() -> str:
    q = torch.zeros(1, 4, 3, 8)
    with pytest.raises(UserError) as caught:
        ContextAttention("ulysses", dist.group.WORLD, Recorder())(q, q, q)
    return caught.value.message


def test_ulysses_refuses_heads_that_do_not_divide() -> None:
    assert run_ranks(2, _too_few_heads) == ["3 attention heads on a rank do not divide by 2"] * 2


def _kernel_and_definition() -> float:
    """The fallback, which CPU tensors never take, against the kernel that they take."""
    worst = 0.0
    for kv_heads, num_keys, causal in ((8, 48, True), (2, 48, True), (2, 20, False)):
        q, k, v, grad = _inputs(kv_heads)
        k, v = k[:, :num_keys], v[:, :num_keys]
        forward = block_forward(q, k, v, causal)
        worst = max(worst, _off(list(plain_forward(q, k, v, causal)), list(forward)))
        backward = block_backward(grad, q, k, v, *forward, causal)
        plain = plain_backward(grad, q, k, v, *forward, causal)
        worst = max(worst, _off(list(plain), list(backward)))
    return worst


def test_the_plain_block_is_the_kernel() -> None:
    assert run_ranks(1, _kernel_and_definition)[0] <= EXACT


# Rows that rank i sends to rank j. A rank may send or receive nothing, or take no part at all.
SENT = {
    "uneven": [[1, 0, 4, 2], [3, 3, 0, 1], [0, 2, 1, 0], [5, 1, 1, 1]],
    "none-to-one": [[1, 0, 4, 2], [3, 0, 0, 1], [1, 0, 1, 0], [5, 0, 1, 1]],
    "one-apart": [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 0, 1], [1, 0, 2, 2]],
    "nothing": [[0] * 4] * 4,
}
COUNTS = ((2, 0, 3, 1), (0, 0, 4, 0), (1, 1, 1, 1), (0, 0, 0, 0))
WIDTH = 5


def _equal(actual: list[Tensor], expected: list[Tensor]) -> bool:
    pairs = zip(actual, expected, strict=True)
    return all(a.shape == e.shape and torch.allclose(a, e, rtol=1e-12) for a, e in pairs)


def _exchanged() -> dict[str, bool]:
    group = dist.new_group([2, 0, 3, 1], sort_ranks=False)
    me, num = group.rank(), group.size()
    recorder = Recorder()
    same: dict[str, bool] = {}
    with recorder.active():
        for name, sent in SENT.items():
            received = [sent[i][me] for i in range(num)]
            xs = [_drawn(i, sum(sent[i]), WIDTH) for i in range(num)]
            grads = [_drawn(9 + j, sum(row[j] for row in sent), WIDTH) for j in range(num)]
            actual = _with_gradients(
                lambda x, o=received, i=sent[me]: all_to_all(x, o, i, group, recorder, "ep"),
                xs[me], grads[me],
            )  # fmt: skip
            out = torch.cat([xs[i].split(sent[i])[me] for i in range(num)])
            parts = [grads[j].split([row[j] for row in sent])[me] for j in range(num)]
            same[name] = _equal(actual, [out, torch.cat(parts)])
        for counts in map(list, COUNTS):
            xs = [_drawn(i, counts[i], WIDTH) for i in range(num)]
            grads = [_drawn(9 + i, sum(counts), WIDTH) for i in range(num)]
            total = torch.stack(grads).sum(0).split(counts)[me]
            gathered = _with_gradients(
                lambda x, c=counts: gather_uneven(x, c, group, recorder, "ep"), xs[me], grads[me]
            )
            same[f"gather {counts}"] = _equal(gathered, [torch.cat(xs), total])
            scattered = _with_gradients(
                lambda x, c=counts: reduce_scatter_uneven(x, c, group, recorder, "ep"),
                grads[me], xs[me],
            )  # fmt: skip
            same[f"scatter {counts}"] = _equal(scattered, [total, torch.cat(xs)])
    rows = recorder.drain()["collectives"]
    same["recorded"] = [row[:2] for row in rows] == [["ep", k] for k in range(len(rows))]
    same["once each way"] = len(rows) == 2 * (len(SENT) + 2 * len(COUNTS))
    return same


def test_uneven_exchanges_and_their_gradients() -> None:
    for same in run_ranks(4, _exchanged):
        assert [name for name, is_same in same.items() if not is_same] == []


def _one_member() -> list[bool]:
    x, recorder = _drawn(0, 3, WIDTH), Recorder()
    return [
        torch.equal(y, x)
        for group in (None, dist.group.WORLD)
        for y in (
            all_to_all(x, [3], [3], group, recorder, "ep"),
            gather_uneven(x, [3], group, recorder, "ep"),
            reduce_scatter_uneven(x, [3], group, recorder, "ep"),
        )
    ]


def test_a_group_of_one_exchanges_nothing() -> None:
    assert all(run_ranks(1, _one_member)[0])
