"""Rows exchanged between the members of a group, with gradients.

Everything is one all-to-all. Its gradient is the all-to-all back: what came from member i returns
to it. The uneven gather sends a member's rows to all; the uneven reduce-scatter, its transpose,
sends every member its rows and adds what arrives. gloo has neither of them as a collective.

A member's backward is a collective too: a member that got no rows must still let the (empty)
result take part in its loss, or the others wait for it. `group` is None where its size is 1.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launch.runtime.record import Recorder

Splits = list[int] | None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        output_splits: Splits,
        input_splits: Splits,
        group: dist.ProcessGroup,
        recorder: Recorder,
        axis: str,
    ) -> Tensor:
        ctx.back = (input_splits, output_splits, group, recorder, axis)
        num_rows = x.shape[0] if output_splits is None else sum(output_splits)
        output = x.new_empty((num_rows, *x.shape[1:]))
        x = x.contiguous()
        recorder.all_to_all(output, x, output_splits, input_splits, group, axis)()
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return all_to_all(grads[0], *ctx.back), None, None, None, None, None


def all_to_all(
    x: Tensor,
    output_splits: Splits,
    input_splits: Splits,
    group: dist.ProcessGroup | None,
    recorder: Recorder,
    axis: str,
) -> Tensor:
    """Rows of the members in their order: `output_splits[i]` of member i, which gets
    `input_splits[i]` rows of `x` [sum(input_splits), ...]. None: equal parts."""
    if group is None or group.size() == 1:
        return x
    apply: Callable[..., Tensor] = _AllToAll.apply
    return apply(x, output_splits, input_splits, group, recorder, axis)


def gather_uneven(
    x: Tensor, counts: list[int], group: dist.ProcessGroup | None, recorder: Recorder, axis: str
) -> Tensor:
    """[sum(counts), ...]: the rows of all members, of which member i has `counts[i]`.

    Backward sums the members' gradients of the rows and leaves each its own.
    """
    if group is None or group.size() == 1:
        return x
    own = [x.shape[0]] * group.size()
    copies = x.unsqueeze(0).expand(group.size(), *x.shape).flatten(0, 1)
    return all_to_all(copies, counts, own, group, recorder, axis)


def reduce_scatter_uneven(
    x: Tensor, counts: list[int], group: dist.ProcessGroup | None, recorder: Recorder, axis: str
) -> Tensor:
    """[counts[rank], ...]: this member's rows of the sum of all members' `x` [sum(counts), ...].

    Backward gathers the members' gradients.
    """
    if group is None or group.size() == 1:
        return x
    num_own = counts[group.rank()]
    parts = all_to_all(x, [num_own] * group.size(), counts, group, recorder, axis)
    return parts.view(group.size(), num_own, *x.shape[1:]).sum(0)
