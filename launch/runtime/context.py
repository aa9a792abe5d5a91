"""Causal attention over a sequence that is sharded over a context-parallel group.

Three exact methods, chosen by `CpMethod`; n is the size of the group:
- `ring`: k and v travel round the group in n - 1 messages, each received while the block before
  it is computed; in backward their gradients travel behind them and home (Liu et al. 2023, Ring
  Attention, arXiv:2310.01889);
- `all_gather`: k and v are gathered, and once more in backward instead of being kept, where their
  gradients are reduce-scattered (Llama 3, arXiv:2407.21783, section 3.3.2);
- `ulysses`: an all-to-all trades the sequence for heads and another one back (Jacobs et al. 2023,
  DeepSpeed-Ulysses, arXiv:2309.14509).

Under a causal mask late positions attend to more keys than early ones. The first two methods
therefore cut the sequence into 2n chunks and give rank r chunks r and 2n - 1 - r, its *head* and
*tail*, which makes all ranks' work equal (Llama 3, ibid.); Ulysses sees whole sequences and takes
contiguous parts.

Blocks of keys are joined through the logsumexp of their scores: softmax over the union is the sum
of the blocks' outputs weighted by exp(lse_block - lse), lse = log(sum(exp(lse_block))) (Dao et
al. 2022, FlashAttention, arXiv:2205.14135). Given out and lse of the whole row, a block's gradients
need nothing of the other blocks. Tensors are [b, s, heads, d], lse is [b, heads, s].
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from launch.runtime.attention import block_backward, block_forward, whole_attention
from launch.runtime.exchange import all_to_all
from launch.runtime.record import Recorder, Wait
from planner.config import CpMethod, num_chunks
from profiler.errors import UserError

AXIS = "cp"
ALL = slice(None)
Piece = tuple[slice, slice, bool]
"""Rows of the queries, rows of the keys, whether the mask between them is the causal triangle."""


def sequence_index(seq_len: int, cp: int, cp_rank: int, method: CpMethod) -> Tensor:
    """Positions (int64) that a rank holds, in its local order."""
    number = num_chunks(cp, method)
    if seq_len % number:
        raise UserError(
            f"sequences of {seq_len} tokens do not divide into {number} chunks",
            hint=f"`{method}` context parallelism of {cp} needs a multiple of {number}",
        )
    chunks = torch.arange(seq_len).chunk(number)
    if number == cp:
        return chunks[cp_rank]
    return torch.cat((chunks[cp_rank], chunks[number - 1 - cp_rank]))


class _Rows:
    """Output rows of this rank's queries, built block by block in the precision of lse."""

    def __init__(self, q: Tensor) -> None:
        self.q = q
        wide = torch.promote_types(q.dtype, torch.float32)
        self.out = torch.zeros_like(q, dtype=wide)
        shape = (q.shape[0], q.shape[2], q.shape[1])
        self.lse = torch.full(shape, -torch.inf, dtype=wide, device=q.device)

    def attend(self, kv: Tensor, pieces: list[Piece]) -> None:
        for rows, columns, causal in pieces:
            k, v = kv[:, :, columns].unbind()
            part, part_lse = block_forward(self.q[:, rows], k, v, causal)
            out, lse = self.out[:, rows], self.lse[:, :, rows]
            both = torch.logaddexp(lse, part_lse)
            out.mul_(_per_row(lse - both)).add_(part * _per_row(part_lse - both))
            lse.copy_(both)


def _per_row(log_weight: Tensor) -> Tensor:
    """[b, heads, s] -> weights [b, s, heads, 1]."""
    return log_weight.exp().transpose(1, 2).unsqueeze(-1)


