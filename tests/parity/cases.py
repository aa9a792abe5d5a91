"""The table of layouts: every axis and option alone, all pairs of them, and many together.

Models are as small as the axes allow, and there are few micro-batches, because a run's time is the
number of its collectives and operator dispatches: two layers, unless a pipeline needs more.
"""

import dataclasses
import itertools
from collections.abc import Iterable

from grid import DEEPSEEK, DROPPING, LLAMA, MIXTRAL, QWEN2, QWEN2_MOE, QWEN3, TIED, Case

from planner.config import ExpertSlots
from planner.schedules import Action, check_table, format_table
from profiler.model import ModelSpec


def layers(model: ModelSpec, num_layers: int) -> ModelSpec:
    return dataclasses.replace(model, num_layers=num_layers)


DENSE, MOE, DROP = layers(LLAMA, 2), layers(MIXTRAL, 2), layers(DROPPING, 2)
SHARED, DEEP, TIE = layers(QWEN2_MOE, 2), layers(DEEPSEEK, 3), layers(TIED, 2)
BIAS, NORM = layers(QWEN2, 2), layers(QWEN3, 2)
TIED_MOE = dataclasses.replace(MOE, tie_embeddings=True)
MANY_HEADS = dataclasses.replace(DENSE, num_heads=8, num_kv_heads=8, head_dim=4)


def greedy_table(
    owners: tuple[int, ...], num_microbatches: int, split: Iterable[int]
) -> tuple[str, ...]:
    """A table where stage i is on rank `owners[i]`: in turn every rank runs the first that it can
    of B or I, F, W. Stages in `split` have I and W."""
    num_stages = len(owners)
    rows: list[list[Action]] = [[] for _ in range(max(owners) + 1)]
    done: set[tuple[int, str, int]] = set()
    waiting: list[list[Action]] = [[] for _ in rows]
    for stage, k in itertools.product(range(num_stages), range(num_microbatches)):
        ops = "FIW" if stage in split else "FB"
        waiting[owners[stage]] += [Action(stage, op, k) for op in ops]

    def ready(action: Action) -> bool:
        stage, op, k = action
        if op == "F":
            return stage == 0 or (stage - 1, "F", k) in done
        if op == "W":
            return (stage, "back", k) in done
        return ((stage, "F", k) if stage == num_stages - 1 else (stage + 1, "back", k)) in done

    while any(waiting):
        for row, actions in zip(rows, waiting, strict=True):
            able = [a for a in actions if ready(a)]
            if able:
                action = min(able, key=lambda a: ("BIFW".index(a.op), a.micro_batch, -a.stage))
                actions.remove(action)
                row.append(action)
                op = "back" if action.op in "BI" else action.op
                done.add((action.stage, op, action.micro_batch))
    table = tuple(tuple(row) for row in rows)
    assert check_table(table, num_stages, num_microbatches) is None
    return format_table(table)


def small(**changes: object) -> Case:
    """Two sequences per micro-batch; four where tensor parallelism makes each slow."""
    is_slow = "tp" in changes and not {"dp", "shard"} & set(changes)
    return Case(**({"model": DENSE, "micro_batch": 4 if is_slow else 2} | changes))


