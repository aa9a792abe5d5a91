"""What ranks send in a step, by hand; and the groups along the axes of a mesh."""

from itertools import product

import numpy as np
import pytest

from planner.config import AXIS_ORDER, EXPERT_ORDER, ParallelConfig, Placement
from planner.grid import Grid
from planner.mesh import Mesh
from planner.traffic import Traffic, traffic_of
from profiler.catalog import resolve_model
from profiler.job import JobSpec

JOB = JobSpec(global_batch=64, seq_len=2048)
LLAMA = resolve_model("llama3-8b")
MIXTRAL = resolve_model("mixtral-8x7b")


def config(**axes: int) -> ParallelConfig:
    plain = {"pp": 1, "dp_replicate": 1, "tp": 1, "micro_batch": 1}
    return ParallelConfig(**{**plain, **axes}, recompute="none", schedule="1f1b")


def by_axis(model, layout: ParallelConfig) -> dict[str, Traffic]:
    return {t.axis: t for t in traffic_of(model, layout, JOB)}


def test_a_dense_model_by_hand() -> None:
    found = by_axis(LLAMA, config(pp=2, dp_replicate=4, tp=8))
    assert set(found) == {"pp", "dp", "tp"}
    params = LLAMA.num_params / 2 / 8
    assert found["dp"].num_bytes == pytest.approx(2 * 3 / 4 * params * 4)
    assert found["dp"].messages == 6
    tokens, microbatches = 2048, 16
    layer = 8 * 7 / 8 * tokens * 4096 * 2
    assert found["tp"].num_bytes == pytest.approx(microbatches * 16 * layer)
    # Two stages, 16 micro-batches: the way down and back is waited for every second one.
    assert found["pp"].num_bytes == pytest.approx(8 * tokens * 4096 * 2 / 8)
    assert not found["pp"].closed


def test_sharding_changes_what_replicas_send() -> None:
    reduced = by_axis(LLAMA, config(dp_shard=8))["dp"]
    once = by_axis(LLAMA, config(dp_shard=8, zero=1))["dp"]
    assert once.num_bytes == pytest.approx(reduced.num_bytes * 6 / 8)  # 4 + 2 for 4 + 4 bytes
    whole = by_axis(LLAMA, config(dp_replicate=2, dp_shard=4, zero=3))
    assert set(whole) == {"shard", "dp_replicate"}
    gathered = 2 * 8 * 2 + 4  # twice per micro-batch of 2 bytes, and gradients once
    assert whole["shard"].num_bytes == pytest.approx(3 / 4 * LLAMA.num_params * gathered)
    assert whole["dp_replicate"].num_bytes == pytest.approx(LLAMA.num_params / 4 * 4)


def test_experts_go_over_their_own_groups() -> None:
    found = by_axis(MIXTRAL, config(dp_replicate=8, ep=4))
    assert set(found) == {"dp", "edp", "ep"}
    experts = 32 * 8 * MIXTRAL.expert_params
    assert found["edp"].num_bytes == pytest.approx(2 / 2 * experts / 4 * 4)
    assert found["dp"].num_bytes == pytest.approx(2 * 7 / 8 * (MIXTRAL.num_params - experts) * 4)
    assert found["ep"].shape == "all_to_all"
    assert found["ep"].num_bytes == pytest.approx(4 * 8 * 32 * 2048 * 4096 * 2 * 2 / 4)


def test_virtual_stages_close_the_chain() -> None:
    layout = ParallelConfig(
        pp=4, vpp=2, dp_replicate=1, tp=1, micro_batch=1, recompute="none", schedule="interleaved"
    )
    assert by_axis(LLAMA, layout)["pp"].closed


def test_one_rank_sends_nothing() -> None:
    assert traffic_of(LLAMA, config(), JOB) == ()


@pytest.mark.parametrize(
    "layout",
    [
        config(pp=2, dp_replicate=2, dp_shard=2, cp=2, tp=2, ep=4),
        config(pp=2, dp_replicate=1, dp_shard=4, cp=1, tp=4, ep=2, etp=2),
    ],
)
def test_groups_differ_along_their_axes_alone(layout: ParallelConfig) -> None:
    """Against the definition: places by hand, on ranks in any order."""
    num = layout.num_devices
    order = tuple(int(rank) for rank in np.random.default_rng(num).permutation(num))
    grid = Grid(layout, Placement(stages=((0, 1),), ranks=order))
    inner = num // layout.pp
    for names, sizes in (
        (AXIS_ORDER, [getattr(layout, axis) for axis in AXIS_ORDER]),
        (("pp", *EXPERT_ORDER), [layout.pp, layout.edp, layout.ep, layout.etp]),
    ):
        places = list(product(*(range(size) for size in sizes)))
        for parts in (*((name,) for name in names[1:]), names[1:3], names[1:]):
            fixed = [k for k, name in enumerate(names) if name not in parts]
            groups: dict[tuple[int, ...], list[int]] = {}
            for number, place in enumerate(places):
                groups.setdefault(tuple(place[k] for k in fixed), []).append(order[number])
            assert grid.groups(*parts) == tuple(map(tuple, groups.values())), parts
            for group in groups.values():
                assert all(grid.group(rank, *parts) == tuple(group) for rank in group)
        for number, place in enumerate(places):
            of = grid.coordinate if names == AXIS_ORDER else grid.expert_coordinate
            named = dict(zip(names, place, strict=True))
            assert of(order[number]) == {axis: named[axis] for axis in of(order[number])}
    assert all(grid.rank(grid.coordinate(rank)) == rank for rank in order)
    assert grid.groups("pp") == tuple(
        tuple(order[stage * inner + k] for stage in range(layout.pp)) for k in range(inner)
    )


def test_traffic_of_replicas_runs_over_all_that_hold_the_same() -> None:
    mesh = Mesh.of(config(pp=2, dp_replicate=2, dp_shard=2, cp=2))
    assert mesh.groups("dp").tolist() == [list(range(8)), list(range(8, 16))]
    assert mesh.groups("shard").tolist() == [[4 * k + n for n in range(4)] for k in range(4)]


def test_the_order_of_axes_is_the_users() -> None:
    mesh = Mesh(axes={"dp": 2, "pp": 2, "tp": 2})
    assert mesh.groups("pp").tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert np.sort(mesh.groups("dp").reshape(-1)).tolist() == list(range(8))
