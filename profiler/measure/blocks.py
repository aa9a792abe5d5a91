"""One block on one rank, as a training step runs it: its times, its collectives' part, its memory.

Layers are run as a chain of copies with weights of their own, forward through all and backward in
reverse, like the consecutive layers of a stage: hammering one layer would find its weights in the
cache. AdamW's state exists, gradients accumulate into existing ones, and memory is warm. Times are
those of the chain divided by its length.

    weight gradient = max(0, whole backward - gradient of the input alone), per repetition

where the gradient of the input comes from a second forward of the same repetition, and is capped
at the whole backward, so that both always add up to it. The sum is what counts for a schedule that
does not split the backward; the split is as noisy as a difference is.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from profiler.measure import memory
from profiler.measure.timer import Agree, Limits, collect, elapsed_s, sustained
from profiler.profile import Timing

EVICT_BYTES = 64 * 2**20
"""Touched before each optimizer step and copy: in training they find nothing in the caches."""
SIDE_SHARE = 0.1
"""Part of a case's time that goes to the optimizer step, and to the copy into buckets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSetup:
    """What is needed to run one kind of block on this rank."""

    build: Callable[[], nn.Module]
    """A new block with weights of its own, on the device, sharded over the group."""
    make_input: Callable[[], Tensor]
    """Local input: ids, or hidden [micro_batch, seq / tp, hidden] that require a gradient."""
    forward: Callable[[nn.Module, Tensor], Tensor]
    """Output [micro_batch, seq / tp, hidden]; of the head, the scalar loss."""
    make_update: Callable[[Sequence[nn.Module]], Callable[[], object]]
    """Takes the gradients that the blocks hold and returns the optimizer's step over them."""
    make_bucket: Callable[[Sequence[nn.Module]], Callable[[], object]]
    """Returns the copy of such gradients into flat buckets."""
    wait: Callable[[Tensor], object]
    """Block until a tensor that a collective may still be filling is there."""
    context: Callable[[], contextlib.AbstractContextManager[None]]
    """Entered around forward and backward (loss parallelism)."""
    collective_s: Callable[[], float]
    """Seconds this rank has spent blocked in collectives since it started."""
    chained: bool
    """The output of one copy is the input of the next."""
    max_copies: int
    device: torch.device
    agree: Agree
    reduce: Callable[[list[tuple[float, ...]]], list[tuple[float, ...]]]
    """Element-wise mean of equally many rows over the ranks of the group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTimes:
    """Result of one block."""

    forward: Timing
    input_grad: Timing
    weight_grad: Timing
    optimizer: Timing
    bucket: Timing
    forward_collective_s: float
    backward_collective_s: float
    saved_bytes: int
    peak_bytes: int


def measure_block(setup: BlockSetup, limits: Limits, memory_bytes: int) -> BlockTimes:
    """Measure memory with one copy, then times with as many as fit in half of `memory_bytes`."""
    first = setup.build()
    saved, peak = measure_memory(setup, first)
    num_copies = _copies(setup, first, saved, memory_bytes)
    blocks = [first, *(setup.build() for _ in range(num_copies - 1))]
    _train_once(setup, blocks)
    bucket = setup.make_bucket(blocks)
    update = setup.make_update(blocks)
    update()
    _train_once(setup, blocks)
    long = dataclasses.replace(
        limits, budget_s=limits.budget_s * (1 - 2 * SIDE_SHARE), warmup=1, check_every=1
    )
    steps = collect(lambda: _sample(setup, blocks), long, setup.agree)
    forward, whole, inner, forward_wait, backward_wait = zip(*setup.reduce(steps), strict=True)
    short = dataclasses.replace(limits, budget_s=limits.budget_s * SIDE_SHARE, warmup=1)

    evict = torch.zeros(EVICT_BYTES // 4, device=setup.device)

    def apart(work: Callable[[], object]) -> Timing:
        def cold() -> tuple[float]:
            evict.add_(1)
            return (elapsed_s(setup.device, work) / num_copies,)

        rows = collect(cold, short, setup.agree)
        return sustained([row[0] for row in setup.reduce(rows)])

    def part(of: Sequence[float], waits: Sequence[float]) -> float:
        """Seconds in collectives, as they are part of all repetitions together."""
        return sustained(of).median_s * min(1.0, sum(waits) / max(sum(of), 1e-12))

    capped = [min(w, i) for w, i in zip(whole, inner, strict=True)]
    rest = [w - i for w, i in zip(whole, capped, strict=True)]
    return BlockTimes(
        forward=sustained(forward),
        input_grad=sustained(capped),
        weight_grad=sustained(rest),
        optimizer=apart(update),
        bucket=apart(bucket),
        forward_collective_s=part(forward, forward_wait),
        backward_collective_s=part(whole, backward_wait),
        saved_bytes=saved,
        peak_bytes=peak,
    )


def _copies(setup: BlockSetup, block: nn.Module, saved_bytes: int, memory_bytes: int) -> int:
    """Copies whose weights, gradients, optimizer state and activations fit in half the memory."""
    weights = sum(
        memory.local(p).numel() * memory.local(p).element_size() for p in block.parameters()
    )
    # weight, gradient and two moments of AdamW, and the gradients that the optimizer works on
    each = 5 * weights + saved_bytes
    return max(1, min(setup.max_copies, memory_bytes // 2 // max(each, 1)))


def _outputs(setup: BlockSetup, blocks: Sequence[nn.Module], first: Tensor) -> Tensor:
    value = first
    for block in blocks:
        value = setup.forward(block, value)
    setup.wait(value)
    return value


def _runs(setup: BlockSetup, blocks: Sequence[nn.Module]) -> Iterator[Sequence[nn.Module]]:
    """The copies that run as one graph: all of a chain, else each alone."""
    return iter([blocks] if setup.chained else [[block] for block in blocks])


def _gradient(output: Tensor) -> Tensor | None:
    return torch.full_like(output, 1e-3) if output.dim() else None


def _train_once(setup: BlockSetup, blocks: Sequence[nn.Module]) -> None:
    with setup.context():
        for run in _runs(setup, blocks):
            output = _outputs(setup, run, setup.make_input())
            torch.autograd.backward(output, _gradient(output))


def _sample(setup: BlockSetup, blocks: Sequence[nn.Module]) -> tuple[float, ...]:
    """One repetition: seconds per copy of (forward, backward, input gradient, and the waits)."""
    totals = [0.0] * 5
    with setup.context():
        for run in _runs(setup, blocks):
            for i, value in enumerate(_one_run(setup, run)):
                totals[i] += value
    return tuple(value / len(blocks) for value in totals)


def _one_run(setup: BlockSetup, run: Sequence[nn.Module]) -> tuple[float, ...]:
    held: list[Tensor] = []
    device = setup.device

    def forward(first: Tensor) -> tuple[float, float]:
        before = setup.collective_s()
        held.clear()
        spent = elapsed_s(device, lambda: held.append(_outputs(setup, run, first)))
        return spent, setup.collective_s() - before

    def timed(work: Callable[[Tensor, Tensor | None], object]) -> tuple[float, float]:
        output = held.pop()
        gradient = _gradient(output)
        before = setup.collective_s()
        spent = elapsed_s(device, lambda: work(output, gradient))
        return spent, setup.collective_s() - before

    def whole(output: Tensor, gradient: Tensor | None) -> None:
        torch.autograd.backward(output, gradient)
        if first.grad is not None:
            setup.wait(first.grad)

    def inner(output: Tensor, gradient: Tensor | None) -> None:
        setup.wait(torch.autograd.grad(output, again, gradient)[0])

    first = setup.make_input()
    forward_s, forward_wait = forward(first)
    whole_s, whole_wait = timed(whole)
    if not first.requires_grad:
        return forward_s, whole_s, 0.0, forward_wait, whole_wait
    again = setup.make_input()
    again_s, again_wait = forward(again)
    inner_s, _ = timed(inner)
    mean_forward, mean_wait = (forward_s + again_s) / 2, (forward_wait + again_wait) / 2
    return mean_forward, whole_s, inner_s, mean_wait, whole_wait


def measure_memory(setup: BlockSetup, block: nn.Module) -> tuple[int, int]:
    """(bytes kept from forward to backward, peak bytes above parameters and their gradients)."""
    with setup.context():
        saved = memory.saved_bytes(lambda: _outputs(setup, [block], setup.make_input()))
    _train_once(setup, [block])  # gradients exist from here on
    peak = memory.peak_bytes(lambda: _train_once(setup, [block]), setup.device)
    return saved, max(peak, saved)
