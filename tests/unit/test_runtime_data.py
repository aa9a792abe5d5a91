"""Batches follow from seed, step and sample alone; unusable texts and token files are refused."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import launch.tokens
from launch.runtime.data import TokenData
from launch.tokens import open_tokens
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec
from tests.fuzz import fuzz

MODEL = ModelSpec(
    name="tiny", family="llama", vocab_size=256, hidden_size=8, num_layers=1, num_heads=1,
    num_kv_heads=1, head_dim=8, ffn_hidden_size=8,
)  # fmt: skip
JOB = JobSpec(global_batch=8, seq_len=16, precision="fp32")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(256)) * 4)
    return path


def _data(
    path: Path, *, seed: int = 0, replica: int = 0, num_replicas: int = 1, job: JobSpec = JOB
) -> TokenData:
    return TokenData(path, MODEL, job, seed=seed, replica=replica, num_replicas=num_replicas)


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
    with pytest.raises(UserError, match=r"16 bytes of text do not fill one sequence of 16 \+ 1"):
        _data(path)


def test_texts_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        _data(tmp_path / "none.txt")
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(UserError, match="the file is empty") as caught:
        _data(empty)
    assert caught.value.place == str(empty)
    with pytest.raises(UserError, match="cannot read the tokens: it is not a file"):
        _data(tmp_path)


def test_a_vocabulary_smaller_than_a_byte_is_refused(text: Path) -> None:
    small = dataclasses.replace(MODEL, vocab_size=255)
    with pytest.raises(UserError, match="255 vocabulary entries"):
        TokenData(text, small, JOB, seed=0, replica=0, num_replicas=1)


WIDE = dataclasses.replace(MODEL, vocab_size=70_000)
KINDS = ["uint16.bin", "uint32.bin", "uint16.npy", "uint32.npy", "int32.npy", ">u2.npy"]


def _tokens(folder: Path, kind: str, ids: Any, vocab_size: int = 50_000) -> Path:
    """The ids as `uint16.bin` with its header, as `int32.npy`, ..."""
    dtype, _, ending = kind.partition(".")
    path, array = folder / f"tokens.{ending}", np.asarray(ids).astype(dtype)
    if ending == "npy":
        np.save(path, array)
    else:
        array.astype(array.dtype.newbyteorder("<")).tofile(path)
        header = {"dtype": dtype, "vocab_size": vocab_size}
        path.with_name("tokens.bin.json").write_text(json.dumps(header))
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checked", [0, 2**24])
def test_token_files_of_every_kind_give_the_same_batches_in_every_layout(
    kind: str, checked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.tokens, "CHECKED_TOKENS", checked)
    ids = (np.arange(1000) * 7919 + 300) % 50_000
    path = _tokens(tmp_path, kind, ids)

    def batch(replica: int, num_replicas: int) -> tuple[torch.Tensor, torch.Tensor]:
        data = TokenData(path, WIDE, JOB, seed=5, replica=replica, num_replicas=num_replicas)
        return data.batch(3)

    inputs, targets = batch(0, 1)
    assert inputs.dtype == targets.dtype == torch.int64
    assert int(inputs.max()) > 255
    for i, row in enumerate(inputs.tolist()):
        start = int(np.random.default_rng((5, 3, i)).integers(1000 - 16))
        assert row == ids[start : start + 16].tolist()
        assert targets[i].tolist() == ids[start + 1 : start + 17].tolist()
    for num_replicas in (2, 4):
        parts = [batch(d, num_replicas) for d in range(num_replicas)]
        assert torch.equal(torch.cat([p[0] for p in parts]), inputs)
        assert torch.equal(torch.cat([p[1] for p in parts]), targets)


def test_bytes_as_tokens_are_the_batches_of_the_text(text: Path, tmp_path: Path) -> None:
    ids = np.frombuffer(text.read_bytes(), dtype=np.uint8)
    path = _tokens(tmp_path, "uint16.bin", ids, vocab_size=256)
    assert torch.equal(_data(path).batch(2)[0], _data(text).batch(2)[0])


@pytest.mark.parametrize("kind", ["uint16.bin", "uint32.npy", "int32.npy"])
def test_a_token_outside_the_vocabulary_is_named_with_its_position(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.zeros(500, dtype=np.int64)
    ids[[255, 333]] = (256, -1 if kind == "int32.npy" else 300)
    path = _tokens(tmp_path, kind, ids, vocab_size=256)
    with pytest.raises(UserError, match="token 256 at position 255 is outside the model's voc"):
        _data(path)
    monkeypatch.setattr(launch.tokens, "CHECKED_TOKENS", 499)  # a file too long to look through
    data = _data(path)
    with pytest.raises(
        UserError, match=r"token (256 at position 255|(300|-1) at position 333)"
    ) as e:
        _ = [data.batch(step) for step in range(20)]
    assert e.value.place == str(path)


def test_a_negative_token_is_outside(tmp_path: Path) -> None:
    ids = np.zeros(500)
    ids[7] = -1
    with pytest.raises(UserError, match="token -1 at position 7 is outside"):
        _data(_tokens(tmp_path, "int32.npy", ids))


def _refusal(path: Path, model: ModelSpec = WIDE) -> UserError:
    with pytest.raises(UserError) as caught:
        open_tokens(path, model, JOB)
    return caught.value


def test_raw_tokens_need_a_header_that_fits(tmp_path: Path) -> None:
    path = _tokens(tmp_path, "uint16.bin", np.zeros(100))
    header = tmp_path / "tokens.bin.json"
    small = _refusal(path, MODEL)
    assert "for each of 50000 entries of a tokenizer, but model `tiny` has 256" in small.message
    path.write_bytes(bytes(101))
    assert _refusal(path).message == "101 bytes are not a whole number of uint16 tokens"
    for content, message in {
        '{"dtype": "uint16"}': f"{header}:1: key `vocab_size` is missing",
        '{"dtype": "int64", "vocab_size": 9}': f"{header}:1: `dtype`: input should be 'uint16' or",
        '{"dtype": "uint16", "vocab_sise": 9}': f"{header}:1: unknown key `vocab_sise`",
        "": f"{header}: the file is empty",
    }.items():
        header.write_text(content)
        assert str(_refusal(path)).startswith(message)
    header.unlink()
    error = _refusal(path)
    assert error.message.startswith("there is no `tokens.bin.json` beside it")
    assert '"vocab_size"' in (error.hint or "")
    path.unlink()
    assert _refusal(path).message.startswith("no such file")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 100), dtype=np.uint16), "an array of 2 dimensions of uint16 is not a list"),
        (np.zeros(100, dtype=np.int64), "an array of 1 dimensions of int64 is not a list"),
        (np.zeros(100, dtype=np.float32), "an array of 1 dimensions of float32"),
        (np.array(7, dtype=np.uint16), "an array of 0 dimensions of uint16"),
        (np.array(["a"] * 100, dtype=object), "not a NumPy array file"),
        (np.zeros(16, dtype=np.uint16), "16 tokens do not fill one sequence of 16 + 1 tokens"),
        (np.zeros(0, dtype=np.uint16), ""),
    ],
)
def test_arrays_that_are_no_tokens_are_refused(
    array: np.ndarray[Any, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokens.npy"
    np.save(path, array)
    error = _refusal(path)
    assert error.message.startswith(message)
    assert error.place == str(path)


def test_broken_arrays_are_refused(tmp_path: Path) -> None:
    path = _tokens(tmp_path, "uint16.npy", np.zeros(100))
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:50], b"text", whole.replace(b"<u2", b"<q9")):
        path.write_bytes(content)
        assert _refusal(path).message == "not a NumPy array file, or cut off"
    path.write_bytes(b"")
    assert _refusal(path).message == "the file is empty"


@fuzz
@given(st.binary(max_size=60), st.integers(0, 130))
def test_no_bytes_whatever_break_the_reader(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int
) -> None:
    folder = tmp_path_factory.mktemp("junk")
    path = _tokens(folder, "uint16.npy", np.arange(100))
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + junk + whole[at + len(junk) :])
    with contextlib.suppress(UserError):
        assert open_tokens(path, WIDE, JOB).ids.ndim == 1
