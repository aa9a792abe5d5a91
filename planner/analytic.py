"""Costs of any layout from shapes, rates and fitted constants: `planner.timing`, `planner.peak`.

Screening takes chunks of the space as arrays. Layers are timed once per distinct (tp, cp and its
method, ep, etp, micro-batch, recompute): the layouts of a chunk share few of them. What remains per
layout is a bound, m * the mean rank's work, which cuts most; memory and the closed form are asked
of the rest.
"""

import dataclasses
import functools
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
from planner.distinct import distinct_layers
from planner.fill import Work, end_bound_s, fill_bound_s
from planner.layouts import Ints, Layouts, is_one_of
from planner.peak import Peaks, Recipe, recipe_of, stage_peaks
from planner.plan import StageMemory
from planner.predict import memory_degrees, sizes_of, terms_of_step
from planner.prepared import Prepared, Screened
from planner.room import fullest, totals
from planner.rules import ConfigRule
from planner.schedules import SPLIT_BACKWARD, stage_owner
from planner.timing.inputs import constants_of, machine_of, plan_software, shape_of, split_of
from planner.timing.layer import Layer, layer_times
from planner.timing.quantities import Array, Machine, Num, rows
from planner.timing.step import Step, compose, head_s, lateness, step_times
from profiler.job import JobSpec
from profiler.model import BlockKind, ModelSpec
from profiler.profile import Profile
from solvers.balance import balance
from solvers.partition import Stages


@dataclass(frozen=True, slots=True)
class _Timed:
    """Layers of some layouts."""

    dense: Layer
    moe: Layer