class _Gradients:
    """Gradient of this rank's queries, built block by block in the precision of lse."""

    def __init__(self, grad: Tensor, q: Tensor, out: Tensor, lse: Tensor) -> None:
        self.saved = (grad, q, out, lse)
        self.dq = torch.zeros_like(q, dtype=lse.dtype)

    def of(self, kv: Tensor, pieces: list[Piece]) -> Tensor:
        """Gradient of `kv` [2, b, s, kv heads, d] by these queries."""
        grad, q, out, lse = self.saved
        dkv = torch.zeros_like(kv)
        for rows, columns, causal in pieces:
            k, v = kv[:, :, columns].unbind()
            dq, dk, dv = block_backward(
                grad[:, rows], q[:, rows], k, v, out[:, rows], lse[:, :, rows], causal
            )
            self.dq[:, rows] += dq
            dkv[0][:, columns] += dk
            dkv[1][:, columns] += dv
        return dkv


class _Method(Protocol):
    def forward(self, rows: _Rows, kv: Tensor) -> None:
        """Attend to all keys; `kv` [2, b, s_local, kv heads, d] are this rank's."""

    def backward(self, gradients: _Gradients, kv: Tensor) -> Tensor:
        """Gradient of `kv` by the queries of all ranks; adds up `gradients.dq`."""


