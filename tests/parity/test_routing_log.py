"""Recorded routing is the same in every layout, and is that of the tokens it says."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, DROP, MOE, small
from fork import run_ranks
from grid import SEED, Case, batch, part_of_batch, trainer_of

from launch.routing_parts import join, part_paths, sampled_tokens, save_joined
from launch.runtime.experts import MoE
from launch.runtime.model import Stage
from launch.runtime.pieces import first_value
from launch.runtime.routing_log import RoutingLog
from profiler.errors import UserError
from profiler.routing.trace import RoutingTrace

pytestmark = pytest.mark.distributed

SHARE = 0.3
LAYOUTS = (
    "ep2", "pp2 ep2", "tp2 ep2", "ring ep2", "ep2 full", "ep2 dualpipev", "etp2 zero_bubble",
    "ep2 replicas with shares", "zero3 ring ep2 etp2", "pp2 tp2 ring ep4 etp1 zbv",
    "pp2 zero1 tp2 ep2 etp2 interleaved",
)  # fmt: skip


def record(case: Case, folder: Path, share: float = SHARE, steps: tuple[int, ...] = (0, 1)) -> None:
    """Train a rank's part for some steps, and write what it recorded of them."""
    trainer = trainer_of(case)
    log = RoutingLog(
        trainer, case.job, case.config, trainer._recorder, share=share, seed=SEED,
        run_dir=folder, first_step=steps[0],
    )  # fmt: skip
    for step in steps:
        log.begin(step, torch.device("cpu"))
        trainer.step(*part_of_batch(trainer, case, step))
        log.end()
    log.flush()


def recorded(case: Case, folder: Path, **how: Any) -> RoutingTrace:
    run_ranks(case.config.num_devices, lambda: record(case, folder, **how))
    found = join(folder, case.model, case.job)
    assert found is not None
    return found


def alone(case: Case) -> Case:
    """The same training on one process."""
    return Case(model=case.model, optimizer=case.optimizer, lr=case.lr, batch=case.batch)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_records_what_one_process_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    got = recorded(case, tmp_path / "many")
    expected = recorded(alone(case), tmp_path / "one")
    assert np.array_equal(got.ids, expected.ids)
    assert got.step is not None
    assert expected.step is not None
    assert np.array_equal(got.step, expected.step)
    assert got.num_tokens == 2 * len(sampled_tokens(SEED, 0, case.job.tokens_per_step, SHARE))
    assert got.num_layers == case.model.num_moe_layers


def _choices(model: Any) -> list[Any]:
    """[layers] of [tokens, k]: what the first step's routers choose, and what capacity drops."""
    stage = Stage(model, 0, len(model.blocks)).double()
    with torch.no_grad():
        for name, parameter in stage.named_parameters():
            prefix, _, leaf = name.rpartition(".")
            if prefix.endswith(".ffn.experts"):
                for expert, part in enumerate(parameter):
                    part.copy_(first_value(f"{prefix}.{expert}.{leaf}", tuple(part.shape), SEED))
            else:
                parameter.copy_(first_value(name, tuple(parameter.shape), SEED))
    seen = []
    for moe in (m for m in stage.modules() if isinstance(m, MoE)):
        moe.router.register_forward_hook(lambda _m, _x, out: seen.append(out[0].clone()))
    stage(batch(0)[0])
    return [ids.numpy() for ids in seen]


def test_recorded_tokens_are_those_of_their_place_in_the_batch(tmp_path: Path) -> None:
    case = small(model=MOE)
    truth = np.stack(run_ranks(1, _choices, MOE)[0], axis=1)
    every = recorded(case, tmp_path / "all", share=1.0, steps=(0,))
    assert np.array_equal(every.ids, truth)
    some = recorded(case, tmp_path / "some", steps=(0,))
    drawn = sampled_tokens(SEED, 0, case.job.tokens_per_step, SHARE)
    assert np.array_equal(some.ids, truth[drawn])


def test_dropped_choices_are_marked_as_such(tmp_path: Path) -> None:
    found = recorded(small(model=DROP), tmp_path, share=1.0, steps=(0,))
    groups = found.ids.reshape(-1, DROP.capacity_group, DROP.num_moe_layers, 2)
    for group in groups:
        for layer in range(DROP.num_moe_layers):
            chosen = group[:, layer]
            most = np.bincount(chosen[chosen >= 0], minlength=1).max()
            assert most <= DROP.capacity_group * 2 / DROP.num_experts * DROP.capacity_factor + 1
    assert 0 < (found.ids < 0).mean() < 0.5


def test_an_earlier_attempt_is_replaced_from_its_checkpoint_on(tmp_path: Path) -> None:
    case = CASES["pp2 ep2"]
    first = recorded(case, tmp_path / "run", steps=(0, 1, 2))
    both = recorded(case, tmp_path / "run", steps=(1, 2))  # from first weights: other routing
    again = recorded(case, tmp_path / "fresh", steps=(1, 2))
    tokens = first.num_tokens // 3
    assert np.array_equal(both.ids[:tokens], first.ids[:tokens])
    assert np.array_equal(both.ids[tokens:], again.ids)
    assert not np.array_equal(first.ids[tokens:], again.ids)


def test_tokens_without_all_their_layers_are_left_out(tmp_path: Path) -> None:
    case = small(model=MOE, pp=2)
    whole = recorded(case, tmp_path, steps=(0, 1))
    run_ranks(2, lambda: record(case, tmp_path, steps=(2,)))
    part_paths(tmp_path, 1)[-1].unlink()  # step 2 of the second stage
    found = join(tmp_path, case.model, case.job)
    assert found is not None
    assert np.array_equal(found.ids, whole.ids)
    for path in part_paths(tmp_path, 1):
        path.unlink()
    assert join(tmp_path, case.model, case.job) is None


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    recorded(small(model=MOE), tmp_path, steps=(0,))
    (path,) = part_paths(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"rank-00000-000\.npz: .*damaged"):
        join(tmp_path, MOE, small(model=MOE).job)


def test_a_complete_run_keeps_the_joined_file_alone(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Planned:
        model: Any
        job: Any

    case = small(model=MOE)
    recorded(case, tmp_path, steps=(0,))
    plan: Any = Planned(case.model, case.job)
    assert save_joined(plan, tmp_path, complete=True) == tmp_path / "routing.npz"
    assert [path.name for path in tmp_path.iterdir()] == ["routing.npz"]
    assert save_joined(plan, tmp_path / "other", complete=True) is None
