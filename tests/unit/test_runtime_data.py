"""Batches follow from seed, step and sample alone; unusable texts are refused."""

import dataclasses
from pathlib import Path

import pytest
import torch

from launch.runtime.data import TextData
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec

MODEL = ModelSpec(
    name="tiny", family="llama", vocab_size=256, hidden_size=8, num_layers=1, num_heads=1,
    num_kv_heads=1, head_dim=8, ffn_hidden_size=8,
)  # fmt: skip
JOB = JobSpec(global_batch=8, seq_len=16, precision="fp32")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.bin"
    path.write_bytes(bytes(range(256)) * 4)
    return path


def _data(
    path: Path, *, seed: int = 0, replica: int = 0, num_replicas: int = 1, job: JobSpec = JOB
) -> TextData:
    return TextData(path, MODEL, job, seed=seed, replica=replica, num_replicas=num_replicas)


def test_targets_are_the_next_tokens_of_the_text(text: Path) -> None:
    inputs, targets = _data(text).batch(0)
    assert inputs.shape == targets.shape == (8, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal((inputs + 1) % 256, targets)


def test_replicas_take_contiguous_slices_of_one_global_batch(text: Path) -> None:
    whole, _ = _data(text).batch(3)
    for num_replicas in (2, 4, 8):
        parts = [_data(text, replica=d, num_replicas=num_replicas) for d in range(num_replicas)]
        assert torch.equal(torch.cat([p.batch(3)[0] for p in parts]), whole)


def test_batches_depend_on_seed_and_step_and_not_on_what_was_read_before(text: Path) -> None:
    data = _data(text)
    first = data.batch(0)[0]
    assert not torch.equal(data.batch(1)[0], first)
    assert torch.equal(data.batch(0)[0], first)
    assert not torch.equal(_data(text, seed=1).batch(0)[0], first)
    assert len({tuple(row.tolist()) for row in first}) > 1


def test_the_shortest_text_holds_one_sample(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_bytes(bytes(range(17)))
    inputs, targets = _data(path).batch(0)
    assert inputs[5].tolist() == list(range(16))
    assert targets[5].tolist() == list(range(1, 17))
    path.write_bytes(bytes(range(16)))
    with pytest.raises(UserError, match="16 bytes are too few for a sequence of 16 tokens"):
        _data(path)


def test_texts_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        _data(tmp_path / "none.txt")
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(UserError, match="the text is empty") as caught:
        _data(empty)
    assert caught.value.place == str(empty)
    with pytest.raises(UserError, match="cannot read the text"):
        _data(tmp_path)


def test_a_vocabulary_smaller_than_a_byte_is_refused(text: Path) -> None:
    small = dataclasses.replace(MODEL, vocab_size=255)
    with pytest.raises(UserError, match="255 vocabulary entries"):
        TextData(text, small, JOB, seed=0, replica=0, num_replicas=1)
