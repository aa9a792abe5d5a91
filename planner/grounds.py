"""The physical ground of each choice of a layout, with the number behind it.

Each function gives a sentence from the plan's own figures, or None where the axis says nothing
about this layout (context parallelism of degree 1 that nothing competed with, experts of a dense
model).
"""

from collections.abc import Callable

from planner.config import ParallelConfig, Placement
from planner.plan import Plan, StageMemory
from planner.reach import reach_of
from planner.routed_plan import load_of_plan
from planner.where import kinds_of_ranks
from planner.wording import gib, percent, rate
from profiler.cluster import NodeGroup
from profiler.codec import replace

SEARCHED = (
    "tp", "pp", "schedule", "vpp", "dp_replicate", "dp_shard", "zero", "cp", "cp_method", "ep",
    "etp", "ep_overlap", "mbs", "recompute", "offload", "devices",
)  # fmt: skip
"""Axes in the order in which they are explained."""
_FIELDS = {"dp": "num_replicas", "mbs": "micro_batch", "devices": "num_devices"}


def value_of(config: ParallelConfig, axis: str) -> str:
    """The layout's value of an axis, as `--pin` spells it."""
    return str(getattr(config, _FIELDS.get(axis, axis)))


def ground(plan: Plan, axis: str) -> str | None:
    """Why the axis has its value, in a sentence; None where there is nothing to say."""
    return _GROUNDS[axis](plan)


def link_words(plan: Plan, axis: str) -> str:
    """Which link the groups of an axis use, how fast it is."""
    config, placement = plan.chosen.config, plan.chosen.placement
    if len(plan.cluster.groups) == 1:
        return _link_words(config, placement, plan.cluster.uniform, axis)
    kinds = {k.device.name: k for k in kinds_of_ranks(plan.cluster, config, placement)}
    alone, plain = replace(config, pp=1), Placement(stages=placement.stages[:1])
    words = [f"on {name} {_link_words(alone, plain, k, axis)}" for name, k in kinds.items()]
    return ", ".join(words)


def _link_words(config: ParallelConfig, placement: Placement, group: NodeGroup, axis: str) -> str:
    reach = reach_of(config, placement, group, axis)
    if reach.domains == 1:
        where = "within a node" if reach.nodes == 1 else "within a domain of fast links"
        return f"{where}, {group.intra.name} ({rate(group.intra.bytes_per_s)} per device)"
    share = group.nics_per_node * group.nic.bytes_per_s / group.devices_per_node
    return f"across {reach.nodes} nodes, {group.nic.name} ({rate(share)} per device)"


def _exposed(plan: Plan, term: str, verb: str = "exposed") -> str:
    """`; exposed 3.1% of the step`, or nothing in a plan without terms."""
    terms = plan.chosen.cost.terms
    total = sum(terms.values())
    if term not in terms or not total:
        return ""
    return f"; {verb} {percent(terms[term] / total)} of the step"


def _competes(plan: Plan, axis: str) -> bool:
    """The search had other values of the axis that fit."""
    return len(plan.by_axis.get(axis, {})) > 1


def _fullest(plan: Plan) -> StageMemory:
    return max((s.memory for s in plan.chosen.cost.stages), key=lambda m: m.total_bytes)


def _tp(plan: Plan) -> str:
    config, groups = plan.chosen.config, plan.cluster.groups
    if config.tp == 1:
        return "layers are whole on a device: no collectives inside a layer"
    place = ""
    if len(groups) == 1:
        reach = reach_of(config, plan.chosen.placement, groups[0], "tp")
        fills = reach.domains == 1 and config.tp == groups[0].devices_per_domain
        place = "fills the node; " if fills and reach.nodes == 1 else ""
    return f"{place}its collectives run {link_words(plan, 'tp')}{_exposed(plan, 'tensor')}"


def _pp(plan: Plan) -> str:
    config = plan.chosen.config
    if config.pp == 1:
        return "no pipeline, no bubble: a replica's layers fit the devices of its other axes"
    layers = plan.chosen.placement.layers_per_stage(plan.model.num_layers)
    low, high = min(layers), max(layers)
    each = f"{low}" if low == high else f"{low} to {high}"
    num = config.num_microbatches(plan.job)
    stage = "stage" if config.vpp == 1 else "virtual stage"
    return (
        f"{each} layers per {stage}, {num:,} micro-batch{'' if num == 1 else 'es'} a step"
        f"{_exposed(plan, 'bubble', 'the bubble takes')}"
        f"{_exposed(plan, 'messages', 'messages')}"
    )


def _schedule(plan: Plan) -> str | None:
    config = plan.chosen.config
    if config.pp == 1:
        return None
    kept = _fullest(plan).activation_bytes
    held = (
        f"keeps {gib(kept)} of activations"
        if kept
        else "memory peaks in the update, when no activations are left"
    )
    return f"{held}{_exposed(plan, 'bubble', 'waiting takes')}"


def _vpp(plan: Plan) -> str | None:
    config = plan.chosen.config
    if config.vpp == 1:
        return "one stage per rank: the fewest messages" if _competes(plan, "vpp") else None
    num = config.num_stages
    return f"{num} stages on {config.pp} ranks shorten fill and drain, for more messages"


def _dp_replicate(plan: Plan) -> str:
    config = plan.chosen.config
    if config.dp_replicate == 1:
        return "one copy of the weights" + (", shared out below" if config.dp_shard > 1 else "")
    return (
        f"{config.dp_replicate} copies of the weights; gradients are reduced "
        f"{link_words(plan, 'dp_replicate')}{_exposed(plan, 'reduction')}"
    )


