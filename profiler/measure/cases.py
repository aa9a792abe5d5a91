"""What there is to measure: the list of cases, and what each of them gives.

A case is the unit of the journal: it is measured as a whole, and not again once its result is
written. Its name is stable (`dense tp2 mbs4`, `p2p 0,1`, `sharing 3`), so that a journal can be
read back by another process.
"""

from collections.abc import Iterator
from itertools import product
from typing import Annotated, Literal

from annotated_types import Gt

from profiler.codec import record
from profiler.errors import UserError
from profiler.job import Precision
from profiler.model import BlockKind, ModelSpec, NotNegative, Positive
from profiler.profile import (
    BlockEntry,
    Environment,
    ExecutorEntry,
    ProfiledBlock,
    SharingEntry,
    TransferEntry,
    TransferOp,
)

P2P_SIZES = (1 << 10, 1 << 16, 1 << 20, 1 << 23)
"""Bytes of the point-to-point messages."""
COLLECTIVE_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 22, 1 << 24)
"""Bytes of the whole tensor of a collective."""
COLLECTIVES: tuple[TransferOp, ...] = ("all_reduce", "all_gather", "reduce_scatter")
"""Of every model; those with experts exchange tokens besides."""


@record
class ProfileInputs:
    """All that the measured figures depend on."""

    model: ModelSpec
    seq_len: Positive
    precision: Precision
    micro_batches: tuple[Positive, ...]
    tp_degrees: tuple[Positive, ...]
    num_processes: Positive
    memory_bytes: Positive
    """Memory that one process may fill; a block that needs more is out of memory."""
    budget_s: Annotated[float, Gt(0)]
    """Time the measuring should take, start-up apart; cases share it by weight."""
    environment: Environment


NUM_PASSES = 3
"""Times that every block is measured, with all the others in between."""


@record
class BlockCase:
    """One block on the first `tp` ranks, in one of several passes over all blocks."""

    block: ProfiledBlock
    tp: Positive
    micro_batch: Positive
    number: NotNegative = 0
    """Of the pass."""

    @property
    def name(self) -> str:
        """Stable name, for the journal and for people."""
        return f"{self.block} tp{self.tp} mbs{self.micro_batch} pass {self.number + 1}"

    @property
    def weight(self) -> float:
        """Share of the time budget, relative to other cases."""
        return {"embed": 1.0, "head": 2.0}.get(self.block, 8.0) / NUM_PASSES


@record
class TransferCase:
    """One operation among `ranks` at several sizes."""

    op: TransferOp
    ranks: tuple[int, ...]
    sizes: tuple[Positive, ...]

    @property
    def name(self) -> str:
        """Stable name, for the journal and for people."""
        return f"{self.op} {','.join(str(r) for r in self.ranks)}"

    @property
    def weight(self) -> float:
        """Share of the time budget, relative to other cases."""
        return 1.0 if self.op == "p2p" else 2.0


@record
class SharingCase:
    """`active` ranks of the host compute at once, in tensor-parallel groups of `tp`."""

    tp: Positive
    active: Positive

    @property
    def name(self) -> str:
        """Stable name, for the journal and for people."""
        return f"sharing tp{self.tp} {self.active}"

    @property
    def weight(self) -> float:
        """Share of the time budget, relative to other cases."""
        return 1.0 if self.active == self.tp else 12.0


@record
class ExecutorCase:
    """The pipeline executor between the first two ranks."""

    @property
    def name(self) -> str:
        """Stable name, for the journal and for people."""
        return "executor 0,1"

    @property
    def weight(self) -> float:
        """Share of the time budget, relative to other cases."""
        return 2.0


Case = BlockCase | TransferCase | SharingCase | ExecutorCase


@record
class CaseResult:
    """Entries that one case adds to the profile; `oom` of a transfer or of sharing adds none."""

    status: Literal["ok", "oom"] = "ok"
    blocks: tuple[BlockEntry, ...] = ()
    transfers: tuple[TransferEntry, ...] = ()
    sharing: tuple[SharingEntry, ...] = ()
    executor: ExecutorEntry | None = None


