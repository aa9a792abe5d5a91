"""The pipeline of a layout: who has which virtual stage, and the table that its ranks execute."""

from planner.config import ParallelConfig, Placement
from planner.schedules import Table, owners, parse_table, stage_owner, table_of
from profiler.model import ModelSpec


def owners_of(config: ParallelConfig, placement: Placement) -> tuple[int, ...]:
    """Virtual stage -> pipeline rank."""
    if config.schedule == "table":
        return owners(parse_table(placement.table))
    return stage_owner(config.schedule, config.pp, config.vpp)


def moe_ranks(model: ModelSpec, config: ParallelConfig, placement: Placement) -> tuple[int, ...]:
    """MoE layer -> pipeline rank."""
    owner = {
        block: rank
        for rank, (first, end) in zip(owners_of(config, placement), placement.stages, strict=True)
        for block in range(first, end)
    }
    return tuple(owner[block] for block, kind in enumerate(model.blocks) if kind == "moe")


def table_for(config: ParallelConfig, placement: Placement, num_microbatches: int) -> Table:
    """Actions of every pipeline rank in a step."""
    if config.schedule == "table":
        return parse_table(placement.table)
    return table_of(config.schedule, config.pp, num_microbatches, config.vpp)


def ends_of_chain(config: ParallelConfig, placement: Placement) -> tuple[int, int]:
    """Pipeline ranks that hold the first and the last block."""
    owners = owners_of(config, placement)
    last = max(end for _, end in placement.stages) - 1
    first, second = (
        next(owners[s] for s, (a, b) in enumerate(placement.stages) if a <= block < b)
        for block in (0, last)
    )
    return first, second
