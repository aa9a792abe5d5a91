"""Parameters and FLOPs of a `ModelSpec`, from its shapes alone.

Parameters, with h hidden, a heads, g key/value heads, d and v head dimensions, f a width:

    attention   h*(a*d + g*d + g*v) + a*v*h           a*d twice where q carries a gate
    MLA         h*(c + r) + c*a*(d + v) + a*v*h       c = kv_lora_rank, r = rope_head_dim
                + h*a*(d + r), or h*q + q*a*(d + r)   q = q_lora_rank; + a norm of size c, of q
    linear      h*(2*K + 2*V + 2*n) + k*(2*K + V) + V*h + 2*n + w
                K, V = heads * dimension of keys, of values; n value heads of dimension w; k taps
    dense ffn   3*h*f, or 2*h*f without a gate
    moe ffn     e*3*h*x + h*e + 3*h*y                 e experts of width x, shared width y
    mtp         2*h*h + 3 norms + one layer           norms: of the embedding, the hidden state, and
                                                      before the shared head
    norms       h each, LayerNorm 2*h; one before the head

Biases, sinks and the norms of q and k are added where the model has them. Sources: the modelling
files of `transformers` (DeepSeek-V3's for MLA, Qwen3-Next's for linear), and README_WEIGHTS.md of
deepseek-ai/DeepSeek-V3 for MTP.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profiler.model import Attention, BlockKind, ModelSpec


def attention_matrix(m: "ModelSpec") -> int:
    """Elements of the matrices of one full or sliding attention."""
    h, q, v = m.hidden_size, m.num_heads * m.qk_head_dim, m.num_heads * m.v_head_dim
    if m.is_mla:
        down = h * (m.kv_lora_rank + m.rope_head_dim + m.q_lora_rank)
        up = m.kv_lora_rank * m.num_heads * (m.head_dim + m.v_head_dim)
        return down + up + (m.q_lora_rank or h) * q + v * h
    gates = 2 if m.attention_gate else 1
    return h * (gates * q + m.num_kv_heads * (m.head_dim + m.v_head_dim) + v)


def attention_params(m: "ModelSpec") -> int:
    """Parameters of one full or sliding attention."""
    vectors = m.hidden_size * m.out_bias + m.num_heads * m.attention_sinks
    if m.is_mla:
        vectors += m.kv_lora_rank + m.q_lora_rank
    if m.qk_norm:
        vectors += 2 * m.head_dim
    if m.qkv_bias:
        q = m.num_heads * m.head_dim * (2 if m.attention_gate else 1)
        vectors += q + m.num_kv_heads * (m.head_dim + m.v_head_dim)
    return attention_matrix(m) + vectors


def linear_matrix(m: "ModelSpec") -> int:
    """Elements of the matrices and the convolution of one linear attention."""
    keys = m.linear_num_key_heads * m.linear_key_head_dim
    values = m.linear_num_value_heads * m.linear_value_head_dim
    inputs = m.hidden_size * (2 * keys + 2 * values + 2 * m.linear_num_value_heads)
    return inputs + m.linear_conv_kernel * (2 * keys + values) + values * m.hidden_size


def linear_attention_params(m: "ModelSpec") -> int:
    """Parameters of one linear attention: its matrices, a decay and a step bias for each value
    head, and the norm of a value head."""
    return linear_matrix(m) + 2 * m.linear_num_value_heads + m.linear_value_head_dim


def ffn_matrix(m: "ModelSpec", width: int) -> int:
    """Elements of the matrices of one feed-forward network of that width."""
    return (3 if m.gated_ffn else 2) * m.hidden_size * width


def ffn_params(m: "ModelSpec", width: int, *, bias: bool) -> int:
    """Parameters of one feed-forward network of that width."""
    biases = (2 if m.gated_ffn else 1) * width + m.hidden_size
    return ffn_matrix(m, width) + (biases if bias else 0)


def shared_params(m: "ModelSpec") -> int:
    """Parameters of the shared experts of a MoE layer, their gate included."""
    return ffn_matrix(m, m.shared_ffn_hidden_size) + m.hidden_size * m.shared_gate


def layer_params(m: "ModelSpec", kind: "BlockKind", attention: "Attention") -> int:
    """Parameters of a layer of that kind with that attention."""
    mixer = linear_attention_params(m) if attention == "linear" else attention_params(m)
    ffn = m.ffn_params
    if kind == "moe":
        ffn = m.num_experts * m.expert_params + m.router_params + m.shared_params
    return mixer + ffn + m.norms_per_layer * m.norm_params


def mtp_params(m: "ModelSpec") -> int:
    """Parameters of a multi-token-prediction module, without embedding and head, which it shares.

    Three norms: `enorm`, `hnorm` and the one before the head (`shared_head.norm`).
    """
    projection = 2 * m.hidden_size * m.hidden_size
    return projection + 3 * m.norm_params + m.layer_params(m.num_layers - 1)


def embed_params(m: "ModelSpec") -> int:
    """Parameters of the embedding, learned positions and its norm included."""
    rows = m.vocab_size + m.max_positions
    return rows * m.hidden_size + m.embed_norm * m.norm_params


def head_params(m: "ModelSpec") -> int:
    """Parameters of the head and the norm before it; a tied matrix belongs to the embedding."""
    matrix = 0 if m.tie_embeddings else m.vocab_size * m.hidden_size
    return matrix + m.norm_params + m.head_bias * m.vocab_size


def block_params(m: "ModelSpec", kind: "BlockKind") -> int:
    """Parameters of one block; the mean, rounded up, where layers of a kind differ."""
    if kind == "embed":
        return embed_params(m)
    if kind == "head":
        return head_params(m)
    if kind == "mtp":
        return mtp_params(m)
    found = [(n, a) for (k, a), n in m.layer_counts.items() if k == kind] or [(1, "full")]
    total = sum(n * layer_params(m, kind, a) for n, a in found)
    return -(-total // sum(n for n, _ in found))


def num_params(m: "ModelSpec") -> int:
    """All parameters, a tied matrix once."""
    layers = sum(n * layer_params(m, kind, a) for (kind, a), n in m.layer_counts.items())
    mtp = m.num_mtp_layers * mtp_params(m) if m.num_mtp_layers else 0
    return embed_params(m) + layers + mtp + head_params(m)


def mean_context(m: "ModelSpec", attention: "Attention", seq_len: int) -> float:
    """Tokens that a token attends to on average: s / 2 where all before it are seen."""
    if attention == "linear":
        return 0.0
    if attention == "full" or m.window >= seq_len:
        return seq_len / 2
    w = m.window
    if m.chunked_window:
        chunks, rest = divmod(seq_len, w)
        return (chunks * w * w + rest * rest) / 2 / seq_len
    return w - w * w / 2 / seq_len


def attention_flops_per_token(m: "ModelSpec", attention: "Attention", seq_len: int) -> float:
    """FLOPs of forward + backward of one attention beyond its matrices, per token.

    Softmax attention: scores and values, 2 FLOPs per multiply-add, backward twice forward. Linear
    attention: the delta rule's three products of a key or value with the state of each value head
    (reading the old value, writing the new one, the output), counted as the recurrence needs them
    (arXiv 2412.06464, eq. 10), not as a chunked kernel does them.
    """
    if attention == "linear":
        state = m.linear_key_head_dim * m.linear_value_head_dim
        return 3.0 * 3 * 2 * m.linear_num_value_heads * state
    width = m.num_heads * (m.qk_head_dim + m.v_head_dim)
    return 3.0 * 2 * width * mean_context(m, attention, seq_len)


def _layer_flops(m: "ModelSpec", kind: "BlockKind", attention: "Attention", seq_len: int) -> float:
    mixer = linear_matrix(m) if attention == "linear" else attention_matrix(m)
    ffn = ffn_matrix(m, m.ffn_hidden_size)
    if kind == "moe":
        routed = m.num_experts_per_token * ffn_matrix(m, m.expert_width)
        ffn = routed + m.shared_params + m.hidden_size * m.num_experts
    return 6.0 * (mixer + ffn) + attention_flops_per_token(m, attention, seq_len)


def flops_per_token(m: "ModelSpec", seq_len: int) -> float:
    """Model FLOPs of forward + backward per token; a `mtp` block counts its projection, its layer
    and the head once more."""
    layers = sum(n * _layer_flops(m, k, a, seq_len) for (k, a), n in m.layer_counts.items())
    head = 6.0 * m.vocab_size * m.hidden_size
    last = m.num_layers - 1
    mtp = _layer_flops(m, m.blocks[1 + last], m.attention_of(last), seq_len) + head
    mtp += 6.0 * 2 * m.hidden_size * m.hidden_size
    return layers + head + m.num_mtp_layers * mtp
