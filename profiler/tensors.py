"""Tensors of a model: canonical names, full shapes, and the dim that tensor parallelism cuts.

Canonical names are those of the reference runtime, with block 0 the embedding, blocks 1..L the
layers and block L+1 the head; expert matrices have a name each, whatever layout trained them.
A matrix [rows, columns] is that of `y = W x`. Columns of q, k, v, gate and up are dealt out, which
are the rows of W; of o and down it is the other dim (Shoeybi et al. 2019, Megatron-LM); embedding
and output matrix are cut by the vocabulary. Norms, router and the shared experts' gate are whole.

Models with parts that the reference runtime has not (MLA, biases everywhere, ...) are described
coarsely: a vector per part of a block, of as many elements as `profiler.model_counts` counts.
"""

from dataclasses import dataclass
from math import prod

from profiler.model import ModelSpec

Shapes = dict[str, tuple[int, ...]]
ROWS, COLUMNS = 0, 1
_SPLIT = {
    "attention.q": ROWS, "attention.k": ROWS, "attention.v": ROWS, "attention.o": COLUMNS,
    "gate": ROWS, "up": ROWS, "down": COLUMNS, "output": ROWS, "": ROWS,
}  # fmt: skip
"""By module; the embedding has no name within its block."""
_WHOLE = ("norm", "router", "router.bias", "shared_gate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a model, whole."""

    name: str
    shape: tuple[int, ...]
    block: int
    """In the model's chain."""
    split_dim: int | None
    """Dim that tensor parallelism cuts, of an expert's matrix its own; None: every rank has all."""
    expert: int | None = None
    """Id of the expert that it belongs to."""
    is_buffer: bool = False
    """It has no gradient: no optimizer state, and ZeRO leaves it whole."""

    @property
    def num_elements(self) -> int:
        """Product of its shape."""
        return prod(self.shape)


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


def tensors_of(model: ModelSpec) -> tuple[tuple[Tensor, ...], bool]:
    """All tensors, those of one block after the other, and whether they are the model's own; else
    they stand for its parts."""
    exact = tuple(_tensor(name, shape) for name, shape in canonical_names(model).items())
    if sum(t.num_elements for t in exact if not t.is_buffer) == model.num_params:
        return exact, True
    return _coarse(model), False


def _tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    _, block, rest = name.split(".", 2)
    parts = rest.split(".")
    expert = int(parts[2]) if parts[:2] == ["ffn", "experts"] else None
    split = None if rest.removesuffix(".weight").endswith(_WHOLE) else _SPLIT[_module(parts)]
    return Tensor(
        name=name, shape=shape, block=int(block), split_dim=split, expert=expert,
        is_buffer=rest == "ffn.router.bias",
    )  # fmt: skip


def _module(parts: list[str]) -> str:
    """Key of `_SPLIT` of `attention.q.bias`, `ffn.shared.up.weight`, `ffn.experts.3.up`, ..."""
    own = [part for part in parts if part not in ("weight", "bias")]
    return ".".join(own) if own[:1] == ["attention"] else "".join(own[-1:])


def _coarse(model: ModelSpec) -> tuple[Tensor, ...]:
    """A vector for each part of each block."""
    found: list[Tensor] = []
    for i, kind in enumerate(model.blocks):
        parts = {"weight": model.block_params(kind)}
        experts = 0
        if kind in ("dense", "moe"):
            norms = model.norms_per_layer * model.norm_params
            experts = model.num_experts if kind == "moe" else 0
            total = model.layer_params(i - 1) - norms - experts * model.expert_params
            router = model.router_params if experts else 0
            parts = {"weight": total - router, "norm": norms, "router": router}
        found += [
            Tensor(
                name=f"blocks.{i}.{name}", shape=(size,), block=i,
                split_dim=None if name in _WHOLE else ROWS,
            )
            for name, size in parts.items()
            if size
        ]  # fmt: skip
        found += [
            Tensor(
                name=f"blocks.{i}.experts.{e}", shape=(model.expert_params,), block=i,
                split_dim=ROWS, expert=e,
            )
            for e in range(experts)
        ]  # fmt: skip
    return tuple(found)
