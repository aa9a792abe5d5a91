"""Training goes on from a checkpoint as if nothing had happened, on the same layout or another."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fork import run_ranks
from grid import BATCH, DEEPSEEK, JOB, LLAMA, MIXTRAL, TIED, Case, batch, make_optimizer

from launch.checkpoints import (
    checkpoint_root,
    complete_checkpoints,
    complete_folder,
    damage,
    find_checkpoint,
    newest_sound,
    partial_folder,
    prune,
    sweep,
)
from launch.runtime.checkpoint import Checkpoints
from launch.runtime.mesh import build_mesh
from launch.runtime.record import Recorder
from launch.runtime.trainer import Trainer
from planner.config import ExpertSlots
from profiler.errors import UserError

pytestmark = pytest.mark.distributed

SAVE_AT, STEPS = 2, 5
REPLICATED = (ExpertSlots(slots=((0, 3, 5), (1, 2, 4, 6, 7, 0))),) * 5


def _trainer(case: Case, dtype: torch.dtype, seed: int) -> Trainer:
    mesh = build_mesh(case.config, case.placement, "cpu")
    return Trainer(
        case.model, JOB, case.config, case.placement, mesh=mesh, recorder=Recorder(),
        make_optimizer=lambda ps: make_optimizer("adamw", ps), device=torch.device("cpu"),
        seed=seed, dtype=dtype,
    )  # fmt: skip


def _steps(trainer: Trainer, case: Case, first: int, end: int) -> list[float]:
    place, config = trainer.mesh.coordinate, case.config
    each = BATCH // config.num_replicas
    start = (place["dp_replicate"] * config.dp_shard + place["dp_shard"]) * each
    losses = []
    for step in range(first, end):
        inputs, targets = (t[start : start + each] for t in batch(step))
        loss = trainer.step(inputs, targets).loss
        losses += [] if loss is None else [loss.item()]
    return losses


def _save(case: Case, root: Path, dtype: torch.dtype) -> list[float]:
    """Losses of all steps; the state after SAVE_AT is saved while training goes on."""
    trainer = _trainer(case, dtype, seed=7)
    checkpoints = Checkpoints(trainer, root, keep=1)
    losses = _steps(trainer, case, 0, SAVE_AT)
    checkpoints.save(SAVE_AT)
    losses += _steps(trainer, case, SAVE_AT, STEPS)
    checkpoints.wait()
    return losses


def _resume(case: Case, root: Path, dtype: torch.dtype) -> list[float]:
    trainer = _trainer(case, dtype, seed=8)  # other first values: they must not matter
    checkpoints = Checkpoints(trainer, root, keep=1)
    folder = checkpoints.newest()
    assert folder is not None
    assert checkpoints.load(folder) == SAVE_AT
    return _steps(trainer, case, SAVE_AT, STEPS)


def _curve(results: list[Any]) -> list[float]:
    curves = [curve for curve in results if curve]
    assert curves
    assert all(curve == pytest.approx(curves[0], rel=1e-12) for curve in curves)
    return curves[0]


PAIRS = {
    "one-to-tp2-pp2": (Case(), Case(tp=2, pp=2)),
    "tp2-zero3-to-cp2-pp2-zbv": (
        Case(tp=2, shard=2, zero=3),
        Case(cp=2, pp=2, vpp=2, schedule="zbv"),
    ),
    "dp2-zero1-permuted-to-zero2": (
        Case(dp=2, shard=2, zero=1, ranks=(2, 0, 3, 1)),
        Case(shard=4, zero=2),
    ),
    "experts-to-other-places": (
        Case(model=MIXTRAL, dp=2, ep=2, experts=REPLICATED),
        Case(model=MIXTRAL, shard=4, zero=1, ep=2),
    ),
    "etp-to-zero3-ep": (
        Case(model=DEEPSEEK, tp=2, etp=2),
        Case(model=DEEPSEEK, shard=2, zero=3, ep=2),
    ),
    "tied-one-to-two-copies": (Case(model=TIED), Case(model=TIED, shard=2, zero=1, pp=2)),
    "two-copies-to-tied-one": (Case(model=TIED, shard=2, zero=2), Case(model=TIED, tp=2)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_another_layout_goes_on_with_the_same_curve(name: str, tmp_path: Path) -> None:
    before, after = PAIRS[name]
    dtype = torch.float64
    whole = _curve(run_ranks(before.config.num_devices, _save, before, tmp_path, dtype))
    rest = _curve(run_ranks(after.config.num_devices, _resume, after, tmp_path, dtype))
    assert rest == pytest.approx(whole[SAVE_AT:], rel=1e-12)
    assert rest != pytest.approx([whole[0]] * len(rest), rel=1e-3)


def test_low_precision_goes_on_bit_for_bit(tmp_path: Path) -> None:
    case = Case(dp=2, pp=2)
    whole = run_ranks(4, _save, case, tmp_path, torch.bfloat16)
    rest = run_ranks(4, _resume, case, tmp_path, torch.bfloat16)
    assert [curve[SAVE_AT:] for curve in whole] == rest


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run_ranks(1, _save, Case(), tmp_path, torch.float64)
    other = Case(model=dataclasses.replace(LLAMA, num_layers=6))
    with pytest.raises(AssertionError, match=r"the checkpoint holds \(64, 32\) of|does not have"):
        run_ranks(1, _resume, other, tmp_path, torch.float64)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with checkpoints of two steps."""
    run = tmp_path_factory.mktemp("run")
    run_ranks(2, _save_twice, Case(dp=2), checkpoint_root(run))
    return run


