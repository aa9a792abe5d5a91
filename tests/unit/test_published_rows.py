"""Rows of published runs: what each column means, what is assumed, and why a row is refused."""

import pytest

from launch.published.cells import UnusableRowError, count, extends, number, shown, size_in, yes
from launch.published.row_software import unknown_features
from launch.published.runs import run_of, score_rows
from planner.peak import RECIPES
from planner.predict import predict_peaks, predict_steps
from profiler.catalog.load import load_device, load_model
from tests.unit.published import PLAIN, refusal

GIB = 2.0**30


def run(**given):
    """The run of a row: `PLAIN` with other cells."""
    return run_of({**PLAIN, **given}).run


def why(**given):
    """Why a row is refused."""
    return refusal(given)


def test_a_plain_row_and_what_is_assumed():
    published = run_of(PLAIN)
    r = published.run
    assert (r.model.num_layers, r.model.ffn_hidden_size, r.model.vocab_size) == (8, 4096, 51200)
    assert (r.model.num_kv_heads, r.model.head_dim, r.model.gated_ffn) == (16, 64, False)
    c = r.config
    assert (c.tp, c.pp, c.num_replicas, c.micro_batch, c.zero, c.dp_shard) == (2, 2, 2, 2, 1, 2)
    assert (c.recompute, c.schedule, c.vpp) == ("none", "1f1b", 1)
    assert (published.software, r.job.precision, published.step_s) == ("megatron", "bf16", 1.5)
    assert (r.group.device.name, r.group.devices_per_node, r.num_microbatches) == ("h100", 8, 16)
    assert published.peak_gib is None


# Models


def test_catalogued_shape_with_what_the_row_says_otherwise():
    spec = run(model="Llama3 8B", hidden="4096", layers="", heads="").model
    assert spec == load_model("llama3-8b")
    given = run(model="Llama3 8B", hidden="4096", layers="16", heads="64", kv_heads="16",
                vocab="1000", ffn_hidden="8192").model  # fmt: skip
    assert (given.num_layers, given.num_heads, given.num_kv_heads) == (16, 64, 16)
    assert (given.vocab_size, given.ffn_hidden_size, given.gated_ffn) == (1000, 8192, True)
    assert run(model="Llama3 8B", hidden="", layers="", heads="").model.hidden_size == 4096
    key = run(model="mine", model_key="llama3-8b", hidden="4096", layers="32", heads="32").model
    assert key == load_model("llama3-8b")


