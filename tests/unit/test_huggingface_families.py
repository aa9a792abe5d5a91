"""Reading config files of the families that the reference runtime does not train."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import UserError
from profiler.huggingface import FAMILIES, known_keys, model_from_config, read_model
from profiler.model import ModelSpec
from tests.fuzz import fuzz
from tests.unit.test_huggingface import LLAMA, VALUES, error_of, write

SIZES: dict[str, Any] = {k: v for k, v in LLAMA.items() if k != "model_type"} | {
    "num_hidden_layers": 4, "num_key_value_heads": 2,
}  # fmt: skip
MOE = {**SIZES, "num_local_experts": 6, "num_experts_per_tok": 2}
MLA = {
    **SIZES, "num_key_value_heads": 8, "q_lora_rank": 24, "kv_lora_rank": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12, "moe_intermediate_size": 20,
    "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2,
    "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
}  # fmt: skip
FILES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 100, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 32},
    "gpt_neox": SIZES,
    "bloom": {"vocab_size": 100, "n_embed": 64, "n_layer": 3, "num_attention_heads": 4},
    "mpt": {"vocab_size": 100, "d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": 32},
    "nemotron": SIZES,
    "internlm": SIZES,
    "phi": SIZES,
    "phi3": SIZES,
    "gemma2": {**SIZES, "head_dim": 24},
    "gemma3_text": {**SIZES, "head_dim": 24},
    "llama4_text": {**MOE, "intermediate_size_mlp": 112},
    "gpt_oss": MOE,
    "grok-1": MOE,
    "qwen3_next": {
        **SIZES, "head_dim": 24, "num_experts": 6, "num_experts_per_tok": 2,
        "moe_intermediate_size": 20, "shared_expert_intermediate_size": 28,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 12,
        "linear_value_head_dim": 20, "linear_conv_kernel_dim": 4,
    },
    "deepseek_v2": MLA,
    "deepseek_v3": MLA,
    "kimi_k2": MLA,
}  # fmt: skip


def read(family: str, **changes: Any) -> ModelSpec:
    return model_from_config({**FILES[family], **changes, "model_type": family}, "m", "config.json")


def message_of(family: str, **changes: Any) -> str:
    return error_of({**FILES[family], **changes, "model_type": family}).message


def test_every_new_family_has_a_file_here() -> None:
    assert set(FILES) == set(FAMILIES[7:])


@pytest.mark.parametrize("family", FILES)
def test_the_count_is_that_of_transformers(family: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    names = {"kimi_k2": "deepseek_v3"}
    kind = names.get(family, family)
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers does not know {family}")
    keys = {**FILES[family], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CONFIG_MAPPING[kind](**keys)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config)
    model = read(family)
    assert sum(p.numel() for p in theirs.parameters()) == model.num_params
    assert model.num_params == sum(model.block_params(k) for k in model.blocks) - _rounded(model)


def _rounded(model: ModelSpec) -> int:
    layers = sum(model.layer_params(i) for i in range(model.num_layers))
    return sum(model.block_params(kind) for kind in model.blocks[1:-1]) - layers


def test_gpt2_has_learned_positions_and_biases() -> None:
    model = read("gpt2", n_inner=96)
    assert (model.position, model.max_positions, model.tie_embeddings) == ("learned", 32, True)
    assert (model.gated_ffn, model.activation, model.ffn_hidden_size) == (False, "gelu", 96)
    assert (model.qkv_bias, model.out_bias, model.ffn_bias, model.layer_norm) == (True,) * 4
    assert read("gpt2").ffn_hidden_size == 256
    assert message_of("gpt2", add_cross_attention=True) == (
        "`add_cross_attention` true is not supported"
    )
    assert message_of("gpt2", activation_function="relu").startswith("activation `relu` is not")
    assert message_of("gpt2", n_head=3) == "`n_embd` 64 does not divide into 3 heads"


def test_mpt_takes_its_positions_and_biases_from_the_file() -> None:
    assert (read("mpt").position, read("mpt").norm_bias, read("mpt").ffn_bias) == (
        "alibi", False, False,
    )  # fmt: skip
    learned = read("mpt", attn_config={"alibi": False, "other": 1}, no_bias=False)
    assert (learned.position, learned.max_positions) == ("learned", 32)
    assert (learned.norm_bias, learned.qkv_bias, learned.ffn_bias) == (True, True, True)
    none = read("mpt", attn_config={"alibi": False}, learned_pos_emb=False)
    assert (none.position, none.max_positions) == ("none", 0)
    assert read("mpt", attn_config={"rope": True}).position == "rope"
    assert read("mpt", attn_config={"attn_type": "multiquery_attention"}).num_kv_heads == 1
    assert message_of("mpt", attn_config={"qk_ln": True}) == (
        "`qk_ln` true (LayerNorm of q and k) is not supported"
    )
    assert message_of("mpt", ffn_config={"ffn_type": "mptglu"}) == (
        "`ffn_type` `mptglu` is not supported"
    )


def test_families_without_a_gate() -> None:
    nemotron = read("nemotron")
    assert (nemotron.gated_ffn, nemotron.activation, nemotron.layer_norm) == (False, "relu2", True)
    phi = read("phi")
    assert (phi.norms_per_layer, phi.head_bias, phi.gated_ffn) == (1, True, False)
    bloom = read("bloom")
    assert (bloom.position, bloom.embed_norm) == ("alibi", True)
    assert message_of("bloom", n_layer=None) == "key `n_layer` is missing"
    assert read("internlm", bias=False).qkv_bias is False


def test_gemma_slides_in_its_pattern() -> None:
    assert read("gemma2").attention_pattern == ("sliding", "full")
    assert (read("gemma2").window, read("gemma2").norms_per_layer) == (4096, 4)
    six = read("gemma3_text", num_hidden_layers=8, sliding_window=1024)
    assert six.attention_pattern == ("sliding",) * 5 + ("full",)
    assert (six.window, six.qk_norm, six.activation) == (1024, True, "gelu")
    for key in ("sliding_window_pattern", "_sliding_window_pattern"):
        assert read("gemma3_text", **{key: 2}).attention_pattern == ("sliding", "full")
    listed = ["full_attention", "sliding_attention"] * 2
    assert read("gemma2", layer_types=listed).attention_pattern == ("full", "sliding")
    assert read("gemma2", sliding_window=8192).attention_pattern == ("full",)
    assert message_of("gemma2", vocab_size=None).startswith("`vocab_size`")
    tree = {k: v for k, v in FILES["gemma2"].items() if k != "vocab_size"}
    assert error_of({**tree, "model_type": "gemma2"}).message == "key `vocab_size` is missing"


def test_llama4_mixes_experts_and_chunks() -> None:
    model = read("llama4_text", interleave_moe_layer_step=2, attention_chunk_size=16)
    assert model.blocks[1:-1] == ("dense", "moe", "dense", "moe")
    assert (model.ffn_hidden_size, model.expert_width, model.shared_ffn_hidden_size) == (
        112,
        96,
        96,
    )
    assert model.attention_pattern == ("sliding", "sliding", "sliding", "full")
    assert (model.window, model.chunked_window, model.qk_norm) == (16, True, False)
    assert read("llama4_text", moe_layers=[2, 3]).first_dense_layers == 2
    assert read("llama4_text", no_rope_layers=[1, 0, 1, 0]).attention_pattern == ("sliding", "full")
    assert read("llama4_text", attention_chunk_size=None).attention_pattern == ("full",)
    assert message_of("llama4_text", no_rope_layers=[1]) == (
        "`no_rope_layers` names 1 layers, but there are 4"
    )
    assert message_of("llama4_text", moe_layers=[0, 1]).startswith("MoE layers at uneven distances")


def test_gpt_oss_has_biases_and_sinks() -> None:
    model = read("gpt_oss", rope_scaling={"rope_type": "yarn", "factor": 32.0})
    assert (model.attention_pattern, model.window) == (("sliding", "full"), 128)
    assert (model.qkv_bias, model.out_bias, model.expert_bias) == (True, True, True)
    assert (model.attention_sinks, model.router_linear_bias, model.head_dim) == (True, True, 64)
    assert (model.rope_scaling, model.rope_theta) == ("yarn", 150_000.0)


def test_qwen3_next_has_linear_layers() -> None:
    model = read("qwen3_next")
    assert model.attention_pattern == ("linear", "linear", "linear", "full")
    assert (model.attention_gate, model.qk_norm, model.shared_gate) == (True, True, True)
    assert read("qwen3_next", full_attention_interval=2).attention_pattern == ("linear", "full")
    full = read("qwen3_next", layer_types=["full_attention"] * 4)
    assert (full.attention_pattern, full.linear_num_key_heads) == (("full",), 0)
    assert read("qwen3_next", num_nextn_predict_layers=1).num_mtp_layers == 1


def test_deepseek_has_latent_attention() -> None:
    model = read("deepseek_v3", norm_topk_prob=True, num_nextn_predict_layers=1)
    assert (model.q_lora_rank, model.kv_lora_rank, model.rope_head_dim) == (24, 16, 4)
    assert (model.head_dim, model.value_head_dim, model.num_kv_heads) == (8, 12, 8)
    assert (model.first_dense_layers, model.shared_ffn_hidden_size, model.num_mtp_layers) == (
        1, 40, 1,
    )  # fmt: skip
    assert (model.router_score, model.router_bias, model.num_expert_groups) == ("sigmoid", True, 2)
    second = read("deepseek_v2", q_lora_rank=None)
    assert (second.q_lora_rank, second.router_score, second.num_expert_groups) == (0, "softmax", 1)
    grouped = read("deepseek_v2", topk_method="group_limited_greedy")
    assert (grouped.num_expert_groups, grouped.router_bias) == (2, False)
    assert read("deepseek_v2", n_routed_experts=None).num_experts == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "`attention_bias` true (biases in MLA) is not supported"),
        ({"scoring_func": "x"}, "experts scored by `x` are not supported: only `softmax` and "
         "`sigmoid` are"),
        ({"topk_method": "x"}, "experts chosen by `x` are not supported: only `greedy` and its "
         "kin and `noaux_tc` are"),
        ({"num_key_value_heads": 2},
         "model `m`: with `kv_lora_rank`, 8 heads have as many key/value heads"),
        ({"moe_intermediate_size": None}, "key `moe_intermediate_size` is missing"),
        ({"kv_lora_rank": None}, "`kv_lora_rank`: input should be a valid integer, not `null`"),
    ],
)  # fmt: skip
def test_each_fault_of_a_deepseek_has_one_message(changes: dict[str, Any], message: str) -> None:
    assert message_of("deepseek_v3", **changes) == message


@pytest.mark.parametrize("family", FILES)
def test_a_missing_size_is_not_invented(family: str) -> None:
    optional = {
        "num_key_value_heads", "head_dim", "n_shared_experts", "first_k_dense_replace", "n_group",
        "topk_group",
    }  # fmt: skip
    if family == "gemma3_text":
        optional |= {"vocab_size", "num_attention_heads"}
    if family in ("llama4_text", "gpt_oss", "grok-1", "qwen3_next", "gemma2"):
        optional -= {"num_key_value_heads"}
    for key in FILES[family]:
        tree = {k: v for k, v in FILES[family].items() if k != key} | {"model_type": family}
        if key in optional or key not in known_keys(family):  # type: ignore[arg-type]
            assert model_from_config(tree, "m", "config.json").num_params
        else:
            known = {"n_embed": "hidden_size", "num_attention_heads": "n_head"}
            shown = known.get(key, key) if family == "bloom" else key
            assert error_of(tree).message == f"key `{shown}` is missing"


def test_the_text_part_of_a_model_that_sees(tmp_path: Path) -> None:
    tree = {"model_type": "gemma3", "text_config": FILES["gemma3_text"], "vision_config": {}}
    model = model_from_config(tree, "m", "config.json")
    assert model == read("gemma3_text")
    bare = {"model_type": "llama4", "text_config": 3}
    assert error_of(bare).message == "key `text_config` is missing, or no JSON object"
    wrong = {"model_type": "gemma3", "text_config": {**FILES["gemma3_text"], "hidden_size": 0}}
    path = write(tmp_path, json.dumps(wrong, indent=1))
    with pytest.raises(UserError) as caught:
        read_model(path)
    line = 1 + path.read_text(encoding="utf-8").splitlines().index('  "hidden_size": 0,')
    assert caught.value.place == f"{path}:{line}"
    path = write(
        tmp_path,
        json.dumps(
            {**tree, "text_config": {**FILES["gemma3_text"], "hidden_activation": "x"}}, indent=1
        ),
    )
    with pytest.raises(UserError) as caught:
        read_model(path)
    assert str(caught.value.place).startswith(f"{path}:")


@fuzz
@given(data=st.data(), family=st.sampled_from(sorted(FILES)))
def test_any_content_gives_a_model_or_a_user_error(data: st.DataObject, family: str) -> None:
    keys = st.sampled_from(sorted(known_keys(family)))  # type: ignore[arg-type]
    changes = data.draw(st.dictionaries(keys, VALUES, max_size=4))
    tree = {**FILES[family], **changes, "model_type": family}
    error: UserError | None = None
    try:
        model = model_from_config(tree, "m", "f.json")
    except UserError as e:
        error = e
    if error is None:
        assert model.num_params > 0
        assert model.flops_per_token(64) > 0
    else:
        assert (bool(error.message), error.place) == (True, "f.json")
