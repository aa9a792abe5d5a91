"""What one rank did in a step: its compute actions, and its collectives with the waits for them.

A collective is three moments: issued, wait begun, wait ended. DTensor issues functional
collectives, whose wait may come much later, when an operator first touches the result; both go
through the functions of `torch.ops._c10d_functional`, which an active recorder replaces by timed
ones. Our own are started by methods of `Recorder`, which return the wait; an exchange of messages
with neighbours counts as one collective. The k-th collective of an axis is the same one on every
rank of its group, because the ranks of a group run the same program.

Times are `time.perf_counter()`, which on Linux is CLOCK_MONOTONIC: one clock for all processes of
a host. On an accelerator an action is timed with its device synchronised before and after;
collective waits there are those of the host, which does not block, and say little.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

now = time.perf_counter
Wait = Callable[[], None]
"""Blocks until a collective is done."""

_COLLECTIVES = (
    "all_reduce",
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
    "all_to_all_single",
    "broadcast",
)


class _Timed:
    """A replaced operator: calls go to `call`, every other attribute is the operator's own."""

    def __init__(self, op: Any, call: Callable[..., Any]) -> None:
        self._op = op
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._op, name)


class Recorder:
    """Collects actions and collectives of one rank; use as `with recorder.active(): ...`."""

    def __init__(self, axis_of_group: dict[str, str] | None = None) -> None:
        """`axis_of_group`: name of a process group -> axis; other groups go by their own name."""
        self._axis_of_group = axis_of_group or {}
        self._synchronise = torch.cuda.is_available()
        self.doing: tuple[str, int, int] = ("", -1, -1)
        """The action under way: op, stage, micro-batch."""
        self._on = False
        self._reset()

    def _reset(self) -> None:
        self._actions: list[list[Any]] = []
        self._collectives: list[list[Any]] = []
        self._count: dict[str, int] = {}
        self._pending: dict[int, list[Any]] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Record until the block ends; the process's operators are its own again afterwards."""
        space: Any = torch.ops._c10d_functional
        saved = {name: getattr(space, name) for name in (*_COLLECTIVES, "wait_tensor")}
        for name in _COLLECTIVES:
            setattr(space, name, _Timed(saved[name], self._issue(saved[name])))
        space.wait_tensor = _Timed(saved["wait_tensor"], self._wait(saved["wait_tensor"]))
        self._on = True
        try:
            yield
        finally:
            self._on = False
            for name, op in saved.items():
                setattr(space, name, op)

    def _open(self, axis: str, issued: float) -> list[Any]:
        k = self._count.get(axis, 0)
        self._count[axis] = k + 1
        row = [axis, k, issued, None, None]
        self._collectives.append(row)
        return row

    def _issue(self, op: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            issued = now()
            result = op(*args, **kwargs)
            group = kwargs.get("group_name", args[-1])
            name = group if isinstance(group, str) else group.group_name
            row = self._open(self._axis_of_group.get(name, name), issued)
            self._pending[result.untyped_storage().data_ptr()] = row
            return result

        return call

    def _wait(self, op: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(tensor: Tensor) -> Tensor:
            row = self._pending.pop(tensor.untyped_storage().data_ptr(), None)
            if row is None:  # waited for already: returns at once
                return op(tensor)
            row[3] = now()
            result = op(tensor)
            row[4] = now()
            return result

        return call

    def all_reduce(self, tensor: Tensor, group: dist.ProcessGroup, axis: str) -> Wait:
        """Start summing `tensor` in place over `group`; call the result to wait for it."""
        return self._start(axis, lambda: [dist.all_reduce(tensor, group=group, async_op=True)])

    def all_gather(
        self, output: Tensor, tensor: Tensor, group: dist.ProcessGroup, axis: str
    ) -> Wait:
        """Start filling `output` [members * rows, ...] with the members' `tensor` [rows, ...]."""
        return self._start(
            axis,
            lambda: [dist.all_gather_single(output, tensor, group=group, async_op=True)],
        )

    def reduce_scatter(
        self, output: Tensor, tensor: Tensor, group: dist.ProcessGroup, axis: str
    ) -> Wait:
        """Start summing `tensor` [members * rows, ...]; `output` [rows, ...] is this member's."""
        return self._start(
            axis,
            lambda: [dist.reduce_scatter_single(output, tensor, group=group, async_op=True)],
        )

    def all_to_all(
        self,
        output: Tensor,
        tensor: Tensor,
        output_splits: list[int] | None,
        input_splits: list[int] | None,
        group: dist.ProcessGroup,
        axis: str,
    ) -> Wait:
        """Start sending `input_splits[i]` rows of `tensor` to member i, and filling `output` with
        `output_splits[i]` rows of its; None: equal parts."""
        return self._start(
            axis,
            lambda: [
                dist.all_to_all_single(
                    output, tensor, output_splits, input_splits, group=group, async_op=True
                )
            ],
        )

    def exchange(self, ops: list[dist.P2POp], axis: str) -> Wait:
        """Start sends and receives, all of one group, as one row."""
        return self._start(axis, lambda: dist.batch_isend_irecv(ops))

    def _start(self, axis: str, issue: Callable[[], list[Any]]) -> Wait:
        row = self._open(axis, now()) if self._on else None
        works = issue()

        def wait() -> None:
            begun = now()
            for work in works:
                work.wait()
            if row is not None:
                row[3], row[4] = begun, now()

        return wait

    @contextlib.contextmanager
    def action(self, op: str, stage: int, micro_batch: int) -> Iterator[None]:
        """One computed interval."""
        start = self.moment()
        self.doing = (op, stage, micro_batch)
        yield
        if self._on:
            self._actions.append([op, stage, micro_batch, start, self.moment()])

    def moment(self) -> float:
        """Now, with the accelerator's work so far done."""
        if self._synchronise and self._on:
            torch.cuda.synchronize()
        return now()

    def drain(self) -> dict[str, list[list[Any]]]:
        """Rows since the last call: `actions` [op, stage, micro-batch, start, end] and
        `collectives` [axis, k, issued, wait_start, wait_end] (None where nobody waited)."""
        rows = {"actions": self._actions, "collectives": self._collectives}
        self._reset()
        return rows
