"""Costs of any layout from shapes, rates and fitted constants: `planner.timing`, `planner.peak`.

Screening takes chunks of the space as arrays. Layers are timed once per distinct (tp, cp and its
method, ep, etp and their overlap, micro-batch, recompute): the layouts of a chunk share few of
them. What remains per layout is a bound, m * the mean rank's work, which cuts most; memory and the
closed form are asked of the rest.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planner.axes import Coverage
from planner.bounds import lower_bound
from planner.chain import (
    BlockTimes,
    balanced_stages,
    capped_stages,
    even_stages,
    exposed_s,
    number,
    program_of,
)
from planner.config import ParallelConfig, Placement
from planner.distinct import distinct_layers, distinct_memory
from planner.fill import Work, end_bound_s, fill_bound_s, work_of
from planner.layouts import Ints, Layouts, is_one_of
from planner.peak import Peaks, Recipe, recipe_of, stage_peaks
from planner.plan import StageMemory
from planner.predict import memory_degrees, sizes_of, terms_of_step
from planner.prepared import Prepared, Screened
from planner.room import fullest, stage_memory, totals
from planner.routed import Routed
from planner.rules import ConfigRule
from planner.schedules import SPLIT_BACKWARD, stage_owner
from planner.timing.inputs import constants_of, machine_of, plan_software, shape_of, split_of
from planner.timing.layer import Layer, layer_times
from planner.timing.quantities import Array, Machine, Num, Software, rows
from planner.timing.step import Step, compose, head_s, lateness, step_times
from profiler.job import JobSpec
from profiler.model import BlockKind, ModelSpec
from profiler.profile import Profile
from solvers.balance import balance
from solvers.partition import Stages

_BLOCK = 2**14
"""Layouts whose memory is asked together: arrays that stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class _Timed:
    """Layers of some layouts."""

    dense: Layer
    moe: Layer


def software_coverage(only: Mapping[str, Sequence[str]], does: Software) -> Coverage:
    """Values of the axes that a software has, `does` being what the time model knows of it; numbers
    are numbers. Tokens go in chunks where that can hide anything."""
    values = {
        axis: frozenset(int(v) if v.isdigit() else v for v in values)
        for axis, values in only.items()
    }
    return Coverage(values if does.chunked_exchange else values | {"ep_overlap": frozenset({1})})