class _Ring:
    """At step i the rank holds keys of rank r - i. Messages between two ranks arrive in the order
    they were issued in, so that both kinds of backward's may be under way at once."""

    def __init__(self, group: dist.ProcessGroup, recorder: Recorder) -> None:
        self._group, self._recorder = group, recorder
        self._rank, self._size = group.rank(), group.size()

    def _pieces(self, step: int, num_rows: int) -> list[Piece]:
        head, tail = slice(0, num_rows // 2), slice(num_rows // 2, None)
        if step == 0:
            return [(ALL, ALL, True)]
        if step <= self._rank:  # of a lower rank: its tail comes after all our rows
            return [(ALL, head, False)]
        return [(tail, ALL, False)]

    def _pass_on(self, tensor: Tensor) -> tuple[Tensor, Wait]:
        """What the rank before sends, once the wait is over; `tensor` goes to the next one."""
        received = torch.empty_like(tensor)
        after, before = (self._rank + 1) % self._size, (self._rank - 1) % self._size
        ops = [
            dist.P2POp(dist.isend, tensor, group=self._group, group_peer=after),
            dist.P2POp(dist.irecv, received, group=self._group, group_peer=before),
        ]
        return received, self._recorder.exchange(ops, AXIS)

    def forward(self, rows: _Rows, kv: Tensor) -> None:
        for step in range(self._size):
            last = step == self._size - 1
            following, wait = (kv, _nothing) if last else self._pass_on(kv)
            rows.attend(kv, self._pieces(step, kv.shape[2]))
            wait()
            kv = following

    def backward(self, gradients: _Gradients, kv: Tensor) -> Tensor:
        arriving, wait_gradient = torch.zeros_like(kv), _nothing
        for step in range(self._size):
            last = step == self._size - 1
            following, wait = (kv, _nothing) if last else self._pass_on(kv)
            dkv = gradients.of(kv, self._pieces(step, kv.shape[2]))
            wait_gradient()  # of the others that have held these keys before
            arriving, wait_gradient = self._pass_on(dkv.add_(arriving))
            wait()
            kv = following
        wait_gradient()
        return arriving


def _nothing() -> None:
    """The wait for a message that was not sent."""


class _AllGather:
    """Head and tail each attend to all chunks before them and to their own under the mask."""

    def __init__(self, group: dist.ProcessGroup, recorder: Recorder) -> None:
        self._group, self._recorder = group, recorder

    def _pieces(self, num_rows: int) -> list[Piece]:
        size, rank, chunk = self._group.size(), self._group.rank(), num_rows // 2
        pieces: list[Piece] = []
        for i, c in enumerate((rank, 2 * size - 1 - rank)):
            rows = slice(i * chunk, (i + 1) * chunk)
            pieces.append((rows, slice(c * chunk, (c + 1) * chunk), True))
            if c:
                pieces.append((rows, slice(0, c * chunk), False))
        return pieces

    def _gathered(self, kv: Tensor) -> Tensor:
        """[2, b, s, kv heads, d] in the order of the sequence."""
        parts = kv.new_empty((self._group.size(), *kv.shape))
        self._recorder.all_gather(parts.flatten(0, 1), kv, self._group, AXIS)()
        heads, tails = parts.chunk(2, dim=3)
        return torch.cat((*heads, *reversed(tails.unbind())), dim=2)

    def forward(self, rows: _Rows, kv: Tensor) -> None:
        rows.attend(self._gathered(kv), self._pieces(kv.shape[2]))

    def backward(self, gradients: _Gradients, kv: Tensor) -> Tensor:
        dkv = gradients.of(self._gathered(kv), self._pieces(kv.shape[2]))
        chunks = dkv.chunk(2 * self._group.size(), dim=2)
        pairs = zip(chunks, reversed(chunks), strict=True)
        parts = torch.cat([torch.cat(pair, dim=2) for pair in pairs][: self._group.size()])
        own = torch.empty_like(kv)
        self._recorder.reduce_scatter(own, parts, self._group, AXIS)()
        return own


class _Sharded(torch.autograd.Function):
    """Both zigzag methods; keeps this rank's q, k, v, out and lse."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, method: _Method) -> Tensor:
        q, kv = q.contiguous(), torch.stack((k, v))
        rows = _Rows(q)
        method.forward(rows, kv)
        out = rows.out.to(q.dtype)
        ctx.method = method
        ctx.save_for_backward(q, kv, out, rows.lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, kv, out, lse = ctx.saved_tensors
        gradients = _Gradients(grad.contiguous(), q, out, lse)
        dk, dv = ctx.method.backward(gradients, kv).unbind()
        return gradients.dq.to(q.dtype), dk, dv, None


class ContextAttention:
    """`attention(q, k, v)` of one method; the group (None where its size is 1) calls it together.

    q [b, s_local, heads, d], k and v [b, s_local, kv heads, d] with rotary positions applied, in
    the order of `sequence_index` -> [b, s_local, heads, d].
    """

    def __init__(
        self, method: CpMethod, group: dist.ProcessGroup | None, recorder: Recorder
    ) -> None:
        self.method = method
        self._group = group if group is not None and group.size() > 1 else None
        self._recorder = recorder
        self._zigzag: _Method | None = None
        if self._group is not None and method != "ulysses":
            kind = _Ring if method == "ring" else _AllGather
            self._zigzag = kind(self._group, recorder)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Exact; gradients flow to all three."""
        if self._group is None:
            return whole_attention(q, k, v)
        if self._zigzag is None:
            return self._ulysses(q, k, v, self._group)
        apply: Callable[..., Tensor] = _Sharded.apply
        return apply(q, k, v, self._zigzag)

    def _ulysses(self, q: Tensor, k: Tensor, v: Tensor, group: dist.ProcessGroup) -> Tensor:
        size, num_heads = group.size(), q.shape[2]
        if num_heads % size:
            raise UserError(
                f"{num_heads} attention heads on a rank do not divide by {size}",
                hint="`ulysses` trades the sequence for heads: lower cp or tp, or take `ring`",
            )
        if k.shape[2] % size:
            k, v = (t.repeat_interleave(num_heads // t.shape[2], dim=2) for t in (k, v))
        # One message holds a member's heads of all three.
        packed = torch.cat([torch.unflatten(t, 2, (size, -1)) for t in (q, k, v)], dim=3)
        traded = self._trade(packed.movedim(2, 0), group).movedim(0, 1).flatten(1, 2)
        num_kv = k.shape[2] // size
        out = whole_attention(*torch.split(traded, [num_heads // size, num_kv, num_kv], dim=2))
        back = self._trade(torch.unflatten(out, 1, (size, -1)).movedim(1, 0), group)
        return back.movedim(0, 2).flatten(2, 3)

    def _trade(self, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        """[members, ...] -> [members, ...]: member i gets [i]."""
        return all_to_all(x, None, None, group, self._recorder, AXIS)
