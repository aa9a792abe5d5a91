"""Costs of pipelines whose ranks are on unlike kinds of node: times of each kind, memory of each
rank.

Every pipeline rank has its mesh within one node group. Its layers take what they take there, its
gradients are reduced there, and it has room for as many layers as its own devices hold. A message
between two kinds takes what the slower of them needs for one between nodes.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from planner.analytic import software_coverage
from planner.bounds import lower_bound
from planner.chain import BlockTimes, exposed_s, number
from planner.config import ParallelConfig, Placement
from planner.layouts import Layouts
from planner.peak import Peaks, recipe_of, stage_peaks
from planner.plan import StageMemory
from planner.predict import memory_degrees, sizes_of, terms_of_step
from planner.prepared import Prepared
from planner.program import Program
from planner.room import totals
from planner.routed import EVEN, Routed, fullest_of
from planner.timing.inputs import constants_of, machine_of, plan_software, shape_of, split_of
from planner.timing.network import message_s
from planner.timing.quantities import Array, Constants, Machine, Num, Split
from planner.timing.step import Step, head_s, step_times
from planner.where import starts_of
from profiler.cluster import NodeGroup
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.profile import Profile
from solvers.partition import Stages
from solvers.unlike import partition_unlike

Kinds = tuple[int, ...]
"""Per pipeline rank, the position of its group in the cluster."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One node group: its rates and constants, and what a device of it can hold."""

    group: NodeGroup
    machine: Machine
    constants: Constants
    capacity_bytes: float
    start: int
    """First device."""
    routed: Routed = EVEN
    """What routing leaves to the fullest of its ranks."""

    @property
    def num_devices(self) -> int:
        """Devices of the group."""
        return self.group.num_nodes * self.group.devices_per_node