def test_another_hidden_size_is_another_model():
    spec = run(model="llama3-8b", hidden="2048", heads="16").model
    assert (spec.hidden_size, spec.num_layers, spec.gated_ffn) == (2048, 8, True)
    assert spec.ffn_hidden_size == -(-8 * 2048 // 3 // 256) * 256


def test_truncated_model_keeps_one_dense_layer_and_no_mtp():
    spec = run(model="deepseekv3 truncated to 4 layers", model_key="deepseek-v3-l4", hidden="7168",
               layers="4", heads="", pp="1").model  # fmt: skip
    whole = load_model("deepseek-v3")
    assert (spec.num_layers, spec.first_dense_layers, spec.num_mtp_layers) == (4, 1, 0)
    assert (whole.first_dense_layers, spec.num_moe_layers) == (3, 3)
    assert spec.kv_lora_rank == whole.kv_lora_rank
    assert spec.shared_ffn_hidden_size == whole.shared_ffn_hidden_size


def test_experts_of_a_row_alone():
    spec = run(model="mine", n_experts="8", topk="2", moe_ffn_hidden="512", ep="4",
               shared_expert_ffn="256").model  # fmt: skip
    assert (spec.num_experts, spec.num_experts_per_token) == (8, 2)
    assert (spec.expert_width, spec.shared_ffn_hidden_size) == (512, 256)
    assert run(n_experts="8", ep="4").model.num_experts_per_token == 1
    assert run(n_experts="0", ep="4").config.ep == 1


def test_head_is_tied_by_size_where_the_name_states_one():
    # 2 layers of 4096 and a vocabulary of 128,256: 0.9B tied, 1.5B not.
    wide = {"layers": "2", "hidden": "4096", "heads": "32", "vocab": "128256", "gated": "Y"}
    assert run(model="qwen-like 0.9B", pp="1", **wide).model.tie_embeddings
    assert not run(model="qwen-like 1.5B", pp="1", **wide).model.tie_embeddings
    assert not run(model="qwen-like 0.9B", pp="1", tied="N", **wide).model.tie_embeddings
    assert run(model="GPT 1.5B", pp="1", **wide).model.tie_embeddings
    assert run(model="GPT").model.tie_embeddings
    assert not run(model="toy").model.tie_embeddings


def test_vocabularies_in_words():
    assert run(vocab='~250k (text: "250k vocab")').model.vocab_size == 250880
    assert run(vocab="32k").model.vocab_size == 32000
    assert run(vocab="50,257").model.vocab_size == 50257
    assert run(model="Grok9").model.vocab_size == 131072


def test_missing_layers_follow_from_the_size_in_whole_stages():
    # BigScience: (200e9 - 250880 * 14400) / (12 * 14400^2) = 78.9, in stages of 12.
    cells = {"layers": "", "hidden": "14400", "vocab": "~250k", "pp": "12", "n_gpus": "96",
             "heads": "", "tp": "8", "gbs": "2048"}  # fmt: skip
    assert run(model="GPT 200B (BLOOM prequel)", **cells).model.num_layers == 84
    assert run(model="GPT 1M", **cells).model.num_layers == 12
    assert run(model="GPT 200B (BLOOM prequel)", **cells).model.num_heads == 64


def test_attention_in_words():
    mla = run(attn="MLA no q_lora, kv_lora 512 qk 128+64 v 96").model
    assert (mla.kv_lora_rank, mla.head_dim, mla.rope_head_dim) == (512, 128, 64)
    assert (mla.v_head_dim, mla.q_lora_rank, mla.num_kv_heads) == (96, 0, 16)
    assert run(attn="MLA q_lora 1536, kv_lora 512 qk 128+64 v 128").model.q_lora_rank == 1536
    sliding = run(attn="GQA, sliding window 128 every other layer", kv_heads="4").model
    assert (sliding.window, sliding.attentions[:3]) == (128, ("sliding", "full", "sliding"))
    assert run(attn="GQA").model.attention_pattern == ("full",)


def test_shapes_that_cannot_be():
    assert why(heads="16", kv_heads="3").startswith("no such model can be: ")
    assert "experts" in why(n_experts="8", topk="9", ep="1")
    reason = "no `layers`: the catalogue has no model `lama3 70x`, nearest is `llama3-70b`"
    assert why(model="lama3 70x", layers="") == reason
    assert why(model="", layers="") == "no `layers`"
    assert why(model="lama", hidden="").startswith("no `hidden`: the catalogue has no model `lama`")


# Hardware


@pytest.mark.parametrize(
    ("gpu", "memory", "device"),
    [
        ("A100", "", "a100-80"), ("A100", "40", "a100-40"), ("H100", "96", "h100-96"),
        ("NVIDIA H100 80GB HBM3", "", "h100"), ("A100-SXM4-40GB", "", "a100-40"),
        ("A100-SXM4-80GB", "", "a100-80"), ("V100", "16", "v100-16"), ("Tesla T4", "", "t4"),
        ("A100 PCIe", "80", "a100-pcie-80"), ("H100 PCIe", "", "h100-pcie"), ("GB200", "", "gb200"),
        ("GB200 NVL72", "", "gb200"), ("AMD MI300X", "", "mi300x"), ("h20", "", "h20"),
    ],
)  # fmt: skip
def test_devices(gpu, memory, device):
    assert run(gpu=gpu, gpu_mem_gb=memory).group.device == load_device(device).device


def test_unknown_devices_name_the_nearest():
    assert why(gpu="H1000") == "no such GPU in the catalogue: H1000, nearest is `h100`"
    assert why(gpu="A1000").startswith("no such GPU in the catalogue: A1000")
    assert why(gpu="L40") == "no such GPU in the catalogue: L40, nearest is `l40s`"
    assert why(gpu="\u200b\n☃") == "no `gpu`: \\u200b\\n☃"
    assert why(gpu="") == "no `gpu`"


def test_networks_in_words():
    def net(text, **given):
        group = run(inter_link=text, n_gpus="16", gpus_per_node="8", **given).group
        return group.nic.bytes_per_s * group.nics_per_node * 8 / 1e9, group.nics_per_node

    assert net("1600 Gbps node-node interconnect (RoCE)") == (1600, 8)
    assert net("4 x 100Gb RoCE per machine") == (400, 4)
    assert net("8x 200Gbps HDR IB per node") == (1600, 8)
    assert net("400 Gb/s RDMA per GPU") == (3200, 8)
    assert "EFA" in run(inter_link="EFA (index.md line 794)", n_gpus="16").group.nic.name
    assert "Omni-Path" in run(inter_link="JeanZay (Omni-Path)", gpu="A100").group.nic.name
    assert "InfiniBand" in run(inter_link="200 Gbps IB").group.nic.name
    assert why(inter_link="0 Gbps").startswith("`inter_link` has no rate above 0")
    assert run(inter_link="fast").group == run().group
    assert run(n_gpus="8", gpus_per_node="4").group.num_nodes == 2


# Software


def test_software_and_traits():
    assert run_of({**PLAIN, "framework": "nanotron"}).software == "nanotron"
    assert run(framework="nanotron").software.stalls == 1
    assert run(framework="Megatron-LM").software.flash == 0
    assert run(framework="microsoft/Megatron-DeepSpeed").config.recompute == "full"
    assert run(framework="microsoft/Megatron-DeepSpeed").software.sequence_parallel == 0
    assert run(seq_parallel="n").software.sequence_parallel == 0
    assert run(tp="1").software.sequence_parallel == 0
    assert run(model="toy (tokendrop)", n_experts="8", ep="1").software.drops == 1
    features = "cuda_graph_impl=full_iteration; moe_a2a_overlap=True; torch.compile; " \
               "moe_flex_dispatcher_backend=deepep"  # fmt: skip
    s = run(features=features).software
    assert (s.graph, s.overlap_exchange, s.compiled, s.fused_exchange) == (1, 1, 1, 1)
    parts = "cuda_graph_impl=transformer_engine; cuda_graph_scope=[{}'moe_router']"
    assert run(features=parts.format("'attn', ")).software.graph == 0.7
    assert run(features=parts.format("")).software.graph == 0.3
    assert run(features="p2p overlap OFF").software.overlaps == 0
    recent = {"framework_version": "26.08", "n_experts": "8", "ep": "1"}
    assert run(**recent).software.graph == 1
    assert run(**recent | {"features": "asynctp"}).software.graph == 0
    assert run(features="cpu_offloading_num_layers=20").config.offload == "activations"


@pytest.mark.parametrize(
    ("text", "full", "matrix", "stated"),
    [
        ("", 0, 0, "none"), ("full", 0, 0, "full"), ("full (per block)", 0, 0, "full"),
        ("activation checkpointing", 0, 0, "full"), ("AC: full", 0, 0, "full"),
        ("selective (attention core)", 0, 0, "selective"), ("selective AC", 0.5, 0, "selective"),
        ("AC: selective op", 0, 0.25, "selective"), ("AC: selective layer", 0.5, 0, "selective"),
        ("full/block:1 layers per stage", 0.25, 0, "none"), ("none ([])", 0, 0, "none"),
        ("full/block:99 layers per stage", 1, 0, "none"),
    ],
)  # fmt: skip
def test_recomputation_in_words(text, full, matrix, stated):
    r = run(recompute=text)
    assert (r.software.recompute_full, r.software.recompute_matrix) == (full, matrix)
    assert r.config.recompute == stated


def test_modules_that_run_again():
    r = run(recompute="selective: layernorm+moe_act").software
    assert (r.recompute_norms, r.recompute_expert_activation) == (1, 1)
    assert (r.recompute_ffn, r.recompute_latent, r.recompute_full) == (0, 0, 0)
    r = run(recompute="selective: mla_up_proj+mlp").software
    assert (r.recompute_ffn, r.recompute_latent) == (1, 1)
    both = run(recompute="selective: core_attn+layernorm")
    assert (both.config.recompute, both.software.recompute_norms) == ("selective", 1)
    assert unknown_features({"recompute": "selective: layernorm+mlp", "features": ""}) == []
    assert unknown_features({"recompute": "selective: layernorm+else", "features": ""})


def test_precision_in_words():
    words = {
        "": "bf16", "BF16": "bf16", "amp_bf16 / FSDP": "bf16", "mixed precision (fp16)": "fp16",
        "FP8-CS": "fp8", "MXFP8": "fp8", "FP8 (Float8 nn.Linear)": "fp8", "fp32": "fp32",
    }  # fmt: skip
    for text, precision in words.items():
        assert run(precision=text).job.precision == precision, text
    assert run(precision="NVFP4", gpu="B200").job.precision == "fp4"
    assert why(precision="NVFP4") == "the device has no such precision: h100 fp4"
    assert why(precision="FP8", gpu="A100").startswith("the device has no such precision")
    assert why(precision="int8") == "no such precision: int8"


# Layouts


@pytest.mark.parametrize(
    ("text", "framework", "zero", "shard"),
    [
        ("", "", 1, 16), ("", "nanotron", 0, 1), ("ZeRO-0", "", 0, 1),
        ("ZeRO-1", "nanotron", 1, 16), ("FSDP=16", "jax", 3, 16),
        ("ZeRO-1 group 8", "InternEvo", 1, 8), ("ZeRO-1 over all DP", "", 1, 16),
        ("ZeRO-3", "", 3, 16), ("FSDP FULL_SHARD", "Composer", 3, 16), ("FSDP(shard=8)", "", 3, 8),
        ("FSDP2 16", "torchtitan", 3, 16), ("FSDP 4", "torchtitan", 3, 4),
        ("FSDP=0", "", 1, 16), ("FSDP=0", "jax", 0, 1), ("FSDP+DP (title)", "jax", 3, 16),
        ("ici_FSDP=8,dcn_FSDP=2,dcn_DP=1", "jax", 3, 16), ("ici_FSDP=8,dcn_FSDP=1", "jax", 3, 8),
        ("DDP (no FSDP); distributed-optimizer not stated", "", 1, 16),
    ],
)  # fmt: skip
def test_sharding_in_words(text, framework, zero, shard):
    c = run(dp_shard=text, framework=framework, n_gpus="16", tp="1", pp="1").config
    assert (c.zero, c.dp_shard, c.dp_replicate) == (zero, shard, 16 // shard)


def test_layouts():
    c = run(n_gpus="32", vp="2", cp="2", gbs="63").config
    assert (c.schedule, c.vpp, c.cp, c.num_replicas) == ("interleaved", 2, 2, 4)
    assert run(vp="2", pp="1").config.vpp == 1
    moe = run(n_experts="8", ep="4", etp="4", tp="2", pp="1", dp="1").config
    assert (moe.ep, moe.etp) == (4, 2)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"tp": "3"}, "contradiction: tp*pp*cp = 6, n_gpus = 8"),
        ({"dp": "4"}, "contradiction: dp = 4, n_gpus/(tp*pp*cp) = 2"),
        ({"gbs": "3"}, "contradiction: dp*mbs = 4, gbs = 3"),
        ({"vp": "8"}, "contradiction: pp*vp = 16, layers = 8"),
        ({"n_experts": "8", "ep": "8"}, "contradiction: ep*etp = 8, n_gpus/pp = 4"),
        ({"n_experts": "2", "ep": "4"}, "contradiction: ep = 4, n_experts = 2"),
        ({"dp_shard": "FSDP 3"}, "contradiction: sharded over 3, dp*cp = 2"),
        ({"dp_shard": "ZeRO-7"}, "no such ZeRO stage: ZeRO-7"),
        ({"gbs": "10000000", "mbs": "1", "layers": "80", "pp": "8", "tp": "1"},
         "too many micro-batches to simulate: 80,000,000 with all stages"),
        ({"n_gpus": ""}, "no `n_gpus`"), ({"gbs": ""}, "no `gbs`"), ({"mbs": ""}, "no `mbs`"),
        ({"seq_len": ""}, "no `seq_len`"),
        ({"gated": "maybe"}, "`gated` is neither y nor n: maybe"),
        ({"tp": "two"}, "`tp` is no number: two"), ({"tp": "-2"}, "`tp` is no number: -2"),
        ({"tp": "nan"}, "`tp` is no number: nan"), ({"tp": "inf"}, "`tp` is no number: inf"),
        ({"tp": "0"}, "`tp` is no whole number above 0: 0"),
        ({"seq_len": "0.5"}, "`seq_len` is no whole number above 0: 0.5"),
        ({"heads": "1e30"}, "`heads` is too large: 1e30"),
        ({"hidden": "1" + "0" * 400}, f"`hidden` is too large: 1{'0' * 29}..."),
        ({"layers": "99999"}, "`layers` is too large: 99999"),
        ({"step_s": "0"}, "`step_s` is not above 0: 0"),
        ({"step_s": "-1"}, "`step_s` is no number: -1"),
        ({"tok_s_gpu": "inf"}, "`tok_s_gpu` is no number: inf"),
        ({"peak_mem_gib": "1e-300"}, "`peak_mem_gib` is not above 0: 1e-300"),
    ],
)  # fmt: skip
def test_reasons(given, reason):
    assert why(**given) == reason


