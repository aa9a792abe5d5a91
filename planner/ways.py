"""Ways to go on after a change of the cluster, and the time each loses.

    lost_s   = restart_s + load_s + again_s          until training is where it was
    load_s   = bytes of the fullest node / the rate of its NICs, or all bytes / the storage's rate
    again_s  = steps since the checkpoint * step_s   on the layout that does them again

From the checkpoint (what `launch --resume` does), from the survivors' memory (only where they hold
all of the state; the reference runtime does not), from the beginning, on the old layout with fewer
replicas, or, where no device of it is gone, on the old layout as it is. Every figure says what it
rests on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from planner.config import ParallelConfig, Placement
from planner.cost import cost_model
from planner.given import candidate_of
from planner.holdings import Holdings
from planner.layout import check_layout
from planner.moves import Moves, moves_of
from planner.plan import Candidate, Plan
from planner.survivors import Survivors
from profiler.cluster import ClusterSpec
from profiler.codec import record, replace
from profiler.errors import UserError
from profiler.profile import Seconds

ASSUMED_RESTART_S = 60.0
"""To start all processes anew, where nobody says or has measured it."""
Source = Literal["measured", "given", "predicted", "assumed"]
WayName = Literal["checkpoint", "survivors", "beginning", "fewer_replicas", "keep"]


@record
class Figure:
    """A number and what it rests on."""

    value: Annotated[float, Ge(0)]
    source: Source
    how: str


@record
class Way:
    """One way to go on: what it costs once, and its steps from then on."""

    name: WayName
    layout: str
    restart_s: Seconds
    load_s: Seconds
    again_s: Seconds
    lost_s: Seconds
    """The three together."""
    step_s: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is known of the run that was under way."""

    steps_done: int | None = None
    checkpoint_step: int | None = None
    """Steps behind the newest complete checkpoint; None: there is none, or nobody knows."""
    checkpoint_every: int | None = None
    """Steps from one to the next."""
    total_steps: int | None = None
    step_s: float | None = None
    """Observed."""
    startup_s: float | None = None
    """Observed, from the start of torchrun to the first step."""
    restart_s: float | None = None
    """Given by the user."""
    read_bytes_per_s: float | None = None
    """Of the checkpoints' storage, all nodes together; given by the user."""


def label_of(config: ParallelConfig) -> str:
    """Degrees and schedule, for people."""
    return f"{config.label} {config.schedule}"


