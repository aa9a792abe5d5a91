"""Emitted arguments as Megatron-Core's own configuration, built with its dataclasses.

`megatron.training` would do it, but only wheels for Python 3.12 and newer have it; so the arguments
go to the fields that have their names, and those with another name by `NAMES`.
"""

import dataclasses
import warnings
from typing import Any

import torch

with warnings.catch_warnings():  # it uses torch.jit, and says which kernels it does not find
    warnings.simplefilter("ignore")
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

NAMES = {
    "norm-epsilon": "layernorm_epsilon",
    "num-experts": "num_moe_experts",
    "swiglu": "gated_linear_unit",
    "num-virtual-stages-per-pipeline-rank": "virtual_pipeline_model_parallel_size",
    "fp8-format": "fp8",
}
LISTS = ("recompute-modules", "hierarchical-context-parallel-sizes")


def config_of(options: list[tuple[str, list[str]]]) -> Any:
    """The configuration; Megatron's own checks raise for what it cannot be."""
    given = {option.removeprefix("--"): values for option, values in options}
    kind = MLATransformerConfig if "multi-latent-attention" in given else TransformerConfig
    fields = {f.name for f in dataclasses.fields(kind)}
    found: dict[str, Any] = {}
    for option, words in given.items():
        name = NAMES.get(option, option.replace("-", "_"))
        if name in fields:
            values = [_read(word) for word in words]
            found[name] = values if option in LISTS else (values or [True])[0]
    found |= {"apply_rope_fusion": False, "add_bias_linear": "disable-bias-linear" not in given}
    found["pipeline_dtype"] = torch.bfloat16  # from --bf16, in `megatron.training`
    if "moe-layer-freq" in given:
        found["moe_layer_freq"] = eval(given["moe-layer-freq"][0])  # as Megatron reads it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(**found)


def _read(word: str) -> Any:
    for read in (int, float):
        try:
            return read(word)
        except ValueError:
            continue
    return word