def software_coverage(only: Mapping[str, Sequence[str]]) -> Coverage:
    """Values of the axes that a software has; numbers are numbers."""
    return Coverage(
        {
            axis: frozenset(int(v) if v.isdigit() else v for v in values)
            for axis, values in only.items()
        }
    )


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
        self._level: dict[tuple[float, ...], tuple[float, float, float]] = {}
        """Layers of ranks whose times are level, by times of blocks and shape of the pipeline:
        chunks have many in common."""

    @property
    def coverage(self) -> Coverage:
        """What the software has."""
        software = self.profile.software
        return software_coverage(software.only if software else {})

    @property
    def rules(self) -> tuple[ConfigRule, ...]:
        """None beyond the space's own."""
        return ()

    def covers(self, config: ParallelConfig, placement: Placement) -> bool:
        """All but the user's own tables, recomputation by layer, and placed experts."""
        del config
        return not (placement.table or placement.recompute or placement.experts)

    def screen(self, layouts: Layouts, cut_s: float) -> Screened:
        """See `planner.prepared.Costs`."""
        code, unique = distinct_layers(layouts, self.node.devices_per_node)
        timed = self._layers(layouts.take(unique))
        bound = self._bounds(layouts, timed, code)
        kept = np.flatnonzero(bound <= cut_s)
        num_cut = len(layouts) - len(kept)
        least = float(bound[bound > cut_s].min()) if num_cut else float("inf")
        few, code = layouts.take(kept), code[kept]
        peaks, most = self._room(few, timed, code)
        fits = np.isfinite(most)
        few, code, kept, most = few.take(fits), code[fits], kept[fits], most[fits]
        step = self._steps(few, timed, code)
        m = few.num_microbatches(self.job)
        layer = (step.bound_s * few.pp / m - step.head_s) / self._shape.num_layers
        late = self._late(few)
        waits = m * np.maximum(most * layer - step.most_s, 0.0) * late
        held_up = step.exposed_send_s - 2 * step.send_s * (few.pp - 1)
        busy = (step.bound_s + held_up) * late + step.base_s
        busy = np.maximum(busy, self._pipeline_bounds(few, timed, code, step))
        # Without a pipeline nothing is left to simulate.
        busy = np.where(few.pp > 1, busy, step.step_s) * (1 - 1e-9)
        return Screened(
            index=kept,
            step_s=np.broadcast_to(np.asarray(step.step_s + waits, dtype=np.float64), kept.shape),
            bound_s=np.maximum(bound[kept], busy),
            peak_bytes=peaks[fits],
            num_unfit=int(np.count_nonzero(~fits)),
            num_cut=num_cut,
            least_cut_s=least,
        )

    def _layers(self, layouts: Layouts) -> _Timed:
        split = split_of(layouts, self.job)
        hw = self._machine_of(layouts)
        dense, moe = layer_times(self._shape, split, hw, self._software, self._constants)
        return _Timed(dense, moe)

    def _bounds(self, layouts: Layouts, timed: _Timed, code: Ints) -> Array:
        """Seconds of a step at least, without what ends it."""
        work = self._work(timed, code)
        m = self.job.global_batch / (layouts.num_replicas * layouts.micro_batch)
        splits = is_one_of(layouts, "schedule", *sorted(SPLIT_BACKWARD))
        fill = fill_bound_s(work, layouts.pp, layouts.vpp, m, splits)
        mean = m * (work.forward_s + work.input_s + work.weight_s) / layouts.pp
        busy = np.where(layouts.pp > 1, np.maximum(mean, fill), mean)
        return np.asarray(busy * self._late(layouts) * (1 - 1e-9))

    def _pipeline_bounds(self, layouts: Layouts, timed: _Timed, code: Ints, step: Step) -> Array:
        """Seconds of a step at least, of those with a pipeline: its fill, messages and end."""
        work = self._work(timed, code).with_head(step.head_s)
        pp, vpp, m = layouts.pp, layouts.vpp, layouts.num_microbatches(self.job)
        splits = is_one_of(layouts, "schedule", *sorted(SPLIT_BACKWARD))
        held = self._constants.exposed_send * step.send_s / np.sqrt(vpp)
        late = self._late(layouts)
        fill = fill_bound_s(work, pp, vpp, m, splits, held, step.send_s) * late
        end = step.exposed_reduction_s + step.update_s
        ends = end_bound_s(work, pp, vpp, m, len(self.model.blocks), end)
        return np.asarray(np.maximum(fill, ends) + step.base_s)

    def _work(self, timed: _Timed, code: Ints) -> Work:
        """Of all layers of each layout."""
        total, moe = self._shape.num_layers, self._shape.num_moe
        of_kind = [(n, t) for n, t in ((total - moe, timed.dense), (moe, timed.moe)) if n]

        def summed(name: str) -> Num:
            return sum(n * np.asarray(getattr(layer, name)) for n, layer in of_kind)

        forward = [np.asarray(layer.forward_s) for _, layer in of_kind]
        whole = [f + t.input_s + t.weight_s for f, (_, t) in zip(forward, of_kind, strict=True)]
        shares = [f / w for f, w in zip(forward, whole, strict=True)]
        least = (functools.reduce(np.minimum, each) for each in (forward, whole, shares))
        sums = (summed(name) for name in ("forward_s", "input_s", "weight_s"))
        return rows(Work(*(np.asarray(x) for x in (*sums, *least))), code)

    def _peaks(self, layouts: Layouts, layers: Array | None = None) -> Peaks:
        m = np.maximum(layouts.num_microbatches(self.job), 1)
        degrees = memory_degrees(layouts, m, self._software.sequence_parallel)
        return stage_peaks(self._sizes, degrees, self._recipe, layers)

    def _room(self, layouts: Layouts, timed: _Timed, code: Ints) -> tuple[Array, Array]:
        """(peak bytes, layers that some rank has at least) of an even split, or where that does not
        fit, of an uneven one; the latter is inf where none fits. `prepare` may yet refuse what fits
        here, but never takes what does not."""
        room, num = self.capacity_bytes, len(layouts)
        held = np.broadcast_to(totals(self._peaks(layouts)), (3, num))
        peak = held.max(axis=0)
        least = np.where(peak <= room, 0.0, np.inf)
        # Some rank has the mean number of layers or more.
        tight = np.flatnonzero((peak > room) & (held.min(axis=0) <= room))
        if len(tight):
            few, model = layouts.take(tight), self.model
            most = fullest(few, self._peaks, model.num_layers, model.first_dense_layers, room)
            least[tight] = most
            loose = tight[np.isfinite(most) & (few.vpp > 1)]
            if len(loose):
                layers = self._level_layers(layouts.take(loose), timed, code[loose])
                over = self._peaks(layouts.take(loose), layers).allocated > room
                least[loose] = np.where(over, np.inf, 0.0)
        return np.minimum(peak, room), least

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
            self._shape, split_of(layouts, self.job), self._machine_of(layouts), self._software,
            self._constants, of(timed.dense), of(timed.moe),
        )  # fmt: skip

    def least_peak(self, config: ParallelConfig) -> int:
        """Of layers spread evenly."""
        return int(self._peaks(Layouts.from_configs([config])).allocated[0])

    def prepare(self, config: ParallelConfig, stages: Stages | None = None) -> Prepared | None:
        """The layout with the split that levels time, or the one given."""
        layouts = Layouts.from_configs([config])
        split = split_of(layouts, self.job)
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
        of = [_stage_memory(peaks, row) for row in range(3)]
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


def _stage_memory(peaks: Peaks, row: int) -> StageMemory:
    def part(array: Array) -> int:
        return int(np.broadcast_to(array, (3, 1))[row, 0])

    return StageMemory(
        weight_bytes=part(peaks.weights),
        grad_bytes=part(peaks.grads),
        optimizer_bytes=part(peaks.optimizer),
        activation_bytes=part(peaks.activations),
        buffer_bytes=part(peaks.buffers),
        workspace_bytes=part(peaks.transient),
    )
