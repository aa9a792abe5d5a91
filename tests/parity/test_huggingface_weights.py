"""Weights of the `transformers` library read by us, and ours read by it, bit for bit.

Every family has a tiny model whose parameters and buffers are all random (norms, biases and the
bias of the choice of experts too), so that two tensors that change places show.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from launch.runtime.huggingface import (
    INDEX_NAME,
    WEIGHTS_NAME,
    HfWeights,
    config_json,
    hf_name,
    write_hf,
)
from profiler.codec import replace
from profiler.errors import UserError
from profiler.huggingface import model_from_config, read_model
from profiler.model import ModelSpec
from profiler.tensors import canonical_names

pytestmark = pytest.mark.distributed

Theirs = Any
"""A `transformers.PreTrainedModel`; the name would import all of it when tests are collected."""

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    },
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4},
    "qwen2_moe": {
        "model_type": "qwen2_moe", "num_experts": 6, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40,
        "mlp_only_layers": [0],
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 2, "head_dim": 16,
        "moe_intermediate_size": 24, "norm_topk_prob": True,
    },
    "dots1": {
        "model_type": "dots1", "n_routed_experts": 8, "num_experts_per_tok": 3,
        "moe_intermediate_size": 24, "n_shared_experts": 2, "n_group": 4, "topk_group": 2,
        "first_k_dense_replace": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    },
}  # fmt: skip
"""Configurations of `transformers` by name, without the sizes that all share."""


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()
    transformers.logging.set_verbosity_warning()


@torch.no_grad()
def tiny_model(name: str) -> tuple[ModelSpec, Theirs]:
    """Our shape of a model and the model itself, in fp32 with random weights, for evaluation."""
    changes = {**SIZES, **CONFIGS[name]}
    config = transformers.AutoConfig.for_model(**changes)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(7)
    for key, tensor in theirs.state_dict().items():
        tensor.normal_(std=0.2, generator=generator)
        if "norm" in key:
            tensor.add_(1.0)
    spec = model_from_config(json.loads(config.to_json_string()), name, "config.json")
    return spec, theirs


def tiny_models() -> list[tuple[ModelSpec, Theirs]]:
    """(our shape, model of `transformers` with random weights) for every family."""
    return [tiny_model(name) for name in CONFIGS]


@torch.no_grad()
def logits(theirs: Theirs) -> Tensor:
    """Of two fixed sequences of 16 tokens."""
    tokens = torch.arange(32).reshape(2, 16) * 7 % SIZES["vocab_size"]
    out: Tensor = theirs(tokens).logits
    return out


def loaded(folder: Path, **options: Any) -> Theirs:
    """The model of a folder, for evaluation."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def tensors(weights: HfWeights) -> Iterator[tuple[str, Tensor]]:
    return ((name, weights.get(name)) for name in canonical_names(weights.model))


