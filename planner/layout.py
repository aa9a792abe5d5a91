"""Which layouts can be: what the reference runtime, and any other, needs of the numbers.

A rule is an id and a sentence; a layout is refused by the first rule it breaks. Rules of the
degrees alone (`CONFIG_RULES`) prune the search; those of the placement (`PLACEMENT_RULES`) guard
plans that were written by hand or come from elsewhere. A layout that breaks none trains (tested on
layouts drawn at random).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from planner.config import ParallelConfig, Placement
from planner.pipeline import owners_of
from planner.schedules import SPLIT_BACKWARD, allows_vpp, check_table, parse_table
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec


@dataclass(frozen=True, slots=True)
class ConfigRule:
    """`broken(config, model, job)` is true where the degrees cannot be."""

    id: str
    sentence: str
    broken: Callable[[ParallelConfig, ModelSpec, JobSpec], bool]


@dataclass(frozen=True, slots=True)
class PlacementRule:
    """`broken(config, placement, model, job)` is true where the placement cannot be."""

    id: str
    sentence: str
    broken: Callable[[ParallelConfig, Placement, ModelSpec, JobSpec], bool]


def _tp(id_: str, what: str, size: Callable[[ModelSpec], int]) -> ConfigRule:
    return ConfigRule(id_, f"tp must divide {what}", lambda c, m, j: bool(size(m) % c.tp))


def num_chunks(config: ParallelConfig) -> int:
    """Pieces that context parallelism cuts a sequence into."""
    return 2 * config.cp if config.cp > 1 and config.cp_method != "ulysses" else config.cp


def _sequence_cp(c: ParallelConfig, m: ModelSpec, j: JobSpec) -> bool:
    return bool(j.seq_len % num_chunks(c))


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
    consecutive = math.gcd(j.seq_len // num_chunks(c), j.seq_len // (c.cp * c.tp))
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


def _experts(c: ParallelConfig, p: Placement, m: ModelSpec, j: JobSpec) -> bool:
    if not p.experts:
        return False
    every = set(range(m.num_experts))
    for layer in p.experts:
        ids = {e for rank in layer.slots for e in rank}
        twice = any(len(set(rank)) < len(rank) for rank in layer.slots)
        shares = [len(rank) for rank in layer.shares or layer.slots]
        if ids != every or twice or shares != [len(rank) for rank in layer.slots]:
            return True
        if len(layer.slots) != c.ep:
            return True
    return len(p.experts) != m.num_moe_layers


def _table(c: ParallelConfig, p: Placement, m: ModelSpec, j: JobSpec) -> bool:
    if (c.schedule == "table") != bool(p.table):
        return True
    if not p.table:
        return False
    table = parse_table(p.table)
    if len(table) != c.pp or check_table(table, c.num_stages, c.num_microbatches(j)) is not None:
        return True
    return c.zero > 1 and any(action.op == "W" for row in table for action in row)


PLACEMENT_RULES = (
    PlacementRule("table", "the table of actions is not a schedule of these stages", _table),
    PlacementRule("stages", "the stages must cover the model's blocks in order", _stages),
    PlacementRule(
        "stage-ends", "the first stage needs the embedding, the last one the head", _ends
    ),
    PlacementRule("stage-empty", "every pipeline rank needs a block", _empty),
    PlacementRule("ranks", "the rank map must name every rank once", _ranks),
    PlacementRule("recompute", "recomputation is given for some layers only", _recompute),
    PlacementRule(
        "experts-ep", "ep must divide the experts, unless they are placed", _experts_even
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
    broken: ConfigRule | PlacementRule | None = first_broken_config(config, model, job)
    if broken is None:
        found = (r for r in PLACEMENT_RULES if r.broken(config, placement, model, job))
        broken = next(found, None)
    if broken is None:
        return
    detail = ""
    if broken.id == "table" and placement.table:
        wrong = check_table(
            parse_table(placement.table), config.num_stages, config.num_microbatches(job)
        )
        detail = f": {wrong}" if wrong else ""
    raise UserError(
        f"layout `{config.label}` cannot be: {broken.sentence}{detail} ({broken.id})",
        hint="`meshwright plan` chooses among those that can",
        place=place or None,
    )
