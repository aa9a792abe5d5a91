"""The sample of tokens that a run records, and joining what its ranks wrote."""

from pathlib import Path

import numpy as np
import pytest

from launch.routing_parts import (
    Part,
    join,
    joined_parts,
    part_path,
    part_paths,
    read_part,
    sampled_tokens,
    write_part,
)
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.routing.arrays import npz_bytes
from tests.unit.made_routing import drawn_ids

MODEL = ModelSpec(
    name="m", family="mixtral", vocab_size=8, hidden_size=8, num_layers=4, num_heads=1,
    num_kv_heads=1, head_dim=8, ffn_hidden_size=8, num_experts=6, num_experts_per_token=2,
    first_dense_layers=1,
)  # fmt: skip
JOB = JobSpec(global_batch=2, seq_len=10, precision="fp32")


@pytest.mark.parametrize(("share", "number"), [(0.01, 1), (0.1, 100), (0.1001, 101), (1.0, 1000)])
def test_the_sample_has_its_size_and_hangs_on_seed_and_step_alone(
    share: float, number: int
) -> None:
    drawn = sampled_tokens(3, 5, 1000 if number > 1 else 100, share)
    assert len(drawn) == number
    assert (np.diff(drawn) > 0).all()
    assert np.array_equal(drawn, sampled_tokens(3, 5, 1000 if number > 1 else 100, share))
    if 1 < number < 1000:
        assert not np.array_equal(drawn, sampled_tokens(3, 6, 1000, share))
        assert not np.array_equal(drawn, sampled_tokens(4, 5, 1000, share))


def test_every_token_is_drawn_as_often_as_any() -> None:
    counts = sum(
        np.bincount(sampled_tokens(0, step, 50, 0.2), minlength=50) for step in range(4000)
    )
    expected = 4000 * 0.2
    chi = float(((counts - expected) ** 2 / (expected * 0.8)).sum())
    assert 20 < chi < 90  # 49 degrees of freedom: 99.95 % of draws lie between


def part(layers: list[int], steps: list[int], tokens: list[int], ids: np.ndarray) -> Part:
    rows = np.array(steps) * 20 + np.array(tokens)
    return Part(
        step=np.array(steps), token=np.array(tokens), layers=np.array(layers),
        ids=ids[rows][:, layers],
    )  # fmt: skip


def test_layers_of_stages_and_tokens_of_replicas_are_joined_in_order(tmp_path: Path) -> None:
    ids = drawn_ids(60, 3, 6, 2)
    parts = {
        (0, 0): part([0, 2], [0, 0], [3, 1], ids),
        (0, 1): part([0, 2], [1, 2], [0, 9], ids),
        (1, 0): part([1], [0, 0, 1], [1, 3, 0], ids),  # step 2 was not written yet
        (2, 0): part([0, 2], [1], [19], ids),
        (3, 0): part([1], [1], [19], ids),
    }
    for (rank, number), content in parts.items():
        write_part(part_path(tmp_path, rank, number), content)
    found = join(tmp_path, MODEL, JOB)
    assert found is not None
    assert found.step is not None
    assert found.step.tolist() == [0, 0, 1, 1]
    assert np.array_equal(found.ids, ids[[1, 3, 20, 39]])
    assert (found.model, found.num_experts) == ("m", 6)
    assert join(tmp_path / "nothing", MODEL, JOB) is None


def test_parts_are_read_as_they_were_written(tmp_path: Path) -> None:
    ids = drawn_ids(60, 3, 6, 2)
    ids[5, 1] = -1
    one, two = part([0, 1], [0, 1], [5, 2], ids), part([0, 1], [2], [7], ids)
    both = joined_parts([one, two])
    write_part(part_path(tmp_path, 7, 1000), both)
    write_part(part_path(tmp_path, 7, 2), both.before(2))
    assert [path.name[-8:] for path in part_paths(tmp_path, 7)] == ["-002.npz", "1000.npz"]
    back = [read_part(path) for path in part_paths(tmp_path, 7)]
    assert np.array_equal(back[1].ids, both.ids)
    assert (back[0].step.tolist(), back[1].token.tolist()) == ([0, 1], [5, 2, 7])
    assert part_paths(tmp_path, 8) == []


def test_a_part_that_is_none_is_named(tmp_path: Path) -> None:
    path = part_path(tmp_path, 0, 0)
    path.parent.mkdir()
    for arrays, message in (
        ({"step": np.zeros(2)}, "array 'token' is missing"),
        ({name: np.zeros(2) for name in ("step", "token", "layers", "ids")}, "do not fit"),
    ):
        path.write_bytes(npz_bytes(arrays))
        with pytest.raises(UserError, match=message):
            read_part(path)