def same(one: Theirs, other: Theirs) -> None:
    """Equal parameters and buffers, and equal logits."""
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
    assert torch.equal(logits(one), logits(other))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_of_transformers_is_read(name: str, tmp_path: Path) -> None:
    spec, theirs = tiny_model(name)
    theirs.save_pretrained(tmp_path)
    assert replace(read_model(tmp_path), name=name) == spec
    stored = load_file(tmp_path / WEIGHTS_NAME)
    shapes = canonical_names(spec)
    assert {hf_name(spec, n) for n in shapes} == stored.keys()
    with HfWeights(tmp_path, spec) as weights:
        for canonical, shape in shapes.items():
            tensor = weights.get(canonical)
            assert tuple(tensor.shape) == shape
            assert torch.equal(tensor, stored[hf_name(spec, canonical)])
    buffers = sum(m.e_score_correction_bias.numel() for m in theirs.modules()
                  if hasattr(m, "e_score_correction_bias"))  # fmt: skip
    assert sum(t.numel() for t in stored.values()) == spec.num_params + buffers
    assert theirs.num_parameters() == spec.num_params


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "dots1"])
def test_gate_up_and_down_of_an_expert_are_what_they_are_called(name: str, tmp_path: Path) -> None:
    spec, theirs = tiny_model(name)
    theirs.save_pretrained(tmp_path)
    held = theirs.state_dict()
    with HfWeights(tmp_path, spec) as weights:
        for i, kind in enumerate(spec.blocks):
            if kind != "moe":
                continue
            experts = f"model.layers.{i - 1}.mlp.experts"
            for e in range(spec.num_experts):
                gate, up, down = (
                    weights.get(f"blocks.{i}.ffn.experts.{e}.{m}") for m in ("gate", "up", "down")
                )
                # Their forward passes the first half of `gate_up_proj` through the activation.
                assert torch.equal(held[f"{experts}.gate_up_proj"][e], torch.cat((gate, up)))
                assert torch.equal(held[f"{experts}.down_proj"][e], down)


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_what_we_write(name: str, tmp_path: Path) -> None:
    spec, theirs = tiny_model(name)
    theirs.save_pretrained(tmp_path / "theirs")
    with HfWeights(tmp_path / "theirs", spec) as weights:
        write_hf(tmp_path / "ours", spec, tensors(weights), torch.float32)
    assert {p.name for p in (tmp_path / "ours").iterdir()} == {"config.json", WEIGHTS_NAME}
    assert replace(read_model(tmp_path / "ours"), name=name) == spec
    same(loaded(tmp_path / "ours"), theirs)


@pytest.mark.parametrize("name", ["llama-tied", "dots1"])
def test_several_files_and_half_precision(name: str, tmp_path: Path) -> None:
    spec, theirs = tiny_model(name)
    theirs.save_pretrained(tmp_path / "theirs")
    size = 16 * 1024
    with HfWeights(tmp_path / "theirs", spec) as weights:
        backwards = reversed(list(tensors(weights)))
        write_hf(tmp_path / "ours", spec, backwards, torch.bfloat16, shard_bytes=size)
    files = sorted(p.name for p in (tmp_path / "ours").glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in
                     range(1, len(files) + 1)]  # fmt: skip
    assert len(files) > 3
    index = json.loads((tmp_path / "ours" / INDEX_NAME).read_text(encoding="utf-8"))
    total = 0
    for file in files:
        part = load_file(tmp_path / "ours" / file)
        held = sum(t.nbytes for t in part.values())
        assert held <= size or len(part) == 1
        assert {n for n, f in index["weight_map"].items() if f == file} == part.keys()
        total += held
    assert index["metadata"] == {"total_size": total}
    ours = loaded(tmp_path / "ours")
    assert ours.dtype == torch.bfloat16
    same(
        ours,
        loaded(tmp_path / "theirs", dtype=torch.bfloat16),
    )
    with HfWeights(tmp_path / "ours", spec) as weights:
        for canonical, tensor in tensors(weights):
            router = spec.router_bias and ".ffn.router." in canonical
            assert tensor.dtype == (torch.float32 if router else torch.bfloat16)


def test_experts_may_be_parts_of_one_tensor(tmp_path: Path) -> None:
    spec, theirs = tiny_model("qwen3_moe")
    theirs.save_pretrained(tmp_path / "theirs")
    with HfWeights(tmp_path / "theirs", spec) as weights:
        given = dict(tensors(weights))
        for kind in ("gate", "up", "down"):
            at = [f"blocks.1.ffn.experts.{e}.{kind}" for e in range(spec.num_experts)]
            given |= dict(zip(at, torch.stack([given[n] for n in at]).unbind(), strict=True))
        write_hf(tmp_path / "ours", spec, given.items(), torch.float32)
    same(loaded(tmp_path / "ours"), theirs)


def error_of(folder: Path, spec: ModelSpec) -> UserError:
    with pytest.raises(UserError) as caught:
        HfWeights(folder, spec)
    return caught.value


@pytest.fixture
def saved(tmp_path: Path) -> tuple[ModelSpec, Path]:
    spec, theirs = tiny_model("llama")
    theirs.save_pretrained(tmp_path / "m")
    return spec, tmp_path / "m"


