"""Names of a model's tensors, ours and Hugging Face's, one to one.

Canonical names are those of the reference runtime, with block 0 the embedding, blocks 1..L the
layers and block L+1 the head; expert matrices have a name each, whatever layout trained them. The
names on disk are those that `from_pretrained` reads and `save_pretrained` writes (`transformers`
5 joins experts in memory alone, `transformers/conversion_mapping.py`):

    blocks.0.weight                          model.embed_tokens.weight
    blocks.3.attention.q.weight              model.layers.2.self_attn.q_proj.weight
    blocks.3.ffn_norm.weight                 model.layers.2.post_attention_layernorm.weight
    blocks.3.ffn.up.weight                   model.layers.2.mlp.up_proj.weight
    blocks.3.ffn.router.weight               model.layers.2.mlp.gate.weight
    blocks.3.ffn.experts.7.up                model.layers.2.mlp.experts.7.up_proj.weight
      Mixtral                                model.layers.2.block_sparse_moe.experts.7.w3.weight
    blocks.9.norm.weight                     model.norm.weight
    blocks.9.output.weight                   lm_head.weight
"""

from profiler.model import ModelSpec

Shapes = dict[str, tuple[int, ...]]

_WHOLE = {
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn.router.weight": "mlp.gate.weight",
    "ffn.router.bias": "mlp.gate.e_score_correction_bias",
    "ffn.shared_gate.weight": "mlp.shared_expert_gate.weight",
}
_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}


def canonical_names(model: ModelSpec) -> Shapes:
    """Canonical name -> full shape of every tensor of the model, in the order of its blocks.

    A tied head's matrix is left out; the buffer that biases the choice of experts is there.
    """
    shapes: Shapes = {"blocks.0.weight": (model.vocab_size, model.hidden_size)}
    for i, kind in enumerate(model.blocks):
        if kind in ("dense", "moe"):
            layer = _attention_shapes(model) | (
                _moe_shapes(model) if kind == "moe" else _dense_shapes(model)
            )
            shapes |= {f"blocks.{i}.{name}": shape for name, shape in layer.items()}
    head = f"blocks.{model.num_layers + 1}"
    shapes[f"{head}.norm.weight"] = (model.hidden_size,)
    if not model.tie_embeddings:
        shapes[f"{head}.output.weight"] = (model.vocab_size, model.hidden_size)
    return shapes


def _attention_shapes(model: ModelSpec) -> Shapes:
    h, d = model.hidden_size, model.head_dim
    q, kv = model.num_heads * d, model.num_kv_heads * d
    shapes: Shapes = {"attention_norm.weight": (h,)}
    for name, rows in (("q", q), ("k", kv), ("v", kv)):
        shapes[f"attention.{name}.weight"] = (rows, h)
        if model.qkv_bias:
            shapes[f"attention.{name}.bias"] = (rows,)
    shapes["attention.o.weight"] = (h, q)
    if model.qk_norm:
        shapes |= {"attention.q_norm.weight": (d,), "attention.k_norm.weight": (d,)}
    return shapes | {"ffn_norm.weight": (h,)}


def _swiglu_shapes(prefix: str, hidden: int, width: int, suffix: str = ".weight") -> Shapes:
    return {
        f"{prefix}.gate{suffix}": (width, hidden),
        f"{prefix}.up{suffix}": (width, hidden),
        f"{prefix}.down{suffix}": (hidden, width),
    }


def _dense_shapes(model: ModelSpec) -> Shapes:
    return _swiglu_shapes("ffn", model.hidden_size, model.ffn_hidden_size)


def _moe_shapes(model: ModelSpec) -> Shapes:
    h, e = model.hidden_size, model.num_experts
    shapes: Shapes = {"ffn.router.weight": (e, h)}
    if model.router_bias:
        shapes["ffn.router.bias"] = (e,)
    for expert in range(e):
        shapes |= _swiglu_shapes(f"ffn.experts.{expert}", h, model.expert_width, suffix="")
    if model.shared_ffn_hidden_size:
        shapes |= _swiglu_shapes("ffn.shared", h, model.shared_ffn_hidden_size)
    if model.shared_gate:
        shapes["ffn.shared_gate.weight"] = (1, h)
    return shapes


def hf_name(model: ModelSpec, name: str) -> str:
    """Name on disk of a canonical name; different names have different ones."""
    _, block, rest = name.split(".", 2)
    index = int(block)
    if index == 0:
        return f"model.embed_tokens.{rest}"
    if index == model.num_layers + 1:
        return {"norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}[rest]
    moe = "block_sparse_moe" if model.family == "mixtral" else "mlp"
    parts = rest.split(".")
    if rest in _WHOLE:
        inner = _WHOLE[rest].replace("mlp.", f"{moe}.")
    elif parts[0] == "attention":
        what = parts[1] if parts[1].endswith("_norm") else f"{parts[1]}_proj"
        inner = f"self_attn.{what}.{parts[2]}"
    elif parts[1] == "experts":
        matrix = _MIXTRAL[parts[3]] if model.family == "mixtral" else f"{parts[3]}_proj"
        inner = f"{moe}.experts.{parts[2]}.{matrix}.weight"
    elif parts[1] == "shared":
        shared = "shared_experts" if model.family == "dots1" else "shared_expert"
        inner = f"mlp.{shared}.{parts[2]}_proj.weight"
    else:
        inner = f"mlp.{parts[1]}_proj.weight"
    return f"model.layers.{index - 1}.{inner}"