def _dp_shard(plan: Plan) -> str | None:
    config = plan.chosen.config
    if config.dp_shard == 1:
        return "nothing is sharded among replicas" if _competes(plan, "dp_shard") else None
    return (
        f"shards over {config.dp_shard * config.cp} ranks "
        f"{link_words(plan, 'shard')}{_exposed(plan, 'reduction')}"
    )


def _zero(plan: Plan) -> str | None:
    config, memory = plan.chosen.config, _fullest(plan)
    if config.zero == 0:
        if not _competes(plan, "zero"):
            return None
        return f"optimizer state is whole: {gib(memory.optimizer_bytes)} on the fullest stage"
    held = {
        1: f"optimizer state is sharded: {gib(memory.optimizer_bytes)}",
        2: f"optimizer state and gradients are sharded: "
        f"{gib(memory.optimizer_bytes + memory.grad_bytes)}",
        3: f"optimizer state, gradients and weights are sharded: "
        f"{gib(memory.optimizer_bytes + memory.grad_bytes + memory.weight_bytes)}",
    }[config.zero]
    return f"{held} left on the fullest stage"


def _cp(plan: Plan) -> str | None:
    config = plan.chosen.config
    if config.cp == 1:
        return "sequences are whole on a rank" if _competes(plan, "cp") else None
    tokens = plan.job.seq_len // config.cp
    return (
        f"{tokens:,} of {plan.job.seq_len:,} tokens per rank; "
        f"{link_words(plan, 'cp')}{_exposed(plan, 'context')}"
    )


def _cp_method(plan: Plan) -> str | None:
    config = plan.chosen.config
    if config.cp == 1:
        return None
    return {
        "ring": "keys and values go round while attention runs",
        "all_gather": "keys and values are gathered before attention",
        "ulysses": "all-to-alls trade the sequence for heads around attention",
        "hybrid": f"all-to-alls in groups of {config.cp_heads}, a ring over the groups",
    }[config.cp_method]


def _ep(plan: Plan) -> str | None:
    config, model = plan.chosen.config, plan.model
    if not model.num_moe_layers:
        return None
    if config.ep == 1:
        return f"all {model.num_experts} experts on every rank: no exchange of tokens"
    load = load_of_plan(plan)
    held = load.slots_per_rank if load else model.num_experts / config.ep
    routed = f", the fullest routed {load.imbalance:.2f} times the mean" if load else ""
    return (
        f"{held:g} of {model.num_experts} experts per rank{routed}; tokens are exchanged "
        f"{link_words(plan, 'ep')}{_exposed(plan, 'expert')}"
    )


def _etp(plan: Plan) -> str | None:
    config = plan.chosen.config
    if not plan.model.num_moe_layers:
        return None
    if config.etp == 1:
        return "experts are whole: their matrix products are not cut"
    return f"each expert is split over {config.etp} ranks {link_words(plan, 'etp')}"


def _ep_overlap(plan: Plan) -> str | None:
    config = plan.chosen.config
    if config.ep == 1:
        return None
    if config.ep_overlap == 1:
        if not _competes(plan, "ep_overlap"):
            return None
        return "tokens go at once: chunks cost more starts and smaller products than they hide"
    return f"in {config.ep_overlap} chunks, exchanged while experts compute others"


def _mbs(plan: Plan) -> str:
    num = plan.chosen.config.num_microbatches(plan.job)
    kept = _fullest(plan).activation_bytes
    held = f"; {gib(kept)} of activations on the fullest stage" if kept else ""
    return f"{num:,} per replica and step{held}"


def _recompute(plan: Plan) -> str:
    config = plan.chosen.config
    kept = _fullest(plan).activation_bytes
    if config.recompute == "none":
        held = f": {gib(kept)} on the fullest stage" if kept else ""
        return f"activations fit as they are{held}"
    saved = "forward of each layer" if config.recompute == "full" else "attention"
    stay = f", {gib(kept)} stay" if kept else ""
    return f"{saved} runs again{stay}{_exposed(plan, 'recompute', 'takes')}"


def _offload(plan: Plan) -> str | None:
    offload = plan.chosen.config.offload
    return None if offload == "none" else f"the {offload} lies in the host's memory"


def _devices(plan: Plan) -> str | None:
    used, total = plan.chosen.config.num_devices, plan.cluster.num_devices
    idle = f"{total - used} of {total} stay idle" if used < total else ""
    if not _competes(plan, "devices"):
        return idle or None
    why = {
        "step": "the fastest of the numbers asked for",
        "cost": "the least device time per token",
        "devices": "the fewest on which it fits",
    }[plan.options.objective]
    return f"{why}; {idle}" if idle else why


_GROUNDS: dict[str, Callable[[Plan], str | None]] = {
    "tp": _tp,
    "pp": _pp,
    "schedule": _schedule,
    "vpp": _vpp,
    "dp_replicate": _dp_replicate,
    "dp_shard": _dp_shard,
    "zero": _zero,
    "cp": _cp,
    "cp_method": _cp_method,
    "ep": _ep,
    "etp": _etp,
    "ep_overlap": _ep_overlap,
    "mbs": _mbs,
    "recompute": _recompute,
    "offload": _offload,
    "devices": _devices,
}
