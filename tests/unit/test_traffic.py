"""What ranks send in a step, by hand; and the groups along the axes of a mesh."""

import numpy as np
import pytest

from planner.config import ParallelConfig, Placement
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
def test_groups_are_those_of_the_runtime(layout: ParallelConfig) -> None:
    grid = Grid(layout, Placement(stages=((0, 1),)))
    mesh = Mesh.of(layout)
    axes = {
        "pp": ("pp",), "tp": ("tp",), "cp": ("cp",), "ep": ("ep",), "edp": ("edp",),
        "dp": ("dp_replicate", "dp_shard", "cp"), "shard": ("dp_shard", "cp"),
    }  # fmt: skip
    for axis, parts in axes.items():
        ours = {tuple(group) for group in mesh.groups(axis).tolist()}
        assert ours == set(grid.groups(*parts)), axis


def test_the_order_of_axes_is_the_users() -> None:
    mesh = Mesh(axes={"dp": 2, "pp": 2, "tp": 2})
    assert mesh.groups("pp").tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert np.sort(mesh.groups("dp").reshape(-1)).tolist() == list(range(8))