class Ways:
    """The ways to go on, as far as the figures for them are there."""

    def __init__(
        self, old: Plan, new: Plan, before: Holdings, left: Survivors, moves: Moves,
        situation: Situation, *, can_keep: bool,
    ) -> None:  # fmt: skip
        self._old, self._new, self._before, self._left = old, new, before, left
        self._moves, self._situation, self._can_keep = moves, situation, can_keep
        predicted = old.chosen.estimate.step_s if old.chosen.estimate else None
        self.old_step_s = situation.step_s or predicted
        # What was observed corrects predictions of the same model on the same devices.
        observed = situation.step_s
        self._factor = observed / predicted if observed and predicted else 1.0
        self.new_step_s = self._step(new.chosen)
        self.facts = {"restart": self._restart()}
        if self.new_step_s is not None:
            how = "the plan's"
            if self._factor != 1.0:
                how = "the plan's, times observed / predicted step of the old plan"
            self.facts["step"] = Figure(value=self.new_step_s, source="predicted", how=how)

    def _step(self, candidate: Candidate | None) -> float | None:
        if candidate is None or candidate.estimate is None:
            return None
        return candidate.estimate.step_s * self._factor

    @property
    def steps_left(self) -> int | None:
        """Of the whole training."""
        s = self._situation
        if s.total_steps is None or s.steps_done is None:
            return None
        return max(0, s.total_steps - s.steps_done)

    def ways(self) -> Iterator[Way]:
        """The first is what `launch --resume` does."""
        new, moves, s = self._new.chosen, self._moves, self._situation
        again = self._again()
        self.facts["load"] = self._load(moves)
        if again is not None:
            self.facts["again"] = again
            yield from self._way("checkpoint", new, self.facts["load"].value, again.value)
        if not moves.lost_bytes and not self._can_keep:
            yield from self._way("survivors", new, self._move_s(moves), 0.0)
        if s.steps_done is not None and not self._can_keep:
            yield from self._way("beginning", new, 0.0, s.steps_done)
        fewer = self._fewer()
        if fewer is not None and fewer.config != new.config and again is not None:
            to = Holdings(self._new.model, fewer.config, fewer.placement)
            m = moves_of(self._new.model, self._before, to, self._left.devices, self._new.cluster)
            yield from self._way("fewer_replicas", fewer, self._load(m).value, again.value)
        if self._can_keep:
            chosen = self._old.chosen
            kept = self._estimated(chosen.config, chosen.placement)
            yield from self._way("keep", kept, None, 0.0)

    def _way(
        self, name: WayName, candidate: Candidate | None, load_s: float | None, again_steps: float
    ) -> Iterator[Way]:
        """A way with its figures, where its steps are known; no `load_s`: nothing is restarted."""
        step_s = self._step(candidate)
        if candidate is None or step_s is None:
            return
        restart_s = 0.0 if load_s is None else self.facts["restart"].value
        again_s = again_steps * step_s
        yield Way(
            name=name,
            layout=label_of(candidate.config),
            restart_s=restart_s,
            load_s=load_s or 0.0,
            again_s=again_s,
            lost_s=restart_s + (load_s or 0.0) + again_s,
            step_s=step_s,
        )

    def _restart(self) -> Figure:
        s = self._situation
        if s.restart_s is not None:
            return Figure(value=s.restart_s, source="given", how="`--restart-s`")
        if s.startup_s is not None:
            how = "from the start of torchrun to the first step"
            return Figure(value=s.startup_s, source="measured", how=how)
        return Figure(
            value=ASSUMED_RESTART_S, source="assumed", how="`--restart-s` or `--run` say better"
        )

    def _again(self) -> Figure | None:
        """Steps that are done again from the checkpoint; None where there is none."""
        s = self._situation
        if self._can_keep:
            how = "a checkpoint can be written before the restart"
            return Figure(value=0, source="assumed", how=how)
        if s.steps_done is not None:
            if s.checkpoint_step is None:
                return None
            value = max(0, s.steps_done - s.checkpoint_step)
            how = f"{s.steps_done} steps done, {s.checkpoint_step} in the newest checkpoint"
            return Figure(value=value, source="measured", how=how)
        if s.checkpoint_every is not None:
            how = f"half of `--checkpoint-every {s.checkpoint_every}`, the mean"
            return Figure(value=s.checkpoint_every / 2, source="given", how=how)
        how = "none, as neither `--run` nor `--checkpoint-every` says how many"
        return Figure(value=0, source="assumed", how=how)

    def _load(self, moves: Moves) -> Figure:
        """Seconds in which all ranks read what they hold from a checkpoint."""
        rates = _nic_rates(self._new.cluster)
        by_nics = max(size / rates[node] for node, size in moves.need_of_nodes().items())
        rate = self._situation.read_bytes_per_s
        if rate is None:
            how = "at the rate of the nodes' NICs, the least; `--read-rate` is the storage's"
            return Figure(value=by_nics, source="assumed", how=how)
        by_storage = moves.need_bytes / rate
        how = "at `--read-rate`" if by_storage > by_nics else "at the rate of the nodes' NICs"
        return Figure(value=max(by_storage, by_nics), source="given", how=how)

    def _move_s(self, moves: Moves) -> float:
        """Seconds in which the survivors' memory is where it is needed."""
        rates, wires = _nic_rates(self._new.cluster), moves.wire_of_nodes()
        return max((size / rates[node] for node, size in wires.items()), default=0.0)

    def _fewer(self) -> Candidate | None:
        """The old layout with the most replicas that the devices hold and the batch divides by,
        fewer than it had; None where there is none, or its cost is not known."""
        old, most = self._old.chosen, self._new.cluster.num_devices
        if old.config.num_devices <= most:
            return None
        axis = "dp_replicate" if old.config.dp_replicate > 1 else "dp_shard"
        placement = Placement(stages=old.placement.stages, recompute=old.placement.recompute)
        for replicas in range(getattr(old.config, axis) - 1, 0, -1):
            changes = {axis: replicas}
            if axis == "dp_shard" and replicas == 1:
                changes["zero"] = 0
            config = replace(old.config, **changes)
            if config.num_devices <= most and self._can_be(config, placement):
                return self._estimated(config, placement)
        return None

    def _can_be(self, config: ParallelConfig, placement: Placement) -> bool:
        try:
            check_layout(self._new.model, self._new.job, config, placement)
        except UserError:
            return False
        return True

    def _estimated(self, config: ParallelConfig, placement: Placement) -> Candidate | None:
        """A layout on the cluster as it is now; None where it does not fit or is not covered."""
        new = self._new
        if len(new.cluster.groups) > 1:
            return None
        costs = cost_model(new.model, new.job, new.profile)
        try:
            return candidate_of(costs, config, placement)
        except UserError:
            return None


def _nic_rates(cluster: ClusterSpec) -> list[float]:
    """Bytes per second that a node's NICs take together, by node."""
    return [g.nics_per_node * g.nic.bytes_per_s for g in cluster.groups for _ in range(g.num_nodes)]