class AnalyticCosts:
    """Costs from the constants of an analytic profile."""

    def __init__(self, model: ModelSpec, job: JobSpec, profile: Profile) -> None:
        if profile.software is None:
            raise ValueError("the profile has no constants")
        self.model, self.job, self.profile = model, job, profile
        self.node = profile.cluster.uniform
        software = profile.software
        self.capacity_bytes = self.node.device.memory_bytes * (1 - job.memory_reserve)
        self._recipe: Recipe = recipe_of(software.recipe, job.precision)
        self._shape = shape_of(model, job.seq_len)
        self._machine = machine_of(self.node, profile.cluster.num_devices, job.precision)
        self._software = plan_software(software, self.node.device)
        self._constants = constants_of(profile.constants)
        self._sizes = sizes_of(model, job.seq_len)
        self._routed = Routed(model.num_experts, profile.expert_loads)
        self._level: dict[tuple[float, ...], tuple[float, float, float]] = {}
        """Layers of ranks whose times are level, by times of blocks and shape of the pipeline."""

    @property
    def coverage(self) -> Coverage:
        """What the software has."""
        software = self.profile.software
        return software_coverage(software.only if software else {}, self._software)

    @property
    def rules(self) -> tuple[ConfigRule, ...]:
        """None beyond the space's own."""
        return ()

    def covers(self, config: ParallelConfig, placement: Placement) -> bool:
        """All but the user's own tables, recomputation by layer, and placed experts whose loads
        nobody recorded."""
        del config
        placed = placement.experts and not self.profile.expert_loads
        return not (placement.table or placement.recompute or placed)

    def screen(self, layouts: Layouts, cut_s: float) -> Screened:
        """See `planner.prepared.Costs`."""
        code, unique = distinct_layers(layouts, self.node.devices_per_node)
        timed = self._layers(layouts.take(unique))
        bound = self._mean_bounds(layouts, timed, code)
        kept = np.flatnonzero(bound <= cut_s)
        least = float(bound[bound > cut_s].min(initial=np.inf))
        few, code = layouts.take(kept), code[kept]
        bound = np.maximum(bound[kept], self._fill_bounds(few, timed, code))
        near = bound <= cut_s
        least = min(least, float(bound[~near].min(initial=np.inf)))
        few, code, kept, bound = few.take(near), code[near], kept[near], bound[near]
        peaks, most = self._room(few)
        fits = np.flatnonzero(np.isfinite(most))
        num_unfit = len(few) - len(fits)
        few, code, kept, bound = few.take(fits), code[fits], kept[fits], bound[fits]
        # With several stages per rank, layers are spread by time and not by memory.
        most = most[fits]
        waits = np.where(few.vpp > 1, 0.0, most)
        step_s, busy = self._closed(few, timed, code, waits)
        near = busy <= cut_s
        least = min(least, float(busy[~near].min(initial=np.inf)))
        # The last, as it takes longest: whether ranks whose times are level fit.
        over = self._level_over(few, timed, code, np.flatnonzero(near & (most > 0) & (few.vpp > 1)))
        near[over] = False
        return Screened(
            index=kept[near],
            step_s=step_s[near],
            bound_s=np.maximum(bound, busy)[near],
            peak_bytes=peaks[fits][near],
            num_unfit=num_unfit + len(over),
            num_cut=len(layouts) - num_unfit - len(over) - int(np.count_nonzero(near)),
            least_cut_s=least,
        )

    def _closed(
        self, layouts: Layouts, timed: _Timed, code: Ints, most: Array
    ) -> tuple[Array, Array]:
        """(seconds of a step by closed form, at least) where some rank has `most` layers."""
        step = self._steps(layouts, timed, code)
        m = layouts.num_microbatches(self.job)
        layer = (step.bound_s * layouts.pp / m - step.head_s) / self._shape.num_layers
        late = self._late(layouts)
        waits = m * np.maximum(most * layer - step.most_s, 0.0) * late
        held_up = step.exposed_send_s - 2 * step.send_s * (layouts.pp - 1)
        busy = (step.bound_s + held_up) * late + step.base_s
        busy = np.maximum(busy, self._pipeline_bounds(layouts, timed, code, step))
        # Without a pipeline nothing is left to simulate.
        busy = np.where(layouts.pp > 1, busy, step.step_s) * (1 - 1e-9)
        total = np.asarray(step.step_s + waits, dtype=np.float64)
        return np.array(np.broadcast_to(total, busy.shape)), np.asarray(busy)

    def _layers(self, layouts: Layouts) -> _Timed:
        split = split_of(layouts, self.job, self._routed)
        hw = self._machine_of(layouts)
        dense, moe = layer_times(self._shape, split, hw, self._software, self._constants)
        return _Timed(dense, moe)

    def _mean_bounds(self, layouts: Layouts, timed: _Timed, code: Ints) -> Array:
        """Seconds of a step at least: what the mean rank works."""
        each = np.asarray(self._work(timed).total_s)
        m = self.job.global_batch / (layouts.num_replicas * layouts.micro_batch)
        mean = m * (each[code] if each.ndim else each) / layouts.pp
        return np.asarray(mean * self._late(layouts) * (1 - 1e-9))

    def _fill_bounds(self, layouts: Layouts, timed: _Timed, code: Ints) -> Array:
        """Seconds of a step at least, without what ends it; 0 where there is no pipeline."""
        work = rows(self._work(timed), code)
        m = self.job.global_batch / (layouts.num_replicas * layouts.micro_batch)
        splits = is_one_of(layouts, "schedule", *sorted(SPLIT_BACKWARD))
        fill = fill_bound_s(work, layouts.pp, layouts.vpp, m, splits)
        fill = np.where(layouts.pp > 1, fill, 0.0)
        return np.asarray(fill * self._late(layouts) * (1 - 1e-9))

    def _pipeline_bounds(self, layouts: Layouts, timed: _Timed, code: Ints, step: Step) -> Array:
        """Seconds of a step at least, of those with a pipeline: its fill, messages and end."""
        work = rows(self._work(timed), code).with_head(step.head_s)
        pp, vpp, m = layouts.pp, layouts.vpp, layouts.num_microbatches(self.job)
        splits = is_one_of(layouts, "schedule", *sorted(SPLIT_BACKWARD))
        held = self._constants.exposed_send * step.send_s / np.sqrt(vpp)
        late = self._late(layouts)
        fill = fill_bound_s(work, pp, vpp, m, splits, held, step.send_s) * late
        end = step.exposed_reduction_s + step.update_s
        ends = end_bound_s(work, pp, vpp, m, len(self.model.blocks), end)
        return np.asarray(np.maximum(fill, ends) + step.base_s)

    def _work(self, timed: _Timed) -> Work:
        total, moe = self._shape.num_layers, self._shape.num_moe
        return work_of([(n, t) for n, t in ((total - moe, timed.dense), (moe, timed.moe)) if n])

    def _peaks(self, layouts: Layouts, layers: Array | None = None) -> Peaks:
        m = np.maximum(layouts.num_microbatches(self.job), 1)
        parallel = self._software.sequence_parallel
        degrees = memory_degrees(layouts, m, parallel, self._routed)
        return stage_peaks(self._sizes, degrees, self._recipe, layers)

    def _room(self, layouts: Layouts) -> tuple[Array, Array]:
        """(peak bytes, layers that some rank has at least) of an even split, or where that does not
        fit, of an uneven one; the latter is inf where none fits. `prepare` may yet refuse what fits
        here, but never takes what does not."""
        room = self.capacity_bytes
        held = self._held_evenly(layouts)
        peak = held.max(axis=0)
        least = np.where(peak <= room, 0.0, np.inf)
        # Some rank has the mean number of layers or more.
        tight = np.flatnonzero((peak > room) & (held.min(axis=0) <= room))
        if len(tight):
            few, model = layouts.take(tight), self.model
            most = fullest(few, self._peaks, model.num_layers, model.first_dense_layers, room)
            least[tight] = most
        return np.minimum(peak, room), least

    def _level_over(self, layouts: Layouts, timed: _Timed, code: Ints, chosen: Ints) -> Ints:
        """Those of the `chosen` that do not fit where times are level."""
        if not len(chosen):
            return chosen
        few = layouts.take(chosen)
        layers = self._level_layers(few, timed, code[chosen])
        return np.asarray(chosen[self._peaks(few, layers).allocated > self.capacity_bytes])

    def _held_evenly(self, layouts: Layouts) -> Array:
        """Bytes of the first, a middle and the last rank where layers are spread evenly, [3, n]."""
        place, unique = distinct_memory(layouts)
        held = np.empty((3, len(unique)))
        for begin in range(0, len(unique), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            held[:, block] = totals(self._peaks(layouts.take(unique[block])))
        return held[:, place]

    def _level_layers(self, layouts: Layouts, timed: _Timed, code: Ints) -> Array:
        """Layers of the first, the fullest middle and the last rank where times are level."""
        v_shaped = is_one_of(layouts, "schedule", "zbv", "dualpipev")
        key = np.stack([code, layouts.pp, layouts.vpp, v_shaped])
        _, first, inverse = np.unique(key, axis=1, return_index=True, return_inverse=True)
        few, code = layouts.take(first), code[first]
        costs = self._block_costs(few, timed, code)
        layers = []
        for position, config in enumerate(few.configs()):
            each = {kind: cost[position] for kind, cost in costs.items()}
            place = (*each.values(), config.pp, config.vpp, bool(v_shaped[first[position]]))
            if place not in self._level:
                level = balance([each[kind] for kind in self.model.blocks], config.num_stages)
                if level is None:
                    raise ValueError(f"too few blocks for {config.num_stages} stages")
                self._level[place] = self._held(config, level)
            layers.append(self._level[place])
        return np.array(layers).T[:, inverse.reshape(-1)]

    def _block_costs(
        self, layouts: Layouts, timed: _Timed, code: Ints
    ) -> dict[BlockKind, list[float]]:
        """Seconds of each kind of block for a micro-batch, forward and backward, per layout."""
        num = len(layouts)

        def listed(times: tuple[Num, Num, Num], chosen: Ints | slice) -> list[float]:
            total = np.asarray(sum(times), dtype=np.float64)
            each = total[chosen] if total.ndim else np.broadcast_to(total, (num,))
            return [float(x) for x in each.tolist()]

        dense, moe = (
            listed((layer.forward_s, layer.input_s, layer.weight_s), code)
            for layer in (timed.dense, timed.moe)
        )
        last = moe if self.model.num_moe_layers else dense
        heads = head_s(self._shape, split_of(layouts, self.job), self._machine, self._constants)
        head = listed(heads, slice(None))
        return {"embed": [0.0] * num, "dense": dense, "moe": last, "mtp": last, "head": head}

    def _steps(self, layouts: Layouts, timed: _Timed, code: Ints) -> Step:
        def of(layer: Layer) -> Layer:
            return rows(layer, code)

        return compose(
            self._shape, split_of(layouts, self.job, self._routed), self._machine_of(layouts),
            self._software,
            self._constants, of(timed.dense), of(timed.moe),
        )  # fmt: skip

    def least_memory(self, config: ParallelConfig) -> StageMemory:
        """Of layers spread evenly."""
        peaks = self._peaks(Layouts.from_configs([config]))
        return stage_memory(peaks, int(totals(peaks)[:, 0].argmax()))

    def least_peaks(self, layouts: Layouts) -> Array:
        """See `planner.prepared.Costs`."""
        return np.asarray(self._held_evenly(layouts).max(axis=0))

    def prepare(self, config: ParallelConfig, stages: Stages | None = None) -> Prepared | None:
        """The layout with the split that levels time, or the one given."""
        split = split_of(layouts := Layouts.from_configs([config]), self.job, self._routed)
        hw, late = self._machine_of(layouts), float(self._late(layouts))
        step = step_times(self._shape, split, hw, self._software, self._constants)
        if not self.model.num_moe_layers:  # what follows the layers is one of them
            step = dataclasses.replace(step, moe=step.dense)
        head = head_s(self._shape, split, self._machine, self._constants)
        times = BlockTimes.of_layers(step.dense, step.moe, head)
        if stages is None:
            stages = self._split(layouts, config, times)
        if stages is None:
            return None
        memory = self._memory(layouts, config, stages)
        program = program_of(
            blocks=self.model.blocks, stages=stages, times=times, schedule=config.schedule,
            pp=config.pp, vpp=config.vpp, num_microbatches=config.num_microbatches(self.job),
            send_s=number(step.send_s), exposed_send=float(self._constants.exposed_send),
            late=late, sync_s=number(step.exposed_reduction_s),
            update_s=number(step.update_s), base_s=number(step.base_s),
        )  # fmt: skip
        talk = {
            kind: exposed_s(layer) for kind, layer in (("dense", step.dense), ("moe", step.moe))
        }
        talk["mtp"] = talk["moe" if self.model.num_moe_layers else "dense"]
        forward, backward = (
            tuple(
                late * sum(talk.get(kind, (0.0, 0.0))[i] for kind in self.model.blocks[a:b])
                for a, b in stages
            )
            for i in (0, 1)
        )
        return Prepared(
            config=config,
            placement=Placement(stages=stages),
            program=program,
            sharing=None,
            forward_collective_s=forward,
            backward_collective_s=backward,
            memory=memory,
            bound_s=lower_bound(program, None),
            measured_share=0.0,
            terms=terms_of_step(
                self.model.blocks, config, config.num_microbatches(self.job), step,
                times.head, late,
            ),
        )  # fmt: skip

    def _split(self, layouts: Layouts, config: ParallelConfig, times: BlockTimes) -> Stages | None:
        """The split that levels time among those that fit memory; None where none was found.

        The level split itself, else with at most as many layers per rank as fit it, else evenly.
        """
        blocks, num = self.model.blocks, config.num_stages
        level = balanced_stages(blocks, times, num)
        if self._fits(layouts, config, level):
            return level
        most = self._most_blocks(layouts, config) if config.vpp == 1 else None
        capped = capped_stages(blocks, times, most) if most else None
        even = even_stages(self.model.num_layers, len(blocks), num)
        tried = (s for s in (capped, even) if s is not None)
        return next((s for s in tried if self._fits(layouts, config, s)), None)

    def _fits(self, layouts: Layouts, config: ParallelConfig, stages: Stages) -> bool:
        memory = self._memory(layouts, config, stages)
        return max(m.total_bytes for m in memory) <= self.capacity_bytes

    def _most_blocks(self, layouts: Layouts, config: ParallelConfig) -> list[int] | None:
        """Blocks that each rank has room for, embedding and head besides; memory grows by the layer
        as from the first to the second."""
        one, two = (self._peaks(layouts, np.full((3, 1), float(n))) for n in (1, 2))
        first = totals(one)[:, 0]
        layer = np.maximum(totals(two)[:, 0] - first, 1.0)
        room = np.floor((self.capacity_bytes - first) / layer) + 1
        if room.min() < 1:
            return None
        ends = [int(n) for n in room]
        return [ends[0] + 1, *[ends[1]] * (config.pp - 2), ends[2] + 1][: config.pp]

    def _machine_of(self, layouts: Layouts) -> Machine:
        """The machine with the devices that the layouts use; others of the cluster are idle."""
        used, first = layouts.num_devices, layouts.num_devices[:1]
        number = float(first[0]) if (used == first).all() and len(used) else used.astype(float)
        return dataclasses.replace(self._machine, num_devices=number)

    def _late(self, layouts: Layouts) -> Num:
        return lateness(self._machine_of(layouts), self._constants)

    def _memory(
        self, layouts: Layouts, config: ParallelConfig, stages: Stages
    ) -> tuple[StageMemory, ...]:
        """Per pipeline rank; those between the first and the last as the fullest of them."""
        peaks = self._peaks(layouts, np.array([self._held(config, stages)]).T)
        of = [stage_memory(peaks, row) for row in range(3)]
        if config.pp == 1:
            return (of[0],)
        return (of[0], *(of[1],) * (config.pp - 2), of[2])

    def _held(self, config: ParallelConfig, stages: Stages) -> tuple[float, float, float]:
        """Layers of the first, the fullest of those between, and the last pipeline rank."""
        layers = Placement(stages=stages).layers_per_stage(self.model.num_layers)
        held = [0.0] * config.pp
        owners = stage_owner(config.schedule, config.pp, config.vpp)
        for owner, count in zip(owners, layers, strict=True):
            held[owner] += count
        return held[0], max(held[1:-1], default=held[-1]), held[-1]