def check_tp_degrees(model: ModelSpec, seq_len: int, num_processes: int, tp: int) -> None:
    """Raise `UserError` where tensor parallelism of this degree cannot be run at all."""
    if tp > num_processes:
        raise UserError(
            f"tensor-parallel degree {tp} needs {tp} processes, and there are {num_processes}",
            hint="start more processes or leave the degree out",
        )
    widths = (
        ("columns of the feed-forward network", model.ffn_hidden_size, model.num_dense_layers),
        ("columns of an expert", model.expert_width, model.num_moe_layers),
        ("columns of the shared experts", model.shared_ffn_hidden_size, model.num_moe_layers),
    )
    for what, size in (
        ("heads", model.num_heads),
        ("key/value heads", model.num_kv_heads),
        ("tokens of a sequence", seq_len),
        ("rows of the vocabulary", model.vocab_size),
        *((what, width) for what, width, layers in widths if layers),
    ):
        if size % tp:
            raise UserError(
                f"tensor-parallel degree {tp} does not divide the {size} {what} of `{model.name}`",
                hint="leave the degree out",
            )


def case_list(inputs: ProfileInputs) -> tuple[Case, ...]:
    """All cases, the passes over the blocks apart from each other; micro-batches ascend, so that
    memory runs out at the largest."""
    return (
        *_blocks(inputs, 0),
        *_transfers(inputs),
        *_blocks(inputs, 1),
        *_sharing(inputs),
        *([ExecutorCase()] if inputs.num_processes > 1 else []),
        *_blocks(inputs, 2),
    )


def _blocks(inputs: ProfileInputs, number: int) -> Iterator[Case]:
    kinds: tuple[BlockKind, ...] = ("embed", *inputs.model.layer_kinds, "head")
    sizes = sorted(set(inputs.micro_batches))
    for tp, kind in product(sorted(set(inputs.tp_degrees)), kinds):
        for size in sizes:
            yield BlockCase(block=kind, tp=tp, micro_batch=size, number=number)
    if inputs.model.num_moe_layers:
        for size in sizes:
            yield BlockCase(block="experts", tp=1, micro_batch=size, number=number)


def _transfers(inputs: ProfileInputs) -> Iterator[Case]:
    world = inputs.num_processes
    exchange: tuple[TransferOp, ...] = ("all_to_all",) if inputs.model.num_moe_layers else ()
    pairs = [(a, b) for a in range(world) for b in range(world) if a != b]
    for pair in pairs:
        yield TransferCase(op="p2p", ranks=pair, sizes=P2P_SIZES)
    for size, op in product(group_sizes(world), COLLECTIVES + exchange):
        yield TransferCase(op=op, ranks=tuple(range(size)), sizes=COLLECTIVE_SIZES)


def _sharing(inputs: ProfileInputs) -> Iterator[Case]:
    world = inputs.num_processes
    for tp in sorted(set(inputs.tp_degrees)):
        for active in range(tp, world + 1, tp):
            yield SharingCase(tp=tp, active=active)


def group_sizes(world: int) -> tuple[int, ...]:
    """Sizes of the groups whose collectives are measured: powers of two, and all ranks."""
    powers = [2**i for i in range(1, world.bit_length()) if 2**i <= world]
    return tuple(sorted({*powers, world} - {1}))


def case_seconds(cases: tuple[Case, ...], budget_s: float) -> dict[str, float]:
    """Name of a case -> its share of the budget in seconds."""
    total = sum(case.weight for case in cases)
    return {case.name: budget_s * case.weight / total for case in cases}


def smaller_is_oom(case: Case, done: dict[str, CaseResult]) -> bool:
    """This or a smaller micro-batch of the block did not fit in an earlier case."""
    if not isinstance(case, BlockCase):
        return False
    return any(
        entry.status == "oom"
        for result in done.values()
        for entry in result.blocks
        if (entry.block, entry.tp) == (case.block, case.tp)
        and entry.micro_batch <= case.micro_batch
    )


def oom_result(case: Case) -> CaseResult:
    """Result of a case that ran out of memory."""
    if not isinstance(case, BlockCase):
        return CaseResult(status="oom")
    entry = BlockEntry(
        block=case.block,
        tp=case.tp,
        micro_batch=case.micro_batch,
        source="measured",
        status="oom",
    )
    return CaseResult(status="oom", blocks=(entry,))
