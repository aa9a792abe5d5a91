"""Weights from and to Hugging Face's form around training in a layout; interfaces; MoE profiles."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from fork import run_ranks
from grid import Case, batch, part_of_batch, trainer_of
from test_huggingface_weights import loaded, tiny_model
from test_profile import DEVICE, MODEL, SEQ_LEN

from launch import profiling
from launch.runtime import train
from launch.runtime.checkpoint import Checkpoints
from launch.runtime.export import export
from launch.runtime.huggingface import HfWeights
from launch.runtime.mesh import build_mesh
from launch.runtime.record import Recorder
from planner.config import ParallelConfig, Placement
from profiler.codec import replace
from profiler.errors import UserError

pytestmark = pytest.mark.distributed

LAYOUTS = {
    "llama-tied": {"tp": 2, "pp": 2},
    "qwen3": {"shard": 2, "zero": 3, "cp": 2},
    "qwen2_moe": {"shard": 2, "zero": 1, "tp": 2, "ep": 2},
    "dots1": {"dp": 2, "ep": 2, "pp": 2, "schedule": "zero_bubble"},
}


def _train(case: Case, folder: Path, root: Path) -> list[float]:
    """Loss of the first step from the folder's weights; the state before it is saved."""
    trainer = trainer_of(case)
    with HfWeights(folder, case.model) as weights:
        trainer.set_values(lambda name, _shape: weights.get(name))
        trainer.set_buffers(weights.get)
    checkpoints = Checkpoints(trainer, root, keep=1)
    checkpoints.save(1)
    checkpoints.wait()
    loss = trainer.step(*part_of_batch(trainer, case, 0)).loss
    return [] if loss is None else [loss.item()]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_trains_the_weights_it_was_given_and_gives_them_back(
    name: str, tmp_path: Path
) -> None:
    model, theirs = tiny_model(name)
    theirs.save_pretrained(tmp_path / "hf")
    case = Case(model=model, dtype=torch.float32, **LAYOUTS[name])  # type: ignore[arg-type]
    root = tmp_path / "checkpoints"
    losses = run_ranks(case.config.num_devices, _train, case, tmp_path / "hf", root)
    inputs, targets = batch(0)
    with torch.no_grad():
        logits = theirs(inputs).logits
    wanted = F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()
    assert [loss for curve in losses for loss in curve] == pytest.approx(
        [wanted] * sum(map(bool, losses)), rel=1e-5
    )
    export(root / "step-00000001", model, tmp_path / "back", "fp32")
    ours, original = loaded(tmp_path / "back").state_dict(), theirs.state_dict()
    assert set(ours) == set(original)
    assert all(torch.equal(ours[key], original[key]) for key in original)
    other = dataclasses.replace(model, num_layers=model.num_layers + 1)
    with pytest.raises(UserError, match="does not have `blocks"):
        export(root / "step-00000001", other, tmp_path / "other", "fp32")


def _on(interfaces: tuple[str, ...]) -> str:
    """The interface chosen for this process, of two nodes with two ranks."""
    from test_worker import PLACEMENT, _plan

    config = ParallelConfig(
        pp=2, dp_replicate=1, tp=2, micro_batch=2, recompute="none", schedule="1f1b"
    )
    plan = _plan(config, replace(PLACEMENT, interfaces=interfaces))
    node = replace(plan.cluster.uniform, num_nodes=2, devices_per_node=2)
    plan = replace(plan, cluster=replace(plan.cluster, groups=(node,)))
    train._choose_interface(plan)
    return train.os.environ.get("GLOO_SOCKET_IFNAME", "")


def test_a_node_uses_the_interface_that_the_plan_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert _on(()) == ""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")
    assert _on(("lo",)) == "lo"
    with pytest.raises(UserError, match="has no network interface `eth7`") as caught:
        _on(("eth7",))
    assert "lo" in (caught.value.hint or "")
    monkeypatch.setenv("RANK", "1")
    assert _on(("lo",)) == "lo"
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UserError, match="names 1 interfaces, this is node 1"):
        _on(("lo",))


def test_placements_run_on_the_loopback_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    mesh = ParallelConfig(
        pp=1, dp_replicate=2, tp=1, micro_batch=1, recompute="none", schedule="1f1b"
    )
    assert run_ranks(2, _sum_over, mesh) == [3.0, 3.0]


def _sum_over(config: ParallelConfig) -> float:
    mesh = build_mesh(config, Placement(stages=((0, 1),), ranks=(1, 0)), "cpu")
    value = torch.tensor(float(mesh.rank + 1))
    Recorder().all_reduce(value, mesh.group("dp"), "dp")()
    return float(value)


@pytest.mark.started
def test_experts_are_profiled_as_they_are_laid_out(tmp_path: Path) -> None:
    moe = dataclasses.replace(
        MODEL, family="mixtral", num_experts=4, num_experts_per_token=2, first_dense_layers=1
    )
    profile = profiling.measure_profile(
        moe, SEQ_LEN, "fp32", num_processes=2, micro_batches=(1,), tp_degrees=(2,),
        device=DEVICE, out=tmp_path / "profile.json", budget_s=1.0,
    )  # fmt: skip
    entries = {(b.block, b.tp): b for b in profile.blocks}
    kinds = {(kind, 2) for kind in ("embed", "dense", "moe", "head")}
    assert set(entries) == kinds | {("experts", 1)}
    alone = entries["experts", 1]
    assert alone.forward is not None
    assert alone.forward.median_s > 0
    assert "all_to_all" in {e.op for e in profile.transfers}
    split = entries["moe", 2]
    assert split.forward is not None
    assert split.forward.median_s > 0
    assert min(split.forward_collective_s, split.backward_collective_s) > 0
    # The router reads whole rows where a dense layer keeps its parts: more is kept.
    assert split.saved_bytes > entries["dense", 2].saved_bytes
