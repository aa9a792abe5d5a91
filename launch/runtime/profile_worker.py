"""One process of `meshwright profile`, started by torchrun: measures the cases the journal does
not have yet.

All ranks walk through the cases together; those that a case does not concern wait, blocked, in the
exchange that ends it. Rank 0 writes the journal. A rank that runs out of memory alone in its case
says so and goes on; in a group its peers hang in a collective, so it writes the result itself and
leaves, and the supervisor starts all ranks again.
"""

import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

gc.disable()  # what imports make stays: to look for garbage on the way takes a third of the time

import torch
import torch.distributed as dist

from launch.runtime.profile_block import block_setup, layer_thunk
from launch.runtime.profile_executor import measure_executor
from launch.scheduler.orphans import end_with_parent
from profiler.measure import blocks, links, sharing
from profiler.measure.cases import (
    BlockCase,
    Case,
    CaseResult,
    ExecutorCase,
    ProfileInputs,
    SharingCase,
    TransferCase,
    case_list,
    case_seconds,
    group_sizes,
    oom_result,
    smaller_is_oom,
)
from profiler.measure.journal import Journal
from profiler.measure.timer import Agree, Limits
from profiler.profile import BlockEntry

gc.freeze()
gc.enable()

OOM_EXIT = 17
_PATIENCE = timedelta(hours=12)


