"""Rows exchanged between the members of a group, with gradients.

Everything is one all-to-all. Its gradient is the all-to-all back: what came from member i returns
to it. The uneven gather sends a member's rows to all; the uneven reduce-scatter, its transpose,
sends every member its rows and adds what arrives. gloo has neither of them as a collective.

An exchange is two moments, its start and its arrival, each a node of autograd: what is computed
between them runs beside it. Backward meets them the other way round: the arrival's node starts the
exchange back, the start's node waits for it. Autograd runs the nodes that are ready from the last
made to the first, so backward overlaps what forward did, mirrored, in one order on all members.

A member's backward is a collective too: a member that got no rows must still let the (empty)
result take part in its loss, or the others wait for it. `group` is None where its size is 1.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launch.runtime.record import Recorder, Wait

Splits = list[int] | None


class _Exchange:
    """One exchange, which autograd sees as two nodes joined by an empty tensor."""

    def __init__(
        self,
        output_splits: Splits,
        input_splits: Splits,
        group: dist.ProcessGroup,
        recorder: Recorder,
        axis: str,
    ) -> None:
        self._splits, self._group = (output_splits, input_splits), group
        self._recorder, self._axis = recorder, axis
        self._under_way: tuple[Tensor, Wait] | None = None

    def start(self, x: Tensor, *, back: bool) -> None:
        """Send the rows of `x`; `back`: each to the member it came from."""
        arriving, leaving = reversed(self._splits) if back else self._splits
        num_rows = x.shape[0] if arriving is None else sum(arriving)
        output = x.new_empty((num_rows, *x.shape[1:]))
        wait = self._recorder.all_to_all(
            output, x.contiguous(), arriving, leaving, self._group, self._axis
        )
        self._under_way = output, wait

    def arrive(self) -> Tensor:
        """The rows for this member."""
        if self._under_way is None:
            raise RuntimeError("no exchange is under way")
        output, wait = self._under_way
        self._under_way = None
        wait()
        return output


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: _Exchange) -> Tensor:
        ctx.exchange = exchange
        exchange.start(x, back=False)
        return x.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.arrive(), None


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, started: Tensor, exchange: _Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.arrive()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.exchange.start(grads[0], back=True)
        return grads[0].new_empty(0), None


def start_all_to_all(
    x: Tensor,
    output_splits: Splits,
    input_splits: Splits,
    group: dist.ProcessGroup | None,
    recorder: Recorder,
    axis: str,
) -> Callable[[], Tensor]:
    """`all_to_all` under way: call the result, once, for the rows. Members start and await the
    exchanges of a group in the same order."""
    if group is None or group.size() == 1:
        return lambda: x
    exchange = _Exchange(output_splits, input_splits, group, recorder, axis)
    start: Callable[..., Tensor] = _Start.apply
    arrive: Callable[..., Tensor] = _Arrive.apply
    started = start(x, exchange)
    return lambda: arrive(started, exchange)


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
    return start_all_to_all(x, output_splits, input_splits, group, recorder, axis)()


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
