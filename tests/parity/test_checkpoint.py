"""Training goes on from a checkpoint as if nothing had happened, on the same layout or another."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import DEEP, DENSE, MOE, TIE, layers, small
from fork import run_ranks
from grid import SEED, Case, part_of_batch, trainer_of

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
from launch.runtime.trainer import Trainer
from planner.config import ExpertSlots
from profiler.errors import UserError

pytestmark = pytest.mark.distributed

SAVE_AT, STEPS = 2, 5
REPLICATED = (ExpertSlots(slots=((0, 3, 5), (1, 2, 4, 6, 7, 0))),) * 2


def _steps(trainer: Trainer, case: Case, first: int, end: int) -> list[float]:
    losses = []
    for step in range(first, end):
        loss = trainer.step(*part_of_batch(trainer, case, step)).loss
        losses += [] if loss is None else [loss.item()]
    return losses


def _save(case: Case, root: Path) -> list[float]:
    """Losses of all steps; the state after SAVE_AT is saved while training goes on."""
    trainer = trainer_of(case)
    checkpoints = Checkpoints(trainer, root, keep=1)
    losses = _steps(trainer, case, 0, SAVE_AT)
    checkpoints.save(SAVE_AT)
    losses += _steps(trainer, case, SAVE_AT, STEPS)
    checkpoints.wait()
    return losses


def _resume(case: Case, root: Path) -> list[float]:
    trainer = trainer_of(case, seed=SEED + 1)  # other first values: they must not matter
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
    "one-to-tp2-pp2": (small(), small(tp=2, pp=2)),
    "tp2-zero3-to-cp2-pp2-zbv": (
        small(tp=2, shard=2, zero=3),
        small(cp=2, pp=2, vpp=2, schedule="zbv"),
    ),
    "dp2-zero1-permuted-to-zero2": (
        small(dp=2, shard=2, zero=1, ranks=(2, 0, 3, 1)),
        small(shard=4, zero=2),
    ),
    "experts-to-other-places": (
        small(model=MOE, dp=2, ep=2, experts=REPLICATED),
        small(model=MOE, shard=4, zero=1, ep=2),
    ),
    "etp-to-zero3-ep": (
        small(model=DEEP, tp=2, etp=2),
        small(model=DEEP, shard=2, zero=3, ep=2),
    ),
    "tied-one-to-two-copies": (small(model=TIE), small(model=TIE, shard=2, zero=1, pp=2)),
    "two-copies-to-tied-one": (small(model=TIE, shard=2, zero=2), small(model=TIE, tp=2)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_another_layout_goes_on_with_the_same_curve(name: str, tmp_path: Path) -> None:
    before, after = PAIRS[name]
    whole = _curve(run_ranks(before.config.num_devices, _save, before, tmp_path))
    rest = _curve(run_ranks(after.config.num_devices, _resume, after, tmp_path))
    assert rest == pytest.approx(whole[SAVE_AT:], rel=1e-12)
    assert rest != pytest.approx([whole[0]] * len(rest), rel=1e-3)


def test_low_precision_goes_on_bit_for_bit(tmp_path: Path) -> None:
    case = small(dp=2, pp=2, dtype=torch.bfloat16)
    whole = run_ranks(4, _save, case, tmp_path)
    rest = run_ranks(4, _resume, case, tmp_path)
    assert [curve[SAVE_AT:] for curve in whole] == rest


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run_ranks(1, _save, small(), tmp_path)
    other = small(model=layers(DENSE, 3))
    with pytest.raises(AssertionError, match=r"the checkpoint holds \(64, 32\) of|does not have"):
        run_ranks(1, _resume, other, tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with checkpoints of two steps."""
    run = tmp_path_factory.mktemp("run")
    run_ranks(2, _save_twice, small(dp=2), checkpoint_root(run))
    return run


def _save_twice(case: Case, root: Path) -> None:
    trainer = trainer_of(case)
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