class Worker:
    """This rank, its groups and its inputs."""

    def __init__(self, inputs: ProfileInputs, journal: Journal) -> None:
        self.inputs, self.journal = inputs, journal
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.device = _device()
        self.groups = {
            size: dist.new_group(list(range(size)), timeout=_PATIENCE)
            for size in group_sizes(self.world)
        }
        self.tp_groups = self._consecutive_groups(inputs.tp_degrees)
        self.hosts: list[str] = [""] * self.world
        dist.all_gather_object(self.hosts, socket.gethostname())
        cases = case_list(inputs)
        self.seconds = case_seconds(cases, inputs.budget_s)

    def _consecutive_groups(self, degrees: tuple[int, ...]) -> dict[int, dist.ProcessGroup]:
        """Degree -> this rank's group of that many consecutive ranks; a degree of 1 has none."""
        mine = {}
        for size in sorted({*degrees} - {1}):
            for first in range(0, self.world - size + 1, size):
                ranks = list(range(first, first + size))
                group = dist.new_group(ranks, timeout=_PATIENCE)
                if self.rank in ranks:
                    mine[size] = group
        return mine

    def run(self, case: Case) -> CaseResult:
        """Measure one case; what rank 0 gets is the result. Every rank must call it."""
        mine: CaseResult | None = None
        if self.rank in self.members(case):
            try:
                mine = self._measure(case)
            except (RuntimeError, MemoryError) as e:
                if not is_out_of_memory(e):
                    raise
                mine = oom_result(case)
                if len(self.members(case)) > 1:
                    self.journal.end(case.name, mine)
                    os._exit(OOM_EXIT)
        everyone: list[CaseResult | None] = [None] * self.world
        dist.all_gather_object(everyone, mine)
        return next((result for result in everyone if result is not None), CaseResult())

    def members(self, case: Case) -> tuple[int, ...]:
        """Ranks that take part."""
        if isinstance(case, TransferCase):
            return case.ranks
        if isinstance(case, ExecutorCase):
            return (0, 1)
        return tuple(range(case.tp if isinstance(case, BlockCase) else self.world))

    def _measure(self, case: Case) -> CaseResult | None:
        if isinstance(case, BlockCase):
            return self._block(case)
        if isinstance(case, TransferCase):
            return self._transfer(case)
        return self._sharing(case) if isinstance(case, SharingCase) else self._executor()

    def _limits(self, case: Case) -> Limits:
        return Limits(budget_s=self.seconds[case.name])

    def _block(self, case: BlockCase) -> CaseResult | None:
        group = self.tp_groups.get(case.tp)
        setup = block_setup(case, self.inputs, group, self.device)
        times = blocks.measure_block(setup, self._limits(case), self.inputs.memory_bytes)
        if self.rank:
            return None
        entry = BlockEntry(
            block=case.block,
            tp=case.tp,
            micro_batch=case.micro_batch,
            source="measured",
            forward=times.forward,
            input_grad=times.input_grad,
            weight_grad=times.weight_grad,
            optimizer=times.optimizer,
            bucket=times.bucket,
            forward_collective_s=times.forward_collective_s,
            backward_collective_s=times.backward_collective_s,
            saved_bytes=times.saved_bytes,
            peak_bytes=times.peak_bytes,
        )
        return CaseResult(blocks=(entry,))

    def _transfer(self, case: TransferCase) -> CaseResult | None:
        limits = self._limits(case)
        scope = links.scope_of([self.hosts[r] for r in case.ranks])
        if case.op == "p2p":
            source, target = case.ranks
            pair = (source, target)
            world = dist.group.WORLD
            assert world is not None
            agree = links.sender_decides(world, pair, self.device)
            times = links.measure_p2p(world, pair, case.sizes, limits, self.device, agree)
            if self.rank != source:
                return None
        else:
            group = self.groups[len(case.ranks)]
            times = links.measure_collective(
                case.op,
                case.sizes,
                limits,
                group,
                self.device,
                links.leader_decides(group, self.device),
                links.mean_over(group, self.device),
            )
            if self.rank:
                return None
        return CaseResult(transfers=links.transfer_entries(case.op, case.ranks, scope, times))

    def _host(self) -> sharing.Host:
        def gather(value: float) -> list[float]:
            everyone = [torch.zeros(1, device=self.device) for _ in range(self.world)]
            dist.all_gather(everyone, torch.tensor([value], device=self.device))
            return [float(x) for x in everyone]

        return sharing.Host(rank=self.rank, barrier=lambda: dist.barrier(), gather=gather)

    def _sharing(self, case: SharingCase) -> CaseResult | None:
        group = self.tp_groups.get(case.tp)
        thunk: Callable[[], object] = _nothing
        agree: Agree = bool
        if self.rank < case.active:
            sizes = sorted(self.inputs.micro_batches)
            kind, middle = self.inputs.model.layer_kinds[-1], sizes[len(sizes) // 2]
            layer = BlockCase(block=kind, tp=case.tp, micro_batch=middle)
            thunk = layer_thunk(layer, self.inputs, group, self.device)
            if group is not None:
                agree = links.leader_decides(group, self.device)
        seconds = self.seconds[case.name]
        entry = sharing.measure_sharing(thunk, case.tp, case.active, seconds, self._host(), agree)
        return None if entry is None else CaseResult(sharing=(entry,))

    def _executor(self) -> CaseResult | None:
        smallest = min(self.inputs.micro_batches)
        entry = measure_executor(smallest, self.inputs, self.groups[2], self.device)
        return None if entry is None else CaseResult(executor=entry)


def _nothing() -> None:
    """What a rank computes that takes no part."""


def is_out_of_memory(error: BaseException) -> bool:
    """The allocator, or Python, could not get memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in ("can't allocate memory", "cannot allocate", "bad_alloc"))


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def _limit_memory(memory_bytes: int) -> None:
    """Let allocations beyond a rank's share of the host fail, before the kernel kills for them."""
    with Path("/proc/self/status").open(encoding="ascii") as status:
        data = next(line for line in status if line.startswith("VmData:"))
    limit = int(data.split()[1]) * 1024 + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def _supervised() -> bool:
    """The process that started all this still lives; without it nobody reads the result."""
    return Path(f"/proc/{os.environ['MESHWRIGHT_SUPERVISOR']}").exists()


def measure_all(journal: Journal) -> None:
    """Measure what the journal does not have; every rank of the initialised world must call it."""
    inputs = journal.inputs()
    done = journal.finished()
    worker = Worker(inputs, journal)
    gc.freeze()
    dist.barrier()  # nobody writes before all have read
    for case in case_list(inputs):
        if case.name in done:
            continue
        leads = worker.rank == 0
        if leads and not _supervised():
            raise SystemExit("the supervisor is gone")
        if smaller_is_oom(case, done):
            result = oom_result(case)
        else:
            if leads:
                journal.start(case.name)
            gc.collect()  # not during timing, and not before each of the many timings of a case
            result = worker.run(case)
        done[case.name] = result
        if leads:
            journal.end(case.name, result)


def main() -> None:
    """`python -m launch.runtime.profile_worker FOLDER`, under torchrun."""
    end_with_parent(signal.SIGKILL)
    journal = Journal(Path(sys.argv[1]))
    torch.set_num_threads(1)
    device = _device()
    dist.init_process_group("gloo" if device.type == "cpu" else "nccl", timeout=_PATIENCE)
    if device.type == "cpu":
        _limit_memory(journal.inputs().memory_bytes)
    measure_all(journal)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