# Measurements


def test_a_time_is_stated_or_follows_from_the_rate():
    def step(**given):
        return run_of({**PLAIN, **given}).step_s

    assert step(step_s="", tok_s_gpu="2048") == 64 * 2048 / (2048 * 8)
    assert step(step_s="3", tok_s_gpu="2048") == 3
    assert step(step_s="", tok_s_gpu="", peak_mem_gib="3") is None


def predicted_gib(**given):
    cells = {**PLAIN, "peak_mem_gib": "10", "pp": "1", "tp": "1", **given}
    published = run_of(cells)
    (row,) = score_rows([published], ())
    return row.predicted_peak_gib, predict_peaks(published.run)


def test_memory_definitions():
    found, peaks = predicted_gib(mem_definition="max allocated over ranks; reserved 70 GiB")
    assert found == pytest.approx(peaks.allocated[0] / GIB)
    found, peaks = predicted_gib(mem_definition="max over ranks, torch reserved/active reading")
    assert found == pytest.approx(peaks.reserved[0] / GIB)
    found, peaks = predicted_gib(mem_definition="nvidia-smi-like reading")
    assert found == pytest.approx(peaks.smi[0] / GIB * 1e9 / 2**30)
    found, peaks = predicted_gib(mem_definition='"GPU memory" in hover text', framework="nanotron")
    assert found < peaks.reserved[0] / GIB
    assert (
        run(mem_definition="peak allocated after iteration 2").recipe
        == (RECIPES["megatron-bf16-moments"])
    )
    assert run(framework="vTrain", precision="bf16").recipe == RECIPES["deepspeed-bf16"]
    assert run(framework="Composer", precision="bf16 / PURE").recipe == RECIPES["composer-pure"]


