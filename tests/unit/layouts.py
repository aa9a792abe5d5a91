"""Layouts for tests of what ranks hold: by their degrees, and drawn at random."""

from hypothesis import assume
from hypothesis import strategies as st

from planner.config import ExpertSlots, ParallelConfig, Placement
from planner.given import even_blocks
from planner.holdings import Holdings
from planner.layout import check_layout
from profiler.errors import UserError
from profiler.model import ModelSpec

from . import facts

MODELS = (
    facts.model(tie_embeddings=True, qk_norm=True),
    facts.model(qkv_bias=True),
    facts.model(
        family="dots1", num_layers=3, num_experts=4, num_experts_per_token=2,
        first_dense_layers=1, router_bias=True, expert_ffn_hidden_size=48,
        shared_ffn_hidden_size=64, shared_gate=True,
    ),
)  # fmt: skip
Layout = tuple[ParallelConfig, Placement]


def layout(
    model: ModelSpec, placement: dict[str, object] | None = None, **degrees: object
) -> Layout:
    """Degrees that are not named are 1; blocks are dealt out evenly."""
    plain = {"pp": 1, "dp_replicate": 1, "tp": 1, "micro_batch": 1}
    config = ParallelConfig(**(plain | {"recompute": "none", "schedule": "1f1b"} | degrees))
    stages = even_blocks(len(model.blocks), config.num_stages)
    return config, Placement(**({"stages": stages} | (placement or {})))


def holdings(
    model: ModelSpec, placement: dict[str, object] | None = None, **degrees: object
) -> Holdings:
    """What `layout` of these holds."""
    return Holdings(model, *layout(model, placement, **degrees))


@st.composite
def layouts(draw: st.DrawFn, model: ModelSpec) -> Layout:
    """Any that can be, on at most 12 devices, ranks in any order, experts at any places."""
    few = st.sampled_from((1, 1, 2, 2, 3))
    degrees = {name: draw(few) for name in ("pp", "dp_replicate", "dp_shard", "cp", "tp")}
    degrees["zero"] = draw(st.integers(1, 3)) if degrees["dp_shard"] > 1 else 0
    if model.num_experts:
        degrees |= {"ep": draw(few), "etp": draw(st.sampled_from((1, 1, 2)))}
    if degrees["pp"] > 1 and draw(st.booleans()):
        degrees |= {"schedule": "interleaved", "vpp": 2}
    config, placement = layout(model, **degrees)
    assume(config.num_devices <= 12)
    changes: dict[str, object] = {"stages": placement.stages}
    if draw(st.booleans()):
        changes["ranks"] = tuple(draw(st.permutations(range(config.num_devices))))
    if model.num_experts and draw(st.booleans()):
        places = st.lists(st.integers(0, config.ep - 1), min_size=1, max_size=2, unique=True)
        changes["experts"] = tuple(
            _slots([draw(places) for _ in range(model.num_experts)], config.ep)
            for _ in range(model.num_moe_layers)
        )
    placement = Placement(**changes)
    try:
        check_layout(model, facts.job(global_batch=144, seq_len=144), config, placement)
    except UserError:
        assume(False)
    return config, placement


def _slots(places: list[list[int]], ep: int) -> ExpertSlots:
    """Per expert the ranks that hold it -> per rank the experts."""
    return ExpertSlots(
        slots=tuple(tuple(e for e, own in enumerate(places) if r in own) for r in range(ep))
    )