def _save_twice(case: Case, root: Path) -> None:
    trainer = _trainer(case, torch.float64, seed=7)
    checkpoints = Checkpoints(trainer, root, keep=2)
    for step in (1, 2, 3):
        _steps(trainer, case, step - 1, step)
        checkpoints.save(step)
    checkpoints.wait()
    dist.barrier()


def test_the_newest_are_kept(saved: Path) -> None:
    root = checkpoint_root(saved)
    assert sorted(p.name for p in root.iterdir()) == ["step-00000002", "step-00000003"]
    assert find_checkpoint(saved) == complete_folder(root, 3)


@pytest.mark.parametrize("how", ["truncated", "changed", "missing", "unsealed", "empty"])
def test_a_damaged_checkpoint_is_never_taken(saved: Path, tmp_path: Path, how: str) -> None:
    root = checkpoint_root(tmp_path)
    shutil.copytree(checkpoint_root(saved), root)
    newest = complete_checkpoints(root)[0]
    victim = next(newest.glob("*.distcp"))
    content = victim.read_bytes()
    if how == "truncated":
        victim.write_bytes(content[:-1])
    elif how == "changed":
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "missing":
        victim.unlink()
    else:
        (newest / "seal.json").write_text("{" if how == "unsealed" else "{}")
    assert damage(newest) is not None
    folder, warnings = newest_sound(root)
    assert folder == complete_folder(root, 2)
    assert len(warnings) == 1
    with pytest.raises(UserError, match="cannot resume"):
        find_checkpoint(newest)


def test_a_damaged_newer_checkpoint_does_not_cost_the_one_just_written(
    saved: Path, tmp_path: Path
) -> None:
    root = checkpoint_root(tmp_path)
    shutil.copytree(checkpoint_root(saved), root)
    (complete_folder(root, 3) / "seal.json").unlink()
    prune(root, 1, newest=2)
    assert [p.name for p in root.iterdir()] == ["step-00000002"]
    assert find_checkpoint(tmp_path) == complete_folder(root, 2)


def test_what_faults_left_is_swept_away(tmp_path: Path) -> None:
    for name in (".step-00000004.partial", ".step-00000001.removed", "step-00000002"):
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]


def test_a_partial_checkpoint_is_never_taken(saved: Path, tmp_path: Path) -> None:
    root = checkpoint_root(tmp_path)
    shutil.copytree(checkpoint_root(saved), root)
    for folder in complete_checkpoints(root):
        folder.rename(partial_folder(root, int(folder.name[-8:])))
    assert newest_sound(root) == (None, [])
    with pytest.raises(UserError, match="no complete checkpoint"):
        find_checkpoint(tmp_path)