HALVES = ExpertSlots(slots=((5, 0, 2), (1, 3, 4, 6, 7)))
REPLICAS = ExpertSlots(
    slots=((0, 1, 2, 3, 5), (4, 5, 6, 7, 0)), shares=((3, 1, 1, 1, 0.5), (1, 1.5, 1, 1, 2))
)
ONE_EMPTY = ExpertSlots(slots=((0, 1, 2, 3), (), (4, 5, 6), (7, 0, 3)))
CROWD = ExpertSlots(slots=((0, 1, 2, 3), (4, 5, 6, 7), (0, 4, 1), (5, 0)))
ONE = {
    "one": small(),
    "gpipe": small(schedule="gpipe"),
    "sgd": small(optimizer="sgd", batch=6),
    "selective": small(recompute="selective"),
    "full": small(recompute="full"),
    "recompute per layer": small(
        model=layers(DEEPSEEK, 4), per_layer=("none", "full", "selective", "none")
    ),
    "moe": small(model=MOE),
    "moe dropping": small(model=DROP, recompute="selective"),
    "tied": small(model=TIE),
}
ALONE = {
    "tp2": small(tp=2),
    "tp2 biases": small(tp=2, model=BIAS),
    "tp2 q/k norms": small(tp=2, model=NORM),
    "tp4": small(tp=4, model=MANY_HEADS, micro_batch=8),
    "tp8": small(tp=8, model=MANY_HEADS, micro_batch=8),
    "pp2": small(pp=2),
    "dp2": small(dp=2),
    "dp3, 1 sequence each": small(dp=3, batch=3, micro_batch=1),
    "zero1": small(shard=2, zero=1),
    "zero2": small(shard=2, zero=2),
    "zero3": small(shard=2, zero=3),
    "zero3 over 3, uneven rows": small(shard=3, zero=3, batch=6, model=NORM),
    "zero3 over 8": small(shard=8, zero=3, micro_batch=1),
    "ring": small(cp=2),
    "ring over 4": small(cp=4, micro_batch=4),
    "all_gather": small(cp=2, cp_method="all_gather"),
    "ulysses": small(cp=2, cp_method="ulysses"),
    "ulysses over 4, more ranks than k/v heads": small(cp=4, cp_method="ulysses"),
    "ep2": small(model=MOE, dp=2, ep=2),
    "ep4, shared experts": small(model=SHARED, dp=4, ep=4),
    "etp2": small(model=MOE, dp=2, etp=2),
    "edp2": small(model=DROP, dp=2),
}
PIPELINES = {
    "pp2 gpipe": small(pp=2, schedule="gpipe", model=BIAS),
    "pp4 1f1b": small(pp=4, model=TIE),
    "pp3, 1 micro-batch": small(pp=3, micro_batch=8),
    "pp4, 3 micro-batches": small(pp=4, batch=6, model=NORM),
    "pp3, 5 micro-batches": small(pp=3, batch=5, micro_batch=1),
    "interleaved": small(pp=2, vpp=2, schedule="interleaved"),
    "interleaved, 3 micro-batches": small(pp=2, vpp=2, schedule="interleaved", batch=6),
    "interleaved, 1 micro-batch": small(
        pp=3, vpp=3, schedule="interleaved", batch=2, model=layers(LLAMA, 7)
    ),
    "zero_bubble": small(pp=2, schedule="zero_bubble", batch=6),
    "zero_bubble vpp2": small(
        pp=2, vpp=2, schedule="zero_bubble", model=TIE, stages=((0, 1), (1, 3), (3, 3), (3, 4))
    ),
    "zbv": small(pp=2, vpp=2, schedule="zbv", batch=6),
    "zbv pp3, 2 micro-batches": small(
        pp=3, vpp=2, schedule="zbv", batch=4, model=layers(TIED, 4)
    ),
    "dualpipev": small(pp=2, vpp=2, schedule="dualpipev"),
    "dualpipev pp3, 3 micro-batches": small(
        pp=3, vpp=2, schedule="dualpipev", batch=6, model=layers(LLAMA, 4)
    ),
    "table with I and W": small(
        pp=2, vpp=3, schedule="table", model=layers(LLAMA, 4), batch=6,
        table=greedy_table((0, 1, 1, 0, 0, 1), 3, {1, 3, 4}),
    ),
    "table, uneven map, empty stage": small(
        pp=3, vpp=2, schedule="table", table=greedy_table((2, 0, 0, 0, 1, 0), 4, {0, 4}),
        stages=((0, 1), (1, 2), (2, 2), (2, 3), (3, 4), (4, 5)), model=layers(TIED, 3),
    ),
    "embedding alone, head alone": small(pp=4, stages=((0, 1), (1, 2), (2, 3), (3, 4))),
    "uneven stages, one empty": small(
        pp=2, vpp=2, schedule="interleaved", model=layers(LLAMA, 3),
        stages=((0, 1), (1, 4), (4, 4), (4, 5)),
    ),
}  # fmt: skip
PAIRS = {
    "tp2 pp2": small(tp=2, pp=2),
    "tp2 dp2": small(tp=2, dp=2, model=TIE),
    "tp2 zero1": small(tp=2, shard=2, zero=1),
    "tp2 zero2": small(tp=2, shard=2, zero=2, model=NORM),
    "tp2 zero3": small(tp=2, shard=2, zero=3, model=BIAS),
    "tp2 ring": small(tp=2, cp=2),
    "tp2 all_gather": small(tp=2, cp=2, cp_method="all_gather", model=NORM),
    "tp2 ulysses": small(tp=2, cp=2, cp_method="ulysses"),
    "tp2 ep2": small(model=MOE, tp=2, ep=2),
    "tp2 etp2": small(model=SHARED, tp=2, etp=2),
    "tp2 interleaved": small(tp=2, pp=2, vpp=2, schedule="interleaved"),
    "tp2 zbv": small(tp=2, pp=2, vpp=2, schedule="zbv", model=TIE),
    "tp2 selective": small(tp=2, recompute="selective"),
    "tp2 full": small(tp=2, recompute="full", model=DEEP),
    "pp2 dp2": small(pp=2, dp=2, model=TIE, micro_batch=1),
    "pp2 zero1": small(pp=2, shard=2, zero=1, batch=6, micro_batch=1),
    "pp2 zero2": small(pp=2, shard=2, zero=2),
    "pp2 zero3": small(pp=2, shard=2, zero=3, model=TIE, micro_batch=1),
    "pp2 ring": small(pp=2, cp=2),
    "pp2 all_gather": small(pp=2, cp=2, cp_method="all_gather", schedule="gpipe"),
    "pp2 ulysses": small(pp=2, cp=2, cp_method="ulysses", schedule="zero_bubble"),
    "pp2 ep2": small(model=MOE, pp=2, dp=2, ep=2),
    "pp2 etp2": small(model=DEEP, pp=2, dp=2, etp=2),
    "pp2 selective": small(pp=2, recompute="selective", schedule="zero_bubble"),
    "pp2 full": small(pp=2, recompute="full", model=DEEP),
    "dp2 zero1": small(dp=2, shard=2, zero=1),
    "dp2 zero2": small(dp=2, shard=2, zero=2, model=SHARED, micro_batch=1),
    "dp2 zero3": small(dp=2, shard=2, zero=3, model=TIE, micro_batch=1),
    "dp2 ring": small(dp=2, cp=2),
    "dp2 ulysses": small(dp=2, cp=2, cp_method="ulysses", model=NORM),
    "dp2 interleaved": small(pp=2, dp=2, vpp=2, schedule="interleaved"),
    "dp2 full": small(dp=2, recompute="full"),
    "zero1 all_gather": small(shard=2, zero=1, cp=2, cp_method="all_gather"),
    "zero2 ulysses": small(shard=2, zero=2, cp=2, cp_method="ulysses", model=TIE),
    "zero3 ring": small(shard=2, zero=3, cp=2, model=DROP),
    "zero1 ep2": small(model=MOE, shard=2, zero=1, ep=2),
    "zero2 ep2, edp2": small(model=DEEP, shard=4, zero=2, ep=2),
    "zero3 ep2, edp2": small(model=SHARED, shard=4, zero=3, ep=2),
    "zero3 etp2": small(model=MOE, shard=2, zero=3, etp=2),
    "zero1 zbv": small(pp=2, vpp=2, schedule="zbv", shard=2, zero=1, micro_batch=1),
    "zero1 dualpipev": small(pp=2, vpp=2, schedule="dualpipev", shard=2, zero=1, model=TIE),
    "zero3 interleaved": small(pp=2, vpp=2, schedule="interleaved", shard=2, zero=3),
    "zero3 full": small(shard=2, zero=3, recompute="full"),
    "zero2 selective": small(shard=2, zero=2, recompute="selective", model=MOE),
    "ring ep2": small(model=DROP, cp=2, ep=2),
    "ulysses etp2": small(model=MOE, cp=2, cp_method="ulysses", etp=2),
    "ring interleaved": small(pp=2, vpp=2, schedule="interleaved", cp=2, batch=6),
    "ring selective": small(cp=2, recompute="selective"),
    "all_gather full": small(cp=2, cp_method="all_gather", recompute="full"),
    "ep2 etp2": small(model=MOE, dp=4, ep=2, etp=2),
    "ep2 dualpipev": small(model=DROP, pp=2, vpp=2, schedule="dualpipev", dp=2, ep=2),
    "ep2 full": small(model=SHARED, dp=2, ep=2, recompute="full"),
    "etp2 zero_bubble": small(model=MOE, pp=2, vpp=2, schedule="zero_bubble", dp=2, etp=2),
    "etp2 selective": small(model=DEEP, dp=2, etp=2, recompute="selective"),
    "interleaved full": small(pp=2, vpp=2, schedule="interleaved", recompute="full"),
    "zbv selective": small(pp=2, vpp=2, schedule="zbv", recompute="selective", model=TIE),
}
PLACED = {
    "tp2 dp2, ranks mixed up": small(tp=2, dp=2, ranks=(2, 0, 3, 1)),
    "pp2 ring, ranks mixed up": small(pp=2, cp=2, ranks=(3, 1, 0, 2), model=TIE),
    "tp2 pp2 zero3, ranks mixed up": small(
        tp=2, pp=2, shard=2, zero=3, ranks=(5, 2, 7, 0, 1, 6, 4, 3), model=TIE
    ),
    "ep2 placed": small(model=MOE, dp=2, ep=2, experts=(HALVES, HALVES)),
    "ep2 placed, ranks mixed up": small(
        model=MOE, dp=4, ep=2, experts=(HALVES, REPLICAS), ranks=(3, 0, 2, 1), micro_batch=1
    ),
    "ep2 replicas with shares": small(model=DROP, dp=2, ep=2, experts=(REPLICAS, HALVES)),
    "ep4, a rank without experts": small(
        model=SHARED, dp=4, ep=4, experts=(ONE_EMPTY, CROWD), micro_batch=1
    ),
    "tp2 ep2 etp2, replicas": small(
        model=MOE, tp=2, dp=2, ep=2, etp=2, experts=(REPLICAS, REPLICAS)
    ),
    "zero2 ep2 edp2, replicas": small(model=MOE, shard=4, zero=2, ep=2, experts=(REPLICAS, HALVES)),
    "zero3 ep4, a rank without experts": small(
        model=DEEP, shard=4, zero=3, ep=4, experts=(ONE_EMPTY, CROWD)
    ),
    "hsdp ep4 edp2, a rank without experts": small(
        model=MOE, dp=2, shard=4, zero=3, ep=4, experts=(ONE_EMPTY, CROWD), micro_batch=1
    ),
}
OVERLAPPED = {
    "ep2 in 2 chunks": small(model=MOE, dp=2, ep=2, ep_overlap=2),
    "ep2 in more chunks than tokens": small(model=DROP, cp=2, ep=2, micro_batch=4, ep_overlap=96),
    "tp2 ep2 etp2 in 3 chunks, replicas": small(
        model=MOE, tp=2, dp=2, ep=2, etp=2, experts=(REPLICAS, REPLICAS), ep_overlap=3
    ),
    "zero3 ep2 edp2 in 4 chunks": small(model=SHARED, shard=4, zero=3, ep=2, ep_overlap=4),
    "pp2 zero3 ep4 in 2 chunks, a rank without experts": small(
        model=TIED_MOE, pp=2, shard=4, zero=3, ep=4, experts=(ONE_EMPTY, CROWD), recompute="full",
        micro_batch=1, ep_overlap=2,
    ),
    "hsdp ep4 edp2 in 2 chunks, a rank without experts": small(
        model=MOE, dp=2, shard=4, zero=3, ep=4, experts=(ONE_EMPTY, CROWD), micro_batch=1,
        ep_overlap=2,
    ),
}  # fmt: skip
MANY = {
    "tp2 pp2 dp2": small(tp=2, pp=2, dp=2, model=TIE),
    "tp2 pp2 zero1 interleaved": small(
        tp=2, pp=2, shard=2, zero=1, vpp=2, schedule="interleaved", model=TIE
    ),
    "tp2 pp2 zero3 full": small(tp=2, pp=2, shard=2, zero=3, recompute="full"),
    "tp2 pp2 ring": small(tp=2, pp=2, cp=2, model=NORM),
    "tp2 pp2 ulysses zbv": small(
        tp=2, pp=2, cp=2, cp_method="ulysses", vpp=2, schedule="zbv"
    ),
    "tp2 zero2 ring": small(tp=2, shard=2, zero=2, cp=2, model=TIE),
    "tp2 dp2 all_gather": small(tp=2, dp=2, cp=2, cp_method="all_gather", model=BIAS),
    "tp2 hsdp": small(tp=2, dp=2, shard=2, zero=3),
    "pp2 hsdp": small(pp=2, dp=2, shard=2, zero=2, model=TIE, micro_batch=1),
    "pp2 zero1 ring zero_bubble": small(
        pp=2, shard=2, zero=1, cp=2, schedule="zero_bubble", batch=6, micro_batch=1
    ),
    "pp2 zero3 ulysses": small(pp=2, shard=2, zero=3, cp=2, cp_method="ulysses"),
    "pp2 zero2 ep4 edp1": small(model=DEEP, pp=2, shard=4, zero=2, ep=4, micro_batch=1),
    "pp4 tp2 embedding alone": small(
        pp=4, tp=2, stages=((0, 1), (1, 2), (2, 3), (3, 4)), schedule="gpipe"
    ),
    "pp2 tp2 ep2 etp1": small(model=SHARED, pp=2, tp=2, ep=2),
    "pp2 ring ep2 dualpipev": small(
        model=DROP, pp=2, vpp=2, cp=2, ep=2, schedule="dualpipev", recompute="selective"
    ),
    "dp2 ring ep4": small(model=SHARED, dp=2, cp=2, ep=4, recompute="full"),
    "zero3 ring ep2 etp2": small(model=DROP, shard=2, zero=3, cp=2, ep=2, etp=2),
    "tp2 zero1 ring ep4": small(model=DEEP, tp=2, shard=2, zero=1, cp=2, ep=4),
    "tp2 zero3 ring ep4 etp2": small(model=MOE, tp=2, shard=2, zero=3, cp=2, ep=4, etp=2),
    "tied moe tp2 pp2 zero3 ep2": small(model=TIED_MOE, tp=2, pp=2, shard=2, zero=3, ep=2),
    "pp2 tp2 ring ep2 etp2": small(
        model=MOE, tp=2, pp=2, cp=2, ep=2, etp=2, schedule="zero_bubble", recompute="full"
    ),
    "pp2 dp2 ring ep4": small(model=DROP, pp=2, dp=2, cp=2, ep=4),
    "pp2 zero2 ring ep2 etp2": small(model=MOE, pp=2, shard=2, zero=2, cp=2, ep=2, etp=2),
    "pp2 zero1 tp2 ep2 etp2 interleaved": small(
        model=MOE, pp=2, vpp=2, schedule="interleaved", shard=2, zero=1, tp=2, ep=2, etp=2
    ),
    "pp2 zero3 ulysses ep4, replicas, ranks mixed up": small(
        model=TIED_MOE, pp=2, shard=2, zero=3, cp=2, cp_method="ulysses", ep=4,
        experts=(ONE_EMPTY, CROWD), ranks=(6, 1, 4, 3, 0, 7, 2, 5), micro_batch=1,
    ),
    "pp2 tp2 ring ep4 etp1 zbv": small(
        model=SHARED, pp=2, vpp=2, schedule="zbv", tp=2, cp=2, ep=4
    ),
    "table tp2 zero1 ep2": small(
        model=MOE, pp=2, vpp=2, schedule="table", tp=2, shard=2, zero=1, ep=2, micro_batch=1,
        table=greedy_table((0, 1, 1, 0), 4, {0, 2}),
    ),
}  # fmt: skip
CASES = ONE | ALONE | PIPELINES | PAIRS | PLACED | OVERLAPPED | MANY