def test_what_fits_where_recomputation_is_not_stated():
    big = {"model": "llama2-70b", "hidden": "8192", "layers": "", "heads": "", "seq_len": "4096",
           "tp": "8", "pp": "8", "n_gpus": "64", "gbs": "64", "mbs": "8"}  # fmt: skip
    blank, none = (run_of({**PLAIN, **big, "recompute": text}) for text in ("", "none"))
    (assumed,), (stated,) = score_rows([blank], ()), score_rows([none], ())
    assert assumed.fits
    assert not stated.fits


def test_micro_batches_need_not_divide():
    r = run(gbs="50", pp="1", tp="1")
    assert r.num_microbatches == pytest.approx(50 / 16)
    (low, _), (mid, _), (high, _) = predict_steps(
        [run(gbs=g, pp="1", tp="1") for g in ("48", "50", "64")]
    )
    assert low < mid < high


# Cells


def test_numbers():
    cells = {"a": "~250k", "b": "1,024", "c": "1.5e3", "d": "80 (stated)", "e": "n/a", "f": "2B"}
    assert [number(cells, n) for n in "abcdefg"] == [250e3, 1024, 1500, 80, None, 2e9, None]
    for text in ("1e", "0x10", "٣", "1 024 5 x".replace(" ", "_"), "½", "12abc", "--", "+"):
        with pytest.raises(UnusableRowError, match="is no number"):
            number({"a": text}, "a")
    assert count({"a": "3.0"}, "a") == 3
    assert [yes({"a": t}, "a") for t in ("Y", "n", "TRUE", "", "?")] == [
        True,
        False,
        True,
        None,
        None,
    ]


def test_words():
    assert [size_in(t) for t in ("GPT 20B", "1.34B", "x", "9" * 400 + "B")] == [
        20e9,
        1.34e9,
        None,
        None,
    ]
    assert extends("h100pcie", "h100")
    assert extends("llama38b12layers", "llama38b")
    assert not extends("a1000", "a100")
    assert shown("a\x00b\u202e" + "x" * 40) == "a\\x00b\\u202e" + "x" * 26 + "..."
