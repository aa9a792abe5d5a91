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

_WHOLE = {
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn.router.weight": "mlp.gate.weight",
    "ffn.router.bias": "mlp.gate.e_score_correction_bias",
    "ffn.shared_gate.weight": "mlp.shared_expert_gate.weight",
}
_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}


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
