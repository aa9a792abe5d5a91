"""Which degrees can be: what the reference runtime, and any other, needs of the numbers.

A rule is an id, a sentence and one condition, which serves a `ParallelConfig` and arrays of them
(`Layouts`) alike: it is written in arithmetic, comparisons, `&` and `|`. What depends on model and
job alone may be decided first, and answered for all layouts with one bool.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from planner.config import ParallelConfig
from planner.layouts import SCHEDULES, Bools, Layouts, is_one_of
from planner.schedules import SPLIT_BACKWARD, allows_vpp
from profiler.job import JobSpec
from profiler.model import ModelSpec

MOST = 2**14
"""Micro-batches of a step; a layout with more is far from the best and long to simulate."""

Degrees: TypeAlias = ParallelConfig | Layouts
Truth: TypeAlias = Any
"""A bool, or one per layout."""


@dataclass(frozen=True, slots=True)
class ConfigRule:
    """`broken(layouts, model, job)` is true where the degrees cannot be."""

    id: str
    sentence: str
    broken: Callable[[Degrees, ModelSpec, JobSpec], Truth]
    of_mesh: bool = False
    """Looks at the degrees of the mesh and `zero` alone: not at micro-batch, vpp, schedule,
    recomputation and offload."""

    def mask(self, layouts: Layouts, model: ModelSpec, job: JobSpec) -> Bools:
        """Which of the layouts break it."""
        broken = np.asarray(self.broken(layouts, model, job), dtype=np.bool_)
        return np.broadcast_to(broken, (len(layouts),))


def _tp(id_: str, what: str, size: Callable[[ModelSpec], int]) -> ConfigRule:
    return ConfigRule(id_, f"tp must divide {what}", lambda c, m, j: size(m) % c.tp != 0, True)


def _chunks(c: Degrees) -> Any:
    """`planner.config.num_chunks`."""
    return c.cp * (1 + (c.cp > 1) * is_one_of(c, "cp_method", "ring", "all_gather", "hybrid"))


def _sequence_cp(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    return j.seq_len % _chunks(c) != 0


def _sequence_tp(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    return j.seq_len % (c.cp * c.tp) != 0


def _hybrid(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    no_part = (c.cp_heads == 1) | (c.cp_heads >= c.cp) | (c.cp % c.cp_heads != 0)
    others = is_one_of(c, "cp_method", "ring", "all_gather", "ulysses")
    return (is_one_of(c, "cp_method", "hybrid") & no_part) | (others & (c.cp_heads > 1))


def _heads_cp(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    whole = is_one_of(c, "cp_method", "ulysses") & (m.num_heads % (c.tp * c.cp) != 0)
    part = is_one_of(c, "cp_method", "hybrid") & (m.num_heads % (c.tp * c.cp_heads) != 0)
    return whole | part


def _no_experts(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    return False if m.num_moe_layers else c.ep * c.etp > 1


def _expert_mesh(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    return c.stage_ranks % (c.ep * c.etp) != 0


def _expert_width(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    return m.expert_width % c.etp != 0 if m.num_moe_layers else False


def _expert_shard(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    if not m.num_moe_layers:
        return False
    edp = c.edp + (c.edp == 0)  # 0 where another rule is broken
    neither = (m.hidden_size % edp != 0) & (m.expert_width // c.etp % edp != 0)
    return (c.dp_shard > 1) & neither


def _capacity(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    if not m.capacity_group:
        return False
    consecutive = np.gcd(j.seq_len // _chunks(c), j.seq_len // (c.cp * c.tp))
    return consecutive % m.capacity_group != 0


def _zero(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    return (c.dp_shard > 1) != (c.zero > 0)


def _too_deep(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    return c.pp > len(m.blocks)


def _batch(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    return j.global_batch % (c.num_replicas * c.micro_batch) != 0


_ONE_STAGE = tuple(name for name in SCHEDULES if not allows_vpp(name, 3) and allows_vpp(name, 1))
_TWO_STAGES = tuple(name for name in SCHEDULES if not allows_vpp(name, 1))
_OF_MANY = tuple(name for name in SCHEDULES if name not in _ONE_STAGE)


def _schedule(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    alone = (c.pp == 1) & ((c.vpp > 1) | is_one_of(c, "schedule", *_OF_MANY))
    one = is_one_of(c, "schedule", *_ONE_STAGE) & (c.vpp > 1)
    two = is_one_of(c, "schedule", *_TWO_STAGES) & (c.vpp != 2)
    more = is_one_of(c, "schedule", "interleaved") & (c.vpp == 1)
    return alone | one | two | more


def _split_zero(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    return is_one_of(c, "schedule", *sorted(SPLIT_BACKWARD)) & (c.zero > 1)


def _too_many(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    # batch // x > MOST, without a division per layout.
    return c.num_replicas * c.micro_batch <= j.global_batch // (MOST + 1)


CONFIG_RULES = (
    _tp("heads-tp", "the attention heads", lambda m: m.num_heads),
    _tp("kv-heads-tp", "the key/value heads", lambda m: m.num_kv_heads),
    _tp("ffn-tp", "the feed-forward width", lambda m: m.ffn_hidden_size * bool(m.num_dense_layers)),
    _tp("shared-ffn-tp", "the width of the shared experts", lambda m: m.shared_ffn_hidden_size),
    _tp("vocab-tp", "the vocabulary", lambda m: m.vocab_size),
    ConfigRule("sequence-cp", "cp must cut the sequence into equal chunks", _sequence_cp, True),
    ConfigRule(
        "sequence-tp", "tp * cp must divide the sequence (sequence parallel)", _sequence_tp, True
    ),
    ConfigRule(
        "hybrid-cp",
        "cp_heads is for hybrid: a divisor of cp other than 1 and cp (those are ring and ulysses)",
        _hybrid,
        True,
    ),
    ConfigRule(
        "heads-cp",
        "ulysses: tp * cp must divide the attention heads (hybrid: tp * cp_heads)",
        _heads_cp,
        True,
    ),
    ConfigRule("no-experts", "ep and etp need a model with experts", _no_experts, True),
    ConfigRule(
        "ep-overlap",
        "ep_overlap above 1 needs ep above 1: nothing else is exchanged in chunks",
        lambda c, m, j: (c.ep_overlap > 1) & (c.ep == 1),
        True,
    ),
    ConfigRule("expert-mesh", "ep * etp must divide dp * cp * tp", _expert_mesh, True),
    ConfigRule("expert-width-etp", "etp must divide the width of an expert", _expert_width, True),
    ConfigRule(
        "expert-shard", "edp must divide the hidden size or an expert's part", _expert_shard, True
    ),
    ConfigRule(
        "capacity-group", "a capacity group must be whole on one rank (cp, tp)", _capacity, True
    ),
    ConfigRule("zero-dp-shard", "zero and dp_shard above 1 go together", _zero, True),
    ConfigRule("blocks-pp", "every pipeline rank needs a block", _too_deep, True),
    ConfigRule("batch", "replicas * micro-batch must divide the global batch", _batch),
    ConfigRule("schedule-vpp", "the schedule does not go with this pp and vpp", _schedule),
    ConfigRule(
        "split-backward-zero",
        "schedules that split backward keep whole gradients: zero 1 at most",
        _split_zero,
    ),
    ConfigRule("micro-batches", f"a step has more than {MOST:,} micro-batches", _too_many),
)
"""Hold for any placement. Checked in this order, those of the mesh first."""


def _experts_even(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    return m.num_experts % c.ep != 0


def _layers(c: Degrees, m: ModelSpec, j: JobSpec) -> Truth:
    return c.num_stages > m.num_layers


EXPERTS_EVEN = ConfigRule(
    "experts-ep", "ep must divide the experts, unless they are placed", _experts_even, True
)
UNPLACED_RULES = (
    EXPERTS_EVEN,
    ConfigRule(
        "layers-pp",
        "every pipeline rank needs a layer",
        lambda c, m, j: c.pp > m.num_layers,
        True,
    ),
    ConfigRule("layers-stages", "every stage needs a layer", _layers),
)
"""Hold where no placement is given: experts lie evenly, and the search gives each stage a layer."""
