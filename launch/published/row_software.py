"""A row's training software, what it states of it, and its precision.

`features` are read as `key=value` pairs and words. Where a Megatron-Bridge release from 26.06 on
states none for a model with experts, those of the same release's other rows are assumed (full CUDA
graphs, HybridEP, overlapped exchange), which its recipes turn on by default.
"""

import dataclasses
import re

from launch.published.cells import UnusableRowError, number, shown, yes
from launch.published.table import Cells
from planner.timing.quantities import Software
from profiler.catalog.constants import load_software
from profiler.job import Precision

_SOFTWARE = (
    (r"megatron.?deepspeed|vtrain", "megatron-deepspeed"),
    (r"nanotron", "nanotron"),
    (r"composer|llm-foundry|mosaic", "composer"),
    (r"internevo", "internevo"),
    (r"torchtitan", "torchtitan"),
    (r"maxtext|paxml|jax", "maxtext"),
    (r"^megatron-lm$", "megatron-2021"),
)
_MEGATRON = re.compile("megatron|nemo|mcore")
_KNOWN = re.compile(
    r"(cuda_graph_impl=(full_iteration|local|transformer_engine|none)|cuda_graph_scope=.*|"
    r"moe_a2a_overlap=(true|false)|moe_flex_dispatcher_backend=(hybridep|deepep|none)|"
    r"torch\.compile|asynctp|cpu_offloading_num_layers=\d+|use_megatron_fsdp=(true|false)|"
    r"flash attention.*|1f1b schedule.*|pack_sample_into_one=(true|false)|"
    r"cross-entropy fusion.*|.*overlap off.*)?",
    re.I | re.S,
)
_RECOMPUTED = re.compile(
    r"(none|full|use_checkpoint=true|activation checkpoint|(ac: )?selective (ac|op|layer)|"
    r"selective: ?(core_attn|layernorm|mlp|moe_act|mla_up_proj)"
    r"(\+(core_attn|layernorm|mlp|moe_act|mla_up_proj))*(?![a-z_+])|"
    r"selective \(attention core\)|selective: ?\[\]$|ac: (none|full)|"
    r".*block:\d+ layers per stage).*|",
    re.I | re.S,
)
_MODULES = {
    "layernorm": "recompute_norms", "mlp": "recompute_ffn",
    "moe_act": "recompute_expert_activation", "mla_up_proj": "recompute_latent",
}  # fmt: skip
_PRECISIONS: tuple[tuple[str, Precision], ...] = (
    (r"(nv|mx|^)fp4", "fp4"), (r"fp8|float8", "fp8"), (r"bf16|bfloat16", "bf16"),
    (r"fp16|float16|^half", "fp16"), (r"^(fp|float)32$", "fp32"), (r"^(amp|mixed)\b", "bf16"),
)  # fmt: skip


def software_of(cells: Cells) -> str:
    """Catalogue name; Megatron-Core where nothing else is recognised."""
    text = f"{cells.get('framework', '')}".lower()
    named = next((name for pattern, name in _SOFTWARE if re.search(pattern, text)), None)
    return named or "megatron"


def unknown_framework(cells: Cells) -> str | None:
    """The framework, where it is stated and nothing here recognises it."""
    text = cells.get("framework", "").strip()
    known = not text or any(re.search(p, text.lower()) for p, _ in _SOFTWARE)
    return None if known or _MEGATRON.search(text.lower()) else shown(text, 60)


def unknown_features(cells: Cells) -> list[str]:
    """Features, and kinds of recomputation, that nothing here understands."""
    parts = [p.strip() for p in cells.get("features", "").split(";")]
    found = [shown(p, 60) for p in parts if not _KNOWN.fullmatch(p)]
    again = cells.get("recompute", "")
    return found if _RECOMPUTED.fullmatch(again) else [*found, f"recompute {shown(again)}"]


def precision_of(cells: Cells) -> Precision:
    """Of the weights' products; bf16 where the row does not say."""
    text = cells.get("precision", "").strip().lower()
    if not text:
        return "bf16"
    found = next((name for pattern, name in _PRECISIONS if re.search(pattern, text)), None)
    if found is None:
        raise UnusableRowError(f"no such precision: {shown(text)}")
    return found


def traits_of(cells: Cells, name: str, tp: int, layers_per_stage: float) -> Software:
    """What the software did in this run."""
    entry = load_software(name)
    sequence = yes(cells, "seq_parallel")
    if sequence is None:
        sequence = entry.sequence_parallel and tp > 1
    features = cells.get("features", "").lower()
    has_experts = bool(number(cells, "n_experts"))
    version = cells.get("framework_version", "")
    recent = has_experts and not features and bool(re.match(r"26\.(0[6-9]|1)", version))
    fused = recent or "hybridep" in features or "deepep" in features
    return dataclasses.replace(
        Software(),
        flash=float(entry.kernel != "none"),
        sequence_parallel=float(sequence),
        balanced=float(entry.balanced),
        compiled=float("torch.compile" in features),
        graph=1.0 if recent else _graph(features),
        drops=float("tokendrop" in cells.get("model", "").lower()),
        fused_exchange=float(fused),
        overlap_exchange=float(recent or "a2a_overlap=true" in features),
        stalls=float(entry.stalls),
        reduce_bytes=_reduce_bytes(cells, name, entry.reduce_bytes),
        overlaps=float("overlap off" not in features),
        broadcasts=float(entry.broadcasts),
        **_recompute(cells, layers_per_stage),
    )


def _reduce_bytes(cells: Cells, name: str, usual: float) -> float:
    """DeepSpeed's bf16 optimizer sums and reduces in fp32, its fp16 one in fp16."""
    in_bf16 = name == "megatron-deepspeed" and "bf16" in cells.get("precision", "").lower()
    return 4.0 if in_bf16 else usual


def _graph(features: str) -> float:
    """Share of the kernels that start from CUDA graphs. Of Transformer Engine's, those of attention
    hold some 15 of a MoE layer's 35 operations, those of the router and its bookkeeping some 10."""
    if re.search(r"cuda_graph_impl=(full|local)", features):
        return 1.0
    if "cuda_graph_impl=transformer_engine" not in features:
        return 0.0
    return 0.7 if "'attn'" in features else 0.3


def _recompute(cells: Cells, layers_per_stage: float) -> dict[str, float]:
    """Recomputation beside the layout's `none`, `selective` (attention alone) and `full`.

    torchtitan: selective by layer is every second layer; by operator, every second matrix product
    and all element-wise work. Megatron: `full/block:5 layers per stage`, and modules by name.
    """
    text = cells.get("recompute", "").lower()
    if "selective layer" in text or text == "selective ac":
        return {"recompute_full": 0.5}
    if "selective op" in text:
        return {"recompute_matrix": 0.25}
    modules = re.match(r"selective: ?([a-z_+]+)", text)
    if modules:
        return {f: 1.0 for m in modules[1].split("+") if (f := _MODULES.get(m))}
    block = re.search(r"block:([0-9]{1,4}) layers per stage", text)
    if block:
        return {"recompute_full": min(1.0, int(block[1]) / layers_per_stage)}
    return {}
