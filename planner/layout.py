"""Which layouts can be, and which of them the reference runtime trains.

A rule is an id and a sentence; a layout is refused by the first rule it breaks. Rules of the
degrees alone (`CONFIG_RULES` of `planner.rules`) prune the search; those of the placement
(`PLACEMENT_RULES`) guard plans that were written by hand or come from elsewhere. A layout that
breaks none, and that `runtime_refuses` lets pass, trains (tested on layouts drawn at random).
"""

from collections.abc import Callable
from dataclasses import dataclass

from planner.config import ExpertSlots, ParallelConfig, Placement
from planner.pipeline import owners_of
from planner.rules import CONFIG_RULES, EXPERTS_EVEN, ConfigRule
from planner.schedules import check_table, parse_table
from profiler.cluster import ClusterSpec
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec


@dataclass(frozen=True, slots=True)
class PlacementRule:
    """`wrong(config, placement, model, job)` is None where the placement can be, else what is
    wrong beyond the rule's sentence, which may be nothing."""

    id: str
    sentence: str
    wrong: Callable[[ParallelConfig, Placement, ModelSpec, JobSpec], str | None]

    def broken(self, c: ParallelConfig, p: Placement, m: ModelSpec, j: JobSpec) -> bool:
        """The placement cannot be."""
        return self.wrong(c, p, m, j) is not None


def _stages(c: ParallelConfig, p: Placement, m: ModelSpec, j: JobSpec) -> bool:
    ends = [0, *(end for _, end in p.stages)]
    chained = all(
        first == before and end >= first
        for before, (first, end) in zip(ends, p.stages, strict=False)
    )
    whole = len(p.stages) == c.num_stages and ends[-1] == len(m.blocks)
    return not (whole and chained)


def _ends(c: ParallelConfig, p: Placement, m: ModelSpec, j: JobSpec) -> bool:
    return p.stages[0][1] == 0 or p.stages[-1][0] == len(m.blocks)


def _empty(c: ParallelConfig, p: Placement, m: ModelSpec, j: JobSpec) -> bool:
    busy = {o for o, (a, b) in zip(owners_of(c, p), p.stages, strict=True) if b > a}
    return len(busy) < c.pp


def _ranks(c: ParallelConfig, p: Placement, m: ModelSpec, j: JobSpec) -> bool:
    return bool(p.ranks) and sorted(p.ranks) != list(range(c.num_devices))


def _devices(c: ParallelConfig, p: Placement, m: ModelSpec, j: JobSpec) -> bool:
    return len(p.devices) not in (0, c.num_devices) or len(set(p.devices)) < len(p.devices)


def _recompute(c: ParallelConfig, p: Placement, m: ModelSpec, j: JobSpec) -> bool:
    return len(p.recompute) not in (0, m.num_layers)


def _experts_even(c: ParallelConfig, p: Placement, m: ModelSpec, j: JobSpec) -> bool:
    return not p.experts and bool(EXPERTS_EVEN.broken(c, m, j))


def _experts(c: ParallelConfig, p: Placement, m: ModelSpec, j: JobSpec) -> str | None:
    if not p.experts:
        return None
    if len(p.experts) != m.num_moe_layers:
        return f"{len(p.experts)} layers are placed, the model has {m.num_moe_layers}"
    wrong = ((layer, _slots(slots, c.ep, m)) for layer, slots in enumerate(p.experts))
    return next((f"layer {layer} {why}" for layer, why in wrong if why), None)


def _slots(layer: ExpertSlots, ep: int, m: ModelSpec) -> str | None:
    """What is wrong with one layer's slots."""
    if len(layer.slots) != ep:
        return f"has slots for {len(layer.slots)} ranks, ep is {ep}"
    held = {e for rank in layer.slots for e in rank}
    if unknown := sorted(held - set(range(m.num_experts))):
        return f"places expert {unknown[0]}, of {m.num_experts} from 0"
    if missing := sorted(set(range(m.num_experts)) - held):
        return f"places no expert {missing[0]}"
    for number, rank in enumerate(layer.slots):
        if len(set(rank)) < len(rank):
            return f"places an expert twice on rank {number}"
    if layer.shares and [len(r) for r in layer.shares] != [len(r) for r in layer.slots]:
        return "has shares of another shape than its slots"
    return None


