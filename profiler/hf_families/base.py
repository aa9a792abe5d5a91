"""What the readers of all families have in common: types of keys, faults, periods of layers."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le

from profiler.codec import record
from profiler.errors import UserError
from profiler.model import Activation, Attention, Family, ModelSpec

Size = Annotated[int, Gt(0), Le(2**31 - 1)]
SizeOrNone = Annotated[int, Ge(0), Le(2**31 - 1)]
Count = Annotated[int, Gt(0), Le(100_000)]
NotNegative = Annotated[int, Ge(0), Le(100_000)]
PositiveFloat = Annotated[float, Gt(0)]
T = TypeVar("T")

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "relu2": "relu2",
    "gelu": "gelu", "gelu_new": "gelu", "gelu_fast": "gelu", "gelu_pytorch_tanh": "gelu",
}  # fmt: skip
_LAYER_TYPES: dict[str, Attention] = {
    "full_attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "sliding",
    "linear_attention": "linear",
}


class FaultyKeyError(UserError):
    """A `UserError` about one key of the file, which is read to name its line."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@record
class Rope:
    """What is read of `rope_parameters` and `rope_scaling`."""

    rope_theta: PositiveFloat | None = None
    rope_type: str | None = None
    type: str | None = None


@record
class Common:
    """Keys that most families have."""

    model_type: str
    vocab_size: Size
    rope_theta: PositiveFloat | None = None
    rope_parameters: Rope | None = None
    rope_scaling: Rope | None = None
    tie_word_embeddings: bool = False


@dataclass(frozen=True, slots=True)
class Reader:
    """How a family is read: its keys, and what they say."""

    keys: type[Any]
    """Record of the keys that are read."""
    spec: Callable[[Any, str, Collection[str]], ModelSpec]
    """(the keys, name of the model, which keys the file gives) -> the model."""
    passed_over: Collection[str] = ()
    """Keys of the record that mean nothing to this family."""
    nested: Mapping[str, type[Any]] = field(default_factory=dict)
    """Keys that hold an object -> the record of its keys."""

    @property
    def known(self) -> frozenset[str]:
        """Names of the keys that are read."""
        return frozenset(f.name for f in fields(self.keys)) - frozenset(self.passed_over)

    def keys_of(self, tree: dict[str, Any]) -> dict[str, Any]:
        """What is read of a file: the known keys, also of the objects in it."""
        known = {k: tree[k] for k in self.known if k in tree}
        if "_sliding_window_pattern" in tree and "sliding_window_pattern" in self.known:
            known.setdefault("sliding_window_pattern", tree["_sliding_window_pattern"])
        for key in ("rope_parameters", "rope_scaling"):
            if key in known:
                known[key] = _known_in(_full(known[key]), Rope)
        for key, keys in self.nested.items():
            if key in known:
                known[key] = _known_in(known[key], keys)
        return known


def family_of(config: Common) -> Family:
    """The family, which the reader was chosen by."""
    found: Any = config.model_type
    family: Family = found
    return family


def _full(tree: Any) -> Any:
    """Of rotary parameters that are given for each kind of layer, those of the full ones."""
    inner = tree.get("full_attention") if isinstance(tree, dict) else None
    return inner if isinstance(inner, dict) else tree


def _known_in(tree: Any, keys: type[Any]) -> Any:
    """An object without the keys that the record does not know."""
    if not isinstance(tree, dict):
        return tree
    return {f.name: tree[f.name] for f in fields(keys) if f.name in tree}


def rope_fields(config: Common, default_theta: float) -> dict[str, Any]:
    """Base of the rotary angles, and the rule that stretches them where there is one."""
    sources = [s for s in (config.rope_scaling, config.rope_parameters) if s is not None]
    found = next((kind for s in sources if (kind := s.rope_type or s.type)), None)
    theta = next((s.rope_theta for s in reversed(sources) if s.rope_theta), default_theta)
    return {
        "rope_theta": config.rope_theta or theta,
        "rope_scaling": "" if found in (None, "default") else str(found)[:40],
    }


def activation(name: str, key: str = "hidden_act") -> Activation:
    """The activation of that name; `FaultyKeyError` for one that is not known."""
    if name not in _ACTIVATIONS:
        known = ", ".join(sorted(_ACTIVATIONS))
        raise FaultyKeyError(key, f"activation `{name[:40]}` is not supported: only {known} are")
    return _ACTIVATIONS[name]


def given(value: T | None, key: str) -> T:
    """A value that must be there."""
    if value is None:
        raise UserError(f"key `{key}` is missing")
    return value


def refuse(key: str, unwanted: bool, message: str) -> None:
    """Raise `FaultyKeyError` where something is asked for that is not modelled."""
    if unwanted:
        raise FaultyKeyError(key, f"{message} is not supported")


def head_dim(hidden_size: int, num_heads: int, key: str = "hidden_size") -> int:
    """Width of a head where the file gives none."""
    if hidden_size % num_heads:
        raise UserError(
            f"`{key}` {hidden_size} does not divide into {num_heads} heads", hint="give `head_dim`"
        )
    return hidden_size // num_heads


def kinds_of(layer_types: Sequence[str], num_layers: int) -> tuple[Attention, ...]:
    """Attention of each layer from the key `layer_types`."""
    if len(layer_types) != num_layers:
        message = f"`layer_types` names {len(layer_types)} layers, but there are {num_layers}"
        raise FaultyKeyError("layer_types", message)
    for kind in layer_types:
        if kind not in _LAYER_TYPES:
            known = ", ".join(_LAYER_TYPES)
            message = f"layers of type `{kind[:40]}` are not supported: only {known} are"
            raise FaultyKeyError("layer_types", message)
    return tuple(_LAYER_TYPES[kind] for kind in layer_types)


def shortest_period(sequence: tuple[T, ...]) -> tuple[T, ...]:
    """The shortest start that, repeated, gives the sequence."""
    length = len(sequence)
    for n in range(1, length):
        if all(sequence[i] == sequence[i - n] for i in range(n, length)):
            return sequence[:n]
    return sequence


def attention_fields(
    kinds: tuple[Attention, ...], window: int | None, context: int | None
) -> dict[str, Any]:
    """Pattern and window of a model whose layers have these attentions.

    A window at least as long as the context leaves no token out.
    """
    if "sliding" not in kinds:
        return {"attention_pattern": shortest_period(kinds)}
    if window is None:
        raise UserError("there are sliding layers, but `sliding_window` is not given")
    if context is not None and window >= context:
        kinds = tuple("full" if kind == "sliding" else kind for kind in kinds)
        return {"attention_pattern": shortest_period(kinds)}
    return {"attention_pattern": shortest_period(kinds), "window": window}


def moe_fields(is_moe: Sequence[bool], key: str) -> dict[str, Any]:
    """`first_dense_layers` and `moe_every` of a model of which these layers are MoE."""
    layers = [i for i, moe in enumerate(is_moe) if moe]
    if not layers:
        return {"first_dense_layers": len(is_moe)}
    every = layers[1] - layers[0] if len(layers) > 1 else 1
    first = layers[0] - every + 1
    if len(layers) == 1 and layers[0] != len(is_moe) - 1:
        every, first = layers[0] + 1, 0
    if first < 0 or layers != list(range(first + every - 1, len(is_moe), every)):
        message = "MoE layers at uneven distances are not supported"
        raise FaultyKeyError(key, f"{message}: after the first dense layers, each n-th must be MoE")
    return {"first_dense_layers": first, "moe_every": every}
