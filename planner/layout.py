"""Which layouts can be: what the reference runtime, and any other, needs of the numbers.

A rule is an id and a sentence; a layout is refused by the first rule it breaks. Rules of the
degrees alone (`CONFIG_RULES`) prune the search; those of the placement (`PLACEMENT_RULES`) guard
plans that were written by hand or come from elsewhere. A layout that breaks none trains (tested on
layouts drawn at random).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from planner.config import ExpertSlots, ParallelConfig, Placement, num_chunks
from planner.pipeline import owners_of
from planner.schedules import SPLIT_BACKWARD, allows_vpp, check_table, parse_table
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec

MOST = 2**14
"""Micro-batches of a step; a layout with more is far from the best and long to simulate."""


@dataclass(frozen=True, slots=True)
class ConfigRule:
    """`broken(config, model, job)` is true where the degrees cannot be."""

    id: str
    sentence: str
    broken: Callable[[ParallelConfig, ModelSpec, JobSpec], bool]


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


def _tp(id_: str, what: str, size: Callable[[ModelSpec], int]) -> ConfigRule:
    return ConfigRule(id_, f"tp must divide {what}", lambda c, m, j: bool(size(m) % c.tp))


def _sequence_cp(c: ParallelConfig, m: ModelSpec, j: JobSpec) -> bool:
    return bool(j.seq_len % num_chunks(c.cp, c.cp_method))


def _sequence_tp(c: ParallelConfig, m: ModelSpec, j: JobSpec) -> bool:
    return bool(j.seq_len % (c.cp * c.tp))


def _heads_cp(c: ParallelConfig, m: ModelSpec, j: JobSpec) -> bool:
    return c.cp_method == "ulysses" and bool(m.num_heads % (c.tp * c.cp))


def _batch(c: ParallelConfig, m: ModelSpec, j: JobSpec) -> bool:
    return bool(j.global_batch % (c.num_replicas * c.micro_batch))


def _no_experts(c: ParallelConfig, m: ModelSpec, j: JobSpec) -> bool:
    return not m.num_moe_layers and c.ep * c.etp > 1


def _expert_mesh(c: ParallelConfig, m: ModelSpec, j: JobSpec) -> bool:
    return bool(c.stage_ranks % (c.ep * c.etp))


def _expert_width(c: ParallelConfig, m: ModelSpec, j: JobSpec) -> bool:
    return bool(m.num_moe_layers) and bool(m.expert_width % c.etp)


def _expert_shard(c: ParallelConfig, m: ModelSpec, j: JobSpec) -> bool:
    if c.dp_shard == 1 or not m.num_moe_layers:
        return False
    return bool(m.hidden_size % c.edp) and bool(m.expert_width // c.etp % c.edp)


def _capacity(c: ParallelConfig, m: ModelSpec, j: JobSpec) -> bool:
    if not m.capacity_group:
        return False
    consecutive = math.gcd(j.seq_len // num_chunks(c.cp, c.cp_method), j.seq_len // (c.cp * c.tp))
    return bool(consecutive % m.capacity_group)


def _zero(c: ParallelConfig, m: ModelSpec, j: JobSpec) -> bool:
    return (c.dp_shard > 1) != (c.zero > 0)


def _schedule(c: ParallelConfig, m: ModelSpec, j: JobSpec) -> bool:
    if c.pp == 1:
        return c.vpp > 1 or c.schedule not in ("gpipe", "1f1b")
    if c.schedule == "interleaved" and c.vpp == 1:
        return True
    return c.schedule != "table" and not allows_vpp(c.schedule, c.vpp)


def _split_zero(c: ParallelConfig, m: ModelSpec, j: JobSpec) -> bool:
    return c.schedule in SPLIT_BACKWARD and c.zero > 1


def _too_deep(c: ParallelConfig, m: ModelSpec, j: JobSpec) -> bool:
    return c.pp > len(m.blocks)


def _too_many(c: ParallelConfig, m: ModelSpec, j: JobSpec) -> bool:
    return c.num_microbatches(j) > MOST


CONFIG_RULES = (
    _tp("heads-tp", "the attention heads", lambda m: m.num_heads),
    _tp("kv-heads-tp", "the key/value heads", lambda m: m.num_kv_heads),
    _tp("ffn-tp", "the feed-forward width", lambda m: m.ffn_hidden_size * bool(m.num_dense_layers)),
    _tp("shared-ffn-tp", "the width of the shared experts", lambda m: m.shared_ffn_hidden_size),
    _tp("vocab-tp", "the vocabulary", lambda m: m.vocab_size),
    ConfigRule("sequence-cp", "cp must cut the sequence into equal chunks", _sequence_cp),
    ConfigRule("sequence-tp", "tp * cp must divide the sequence (sequence parallel)", _sequence_tp),
    ConfigRule("heads-cp", "ulysses: tp * cp must divide the attention heads", _heads_cp),
    ConfigRule("batch", "replicas * micro-batch must divide the global batch", _batch),
    ConfigRule("no-experts", "ep and etp need a model with experts", _no_experts),
    ConfigRule("expert-mesh", "ep * etp must divide dp * cp * tp", _expert_mesh),
    ConfigRule("expert-width-etp", "etp must divide the width of an expert", _expert_width),
    ConfigRule(
        "expert-shard", "edp must divide the hidden size or an expert's part", _expert_shard
    ),
    ConfigRule("capacity-group", "a capacity group must be whole on one rank (cp, tp)", _capacity),
    ConfigRule("zero-dp-shard", "zero and dp_shard above 1 go together", _zero),
    ConfigRule("schedule-vpp", "the schedule does not go with this pp and vpp", _schedule),
    ConfigRule(
        "split-backward-zero",
        "schedules that split backward keep whole gradients: zero 1 at most",
        _split_zero,
    ),
    ConfigRule("micro-batches", f"a step has more than {MOST:,} micro-batches", _too_many),
    ConfigRule("blocks-pp", "every pipeline rank needs a block", _too_deep),
)


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


def _recompute(c: ParallelConfig, p: Placement, m: ModelSpec, j: JobSpec) -> bool:
    return len(p.recompute) not in (0, m.num_layers)


def _experts_even(c: ParallelConfig, p: Placement, m: ModelSpec, j: JobSpec) -> bool:
    return not p.experts and bool(m.num_experts % c.ep)


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
    PlacementRule("recompute", "recomputation is given for some layers only", _if(_recompute)),
    PlacementRule(
        "experts-ep", "ep must divide the experts, unless they are placed", _if(_experts_even)
    ),
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


def _refused(
    config: ParallelConfig, rule: str, sentence: str, detail: str, place: str
) -> UserError:
    why = f"{sentence}: {detail}" if detail else sentence
    return UserError(f"layout `{config.label}` cannot be: {why} ({rule})", place=place or None)