class MixedCosts:
    """Costs from the constants of an analytic profile of several node groups."""

    def __init__(self, model: ModelSpec, job: JobSpec, profile: Profile) -> None:
        software = profile.software
        if software is None or len(profile.group_constants) != len(profile.cluster.groups):
            raise ValueError("the profile has no constants of its node groups")
        self.model, self.job, self.profile = model, job, profile
        self.node = profile.cluster.groups[0]
        starts = starts_of(profile.cluster)
        self.kinds = tuple(
            Kind(
                group=group,
                machine=machine_of(group, profile.cluster.num_devices, job.precision),
                constants=constants_of(constants),
                capacity_bytes=group.device.memory_bytes * (1 - job.memory_reserve),
                start=start,
                routed=Routed(model.num_experts, profile.of_group(g).expert_loads),
            )
            for g, (group, constants, start) in enumerate(
                zip(profile.cluster.groups, profile.group_constants, starts, strict=False)
            )
        )
        on_kinds = (each for each in profile.expert_loads if each.group is not None)
        self._routed = Routed(model.num_experts, fullest_of(on_kinds))
        self.shape = shape_of(model, job.seq_len)
        self.software = plan_software(software, profile.cluster.groups[0].device)
        self.coverage = software_coverage(software.only, self.software)
        self._recipe, self._sizes = (
            recipe_of(software.recipe, job.precision),
            sizes_of(model, job.seq_len),
        )

    def times(self, kind: Kind, split: Split) -> tuple[Step, tuple[Num, ...]]:
        """(step, head) of layouts on one kind; of a step only what a layer or a rank takes
        matters."""
        hw, c = kind.machine, kind.constants
        if kind.routed.loads:
            ep, etp = (np.asarray(x, dtype=np.int64) for x in (split.ep, split.etp))
            split = dataclasses.replace(split, **kind.routed.quantities(ep, etp))
        with np.errstate(invalid="ignore", divide="ignore"):
            step = step_times(self.shape, split, hw, self.software, c)
        if not self.model.num_moe_layers:  # what follows the layers is one of them
            step = dataclasses.replace(step, moe=step.dense)
        return step, head_s(self.shape, split, hw, c)

    def rank_times(self, kind: Kind, split: Split, layers: Array) -> Step:
        """Steps of ranks that hold so many layers each: their reduction and update count."""
        shares = self.shape.num_layers / np.maximum(layers, 0.5)
        step, _ = self.times(kind, dataclasses.replace(split, pp=shares))
        return step

    def peaks(self, layouts: Layouts, layers: Array, one_micro_batch: bool = False) -> Peaks:
        """Of the first, a middle and the last rank; of one micro-batch in flight if asked."""
        m = np.maximum(layouts.num_microbatches(self.job), 1)
        m = np.ones_like(m) if one_micro_batch else m
        degrees = memory_degrees(layouts, m, self.software.sequence_parallel, self._routed)
        return stage_peaks(self._sizes, degrees, self._recipe, layers)

    def send_s(self, split: Split, one: Kind, other: Kind, distance: Num) -> Num:
        """A message between neighbouring ranks of the pipeline; between kinds, the slower's."""
        tokens = split.micro_batch * self.shape.seq_len / split.cp
        sequence = np.where(np.asarray(self.software.sequence_parallel) > 0, split.tp, 1.0)
        num_bytes = one.machine.element_bytes * tokens / sequence * self.shape.hidden
        away = distance if one is other else float("inf")
        return np.maximum(
            message_s(one.machine, one.constants, num_bytes, away),
            message_s(other.machine, other.constants, num_bytes, away),
        )

    def late(self, stage_ranks: Num, per_kind: Sequence[Num]) -> Num:
        """Factor of waiting for the slowest of the nodes; `per_kind`: pipeline ranks of each kind,
        with `stage_ranks` devices each."""
        nodes: Num = 0.0
        straggler: Num = 0.0
        for kind, count in zip(self.kinds, per_kind, strict=True):
            used = np.asarray(count) > 0
            nodes = nodes + count * stage_ranks / kind.group.devices_per_node
            straggler = np.maximum(straggler, np.where(used, kind.constants.straggler, 0.0))
        return 1 + straggler * np.log2(np.maximum(nodes, 1.0))

    def prepare(
        self, config: ParallelConfig, kinds: Kinds, stages: Stages | None = None
    ) -> Prepared | None:
        """The layout (1f1b, vpp 1) with its best split, or the one given; None where none fits."""
        layouts = Layouts.from_configs([config])
        split = split_of(layouts, self.job)
        timed = {g: self.times(self.kinds[g], split) for g in sorted(set(kinds))}
        blocks = {
            g: BlockTimes.of_layers(step.dense, step.moe, head) for g, (step, head) in timed.items()
        }
        if stages is None:
            stages = self._split(config, kinds, blocks)
        if stages is None:
            return None
        layers = Placement(stages=stages).layers_per_stage(self.model.num_layers)
        late = float(
            self.late(config.stage_ranks, [kinds.count(g) for g in range(len(self.kinds))])
        )
        held_up, hops = self._sends(config, kinds, split)
        sums = [
            [
                late * (extra * (i < 2) + sum(blocks[g].of(k)[i] for k in self.model.blocks[a:b]))
                for i in range(3)
            ]
            for g, (a, b), extra in zip(kinds, stages, held_up, strict=True)
        ]
        sync, update = self._reductions(kinds, split, np.array(layers, dtype=np.float64))
        base = max(float(self.kinds[g].constants.step_s) for g in set(kinds))
        program = Program(
            schedule="1f1b",
            num_microbatches=config.num_microbatches(self.job),
            forward_s=tuple(s[0] for s in sums),
            input_s=tuple(s[1] for s in sums),
            weight_s=tuple(s[2] for s in sums),
            send_forward_s=(*(late * hop for hop in hops), 0.0),
            send_backward_s=(0.0, *(late * hop for hop in hops)),
            head_s=(base,) * config.pp,
            bucket_s=(0.0,) * config.pp,
            sync_s=sync,
            optimizer_s=update,
        )
        talk = {g: _talks(step) for g, (step, _) in timed.items()}
        forward, backward = (
            tuple(
                late * sum(talk[g].get(kind, (0.0, 0.0))[i] for kind in self.model.blocks[a:b])
                for g, (a, b) in zip(kinds, stages, strict=True)
            )
            for i in (0, 1)
        )
        busiest = max(range(config.pp), key=lambda s: sum(sums[s]))
        g, (a, b) = kinds[busiest], stages[busiest]
        m = config.num_microbatches(self.job)
        step = dataclasses.replace(
            timed[g][0],
            exposed_send_s=2 * m * held_up[busiest],
            exposed_reduction_s=sync[busiest],
            update_s=update[busiest],
            base_s=base,
        )
        head = blocks[g].head if b == len(self.model.blocks) else (0.0, 0.0, 0.0)
        return Prepared(
            config=config,
            placement=Placement(stages=stages, devices=self.devices(config, kinds)),
            program=program,
            sharing=None,
            forward_collective_s=forward,
            backward_collective_s=backward,
            memory=self.memory(config, layers),
            bound_s=lower_bound(program, None),
            measured_share=0.0,
            groups=tuple(self.kinds[g].group for g in kinds),
            terms=terms_of_step(
                self.model.blocks[a:b], dataclasses.replace(config, pp=1), m, step, head, late
            ),
        )

    def fits(self, prepared: Prepared, kinds: Kinds) -> bool:
        """Every rank has room on its own devices."""
        return all(
            memory.total_bytes <= self.kinds[g].capacity_bytes
            for memory, g in zip(prepared.memory, kinds, strict=True)
        )

    def devices(self, config: ParallelConfig, kinds: Kinds) -> tuple[int, ...]:
        """Device of each rank: the first ones of each group, in the order of the pipeline."""
        each, free = config.stage_ranks, [kind.start for kind in self.kinds]
        found: list[int] = []
        for g in kinds:
            found += range(free[g], free[g] + each)
            free[g] += each
        return tuple(found)

    def most_layers(self, config: ParallelConfig, kinds: Kinds) -> list[int]:
        """Layers that each rank has room for; -1: not even for none."""
        num, pp = self.model.num_layers, config.pp
        counts = np.tile(np.arange(num + 1.0), pp)
        held = _of_roles(totals(self._stage_peaks(config, counts, num + 1)), pp, num + 1)
        room = np.array([self.kinds[g].capacity_bytes for g in kinds])
        return [int(n) - 1 for n in (held <= room[:, None]).sum(axis=1)]

    def memory(self, config: ParallelConfig, layers: tuple[int, ...]) -> tuple[StageMemory, ...]:
        """Per pipeline rank."""
        peaks = self._stage_peaks(config, np.array(layers, dtype=np.float64), 1)

        def part(array: Array) -> list[int]:
            full = np.broadcast_to(array, (3, config.pp))
            return [int(x) for x in _of_roles(full, config.pp, 1)[:, 0]]

        parts = zip(
            *map(part, (peaks.weights, peaks.grads, peaks.optimizer, peaks.activations,
                        peaks.buffers, peaks.transient)),
            strict=True,
        )  # fmt: skip
        return tuple(
            StageMemory(
                weight_bytes=w,
                grad_bytes=g,
                optimizer_bytes=o,
                activation_bytes=a,
                buffer_bytes=b,
                workspace_bytes=t,
            )
            for w, g, o, a, b, t in parts
        )

    def _stage_peaks(self, config: ParallelConfig, layers: Array, repeats: int) -> Peaks:
        """Peaks of ranks 0 .. pp - 1, each `repeats` times; see `_of_roles`.

        Rank s of p has p - s micro-batches in flight, as rank 1 of p - s + 1 has.
        """
        depth = [config.pp if s in (0, config.pp - 1) else config.pp - s + 1
                 for s in range(config.pp)]  # fmt: skip
        one = Layouts.from_configs([config])
        layouts = one.take(np.zeros(len(layers), dtype=np.int64))
        deep = np.repeat(np.array(depth, dtype=np.int32), repeats)
        return self.peaks(dataclasses.replace(layouts, pp=deep), np.stack([layers] * 3))

    def _split(
        self, config: ParallelConfig, kinds: Kinds, times: dict[int, BlockTimes]
    ) -> Stages | None:
        """The least maximum of ranks' work, then the least work of all; None where none fits."""
        blocks = self.model.blocks
        cost = {g: [sum(t.of(kind)) for kind in blocks] for g, t in times.items()}
        layer = [float(1 <= k <= self.model.num_layers) for k in range(len(blocks))]
        most = self.most_layers(config, kinds)
        found = partition_unlike(
            np.array([cost[g] for g in kinds]), np.array(layer), np.array(most, dtype=np.float64)
        )
        return found.value

    def _sends(
        self, config: ParallelConfig, kinds: Kinds, split: Split
    ) -> tuple[list[float], list[float]]:
        """(what messages hold up each rank's actions, seconds of the message to the next rank)."""
        hops = [
            number(self.send_s(split, self.kinds[a], self.kinds[b], float(config.stage_ranks)))
            for a, b in pairwise(kinds)
        ]
        around = [max([*hops[max(0, s - 1) : s + 1]], default=0.0) for s in range(config.pp)]
        exposed = [float(self.kinds[g].constants.exposed_send) for g in kinds]
        return [e * hop for e, hop in zip(exposed, around, strict=True)], hops

    def _reductions(
        self, kinds: Kinds, split: Split, layers: Array
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(exposed reduction, update) of each rank."""
        sync, update = np.zeros(len(kinds)), np.zeros(len(kinds))
        for g in set(kinds):
            own = np.flatnonzero(np.array(kinds) == g)
            step = self.rank_times(self.kinds[g], split, layers[own])
            sync[own], update[own] = step.exposed_reduction_s, step.update_s
        return tuple(map(float, sync)), tuple(map(float, update))


def _of_roles(table: Array, pp: int, repeats: int) -> Array:
    """[3, pp * repeats] of first, middle and last -> [pp, repeats] of the ranks."""
    cube = np.broadcast_to(table, (3, pp * repeats)).reshape(3, pp, repeats)
    role = np.array([0, *[1] * (pp - 2), 2][:pp])
    return np.asarray(cube[role, np.arange(pp)])


def _talks(step: Step) -> dict[str, tuple[float, float]]:
    """Exposed communication of each kind of block's (forward, backward)."""
    moe = exposed_s(step.moe)
    return {"dense": exposed_s(step.dense), "moe": moe, "mtp": moe}