def _table(c: ParallelConfig, p: Placement, m: ModelSpec, j: JobSpec) -> str | None:
    if c.schedule != "table":
        return "a table goes with `schedule: table`" if p.table else None
    if not p.table:
        return "`schedule: table` needs a `table`"
    table = parse_table(p.table)
    if len(table) != c.pp:
        return f"it has {len(table)} rows, pp is {c.pp}"
    wrong = check_table(table, c.num_stages, c.num_microbatches(j))
    if wrong is None and c.zero > 1 and any(a.op == "W" for row in table for a in row):
        return "with W it keeps whole gradients: zero 1 at most"
    return wrong


def _if(
    broken: Callable[[ParallelConfig, Placement, ModelSpec, JobSpec], bool],
) -> Callable[[ParallelConfig, Placement, ModelSpec, JobSpec], str | None]:
    """A rule whose sentence says it all."""
    return lambda c, p, m, j: "" if broken(c, p, m, j) else None


PLACEMENT_RULES = (
    PlacementRule("table", "the table of actions is not a schedule of these stages", _table),
    PlacementRule("stages", "the stages must cover the model's blocks in order", _if(_stages)),
    PlacementRule(
        "stage-ends", "the first stage needs the embedding, the last one the head", _if(_ends)
    ),
    PlacementRule("stage-empty", "every pipeline rank needs a block", _if(_empty)),
    PlacementRule("ranks", "the rank map must name every rank once", _if(_ranks)),
    PlacementRule("devices", "every rank needs a device of its own", _if(_devices)),
    PlacementRule("recompute", "recomputation is given for some layers only", _if(_recompute)),
    PlacementRule(EXPERTS_EVEN.id, EXPERTS_EVEN.sentence, _if(_experts_even)),
    PlacementRule(
        "experts",
        "each MoE layer must place every expert, on as many ranks as ep, once per rank at most",
        _experts,
    ),
)


def first_broken_config(
    config: ParallelConfig, model: ModelSpec, job: JobSpec
) -> ConfigRule | None:
    """The first rule that the degrees break."""
    return next((rule for rule in CONFIG_RULES if rule.broken(config, model, job)), None)


def check_layout(
    model: ModelSpec, job: JobSpec, config: ParallelConfig, placement: Placement, place: str = ""
) -> None:
    """Raise `UserError` for a layout that cannot be; the message says which rule it breaks."""
    degrees = first_broken_config(config, model, job)
    if degrees is not None:
        detail = _SCHEDULES.format(config) if degrees.id == "schedule-vpp" else ""
        raise _refused(config, degrees.id, degrees.sentence, detail, place)
    for rule in PLACEMENT_RULES:
        wrong = rule.wrong(config, placement, model, job)
        if wrong is not None:
            raise _refused(config, rule.id, rule.sentence, wrong, place)


_SCHEDULES = (
    "{0.schedule} with pp {0.pp} and vpp {0.vpp}; gpipe and 1f1b take vpp 1, zbv and dualpipev "
    "vpp 2, interleaved vpp 2 or more, and pp 1 takes gpipe or 1f1b"
)


def check_devices_of(
    cluster: ClusterSpec, config: ParallelConfig, placement: Placement, place: str = ""
) -> None:
    """Raise `UserError` where the placement names a device that the cluster lacks."""
    last = max(placement.devices, default=config.num_devices - 1)
    if last >= cluster.num_devices:
        detail = f"device {last}, of {cluster.num_devices} from 0"
        raise _refused(config, "devices", "the cluster has fewer devices", detail, place)


def _refused(
    config: ParallelConfig, rule: str, sentence: str, detail: str, place: str
) -> UserError:
    why = f"{sentence}: {detail}" if detail else sentence
    return UserError(f"layout `{config.label}` cannot be: {why} ({rule})", place=place or None)


def runtime_refuses(config: ParallelConfig) -> str | None:
    """Why the reference runtime does not train a layout that can be; None where it does."""
    if config.cp_method == "hybrid":
        return "it runs context parallelism as ring, all_gather or ulysses, not hybrid"
    if config.offload != "none":
        return f"it keeps all in the devices' memory: no offload of {config.offload}"
    return None