def test_the_first_tensor_that_does_not_fit_is_named(saved: tuple[ModelSpec, Path]) -> None:
    spec, folder = saved
    error = error_of(folder, replace(spec, num_layers=4))
    missing = "model.layers.3.input_layernorm.weight"
    assert str(error) == f"{folder}: tensor `{missing}` is missing"
    assert error.hint == "is this the folder of `llama` (llama, 4 layers)?"
    error = error_of(folder, replace(spec, num_layers=2))
    assert error.message.endswith("has no place in the model")
    error = error_of(folder, replace(spec, ffn_hidden_size=64))
    assert error.place == f"{folder}/{WEIGHTS_NAME}"
    assert error.message == (
        "tensor `model.layers.0.mlp.gate_proj.weight` has shape [48, 32], not [64, 32]"
    )


def test_a_type_without_numbers_of_its_own_is_refused(saved: tuple[ModelSpec, Path]) -> None:
    spec, folder = saved
    held = load_file(folder / WEIGHTS_NAME)
    held["model.norm.weight"] = held["model.norm.weight"].to(torch.int8)
    save_file(held, folder / WEIGHTS_NAME)
    assert error_of(folder, spec).message == (
        "tensor `model.norm.weight` is stored as I8, which is not read"
    )


def test_a_tied_copy_and_old_frequencies_are_passed_over(saved: tuple[ModelSpec, Path]) -> None:
    spec, folder = saved
    held = load_file(folder / WEIGHTS_NAME)
    held["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(held, folder / WEIGHTS_NAME)
    HfWeights(folder, spec).close()
    (folder / "config.json").unlink()
    HfWeights(folder, replace(spec, tie_embeddings=True)).close()


def test_a_config_that_computes_something_else_is_refused(saved: tuple[ModelSpec, Path]) -> None:
    spec, folder = saved
    error = error_of(folder, replace(spec, rope_theta=1e4))
    assert error.message == ("`rope_theta` is 500000.0 here and 10000.0 in the model to be trained")
    capped = replace(spec, name="other", capacity_factor=1.0, capacity_group=4)
    HfWeights(folder, capped).close()
    config = config_json(spec)
    config["rope_scaling"] = {"rope_type": "llama3", "factor": 8.0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert error_of(folder, spec).message.startswith("`rope_scaling` of type `llama3`")


def test_a_broken_folder(saved: tuple[ModelSpec, Path], tmp_path: Path) -> None:
    spec, folder = saved
    assert error_of(tmp_path, spec).message == (
        f"the folder holds no `{WEIGHTS_NAME}` and no `{INDEX_NAME}`"
    )
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-100])
    error = error_of(folder, spec)
    assert error.message.startswith("not a safetensors file: ")
    assert error.place == str(path)
    path.unlink()
    index = folder / INDEX_NAME
    for found in ("[]", '{"weight_map": {"a": "../b"}}', '{"weight_map": {"a": 3}}'):
        index.write_text(found, encoding="utf-8")
        assert str(error_of(folder, spec)) == f"{index}: `weight_map` is not a table of file names"
    index.write_text('{"weight_map": {"a": "b.safetensors"}}', encoding="utf-8")
    assert error_of(folder, spec).message == "the file `b.safetensors` is missing"


def test_a_folder_is_written_whole_or_not_at_all(
    saved: tuple[ModelSpec, Path], tmp_path: Path
) -> None:
    spec, folder = saved
    out = tmp_path / "deep" / "out"
    with HfWeights(folder, spec) as weights:
        given = list(tensors(weights))
    with pytest.raises(UserError, match="the folder exists"):
        write_hf(folder, spec, given, torch.float32)
    with pytest.raises(ValueError, match=r"1 tensors were not given, blocks\.0\.weight first"):
        write_hf(out, spec, given[1:], torch.float32)
    with pytest.raises(ValueError, match="None wanted"):
        write_hf(out, spec, [*given, given[0]], torch.float32, shard_bytes=1)
    assert list(out.parent.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        write_hf(tmp_path / "file" / "out", spec, given, torch.float32)
    assert caught.value.kind == "failed"
    write_hf(out, spec, given, torch.float32)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert {p.stat().st_mode for p in out.iterdir()} == {(tmp_path / "file").stat().st_mode}
