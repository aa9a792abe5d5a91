"""What the training job asks for, apart from the model and the cluster.

Bytes per parameter follow the mixed-precision recipe of Megatron-LM ("Reducing Activation
Recomputation", Korthikanti et al. 2022, and the ZeRO paper, section 3.1): bf16 keeps a 2-byte
weight, a 4-byte gradient and 12 bytes of fp32 master weight and Adam moments; fp32 keeps 4 + 4 + 8.
"""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from profiler.codec import record

Precision = Literal["bf16", "fp16", "fp8", "fp4", "fp32"]
"""Of the weights' matrix products. fp8, fp4: attention, norms, head and router stay in bf16, and so
do weights and activations in memory (Transformer Engine's recipes keep both beside the casts)."""
LOW_PRECISIONS: tuple[Precision, ...] = ("fp8", "fp4")

_MIXED: tuple[Precision, ...] = ("bf16", "fp16", "fp8", "fp4")
WEIGHT_BYTES: dict[Precision, int] = {**dict.fromkeys(_MIXED, 2), "fp32": 4}
GRAD_BYTES: dict[Precision, int] = {**dict.fromkeys(_MIXED, 4), "fp32": 4}
OPTIMIZER_BYTES: dict[Precision, int] = {**dict.fromkeys(_MIXED, 12), "fp32": 8}
ACTIVATION_BYTES: dict[Precision, int] = {**dict.fromkeys(_MIXED, 2), "fp32": 4}


@record
class JobSpec:
    """One training job."""

    global_batch: Annotated[int, Gt(0), Le(10**7)]
    """Sequences per optimizer step over the whole cluster."""
    seq_len: Annotated[int, Gt(0), Le(10**9)]
    """Tokens per sequence."""
    precision: Precision = "bf16"
    optimizer: Literal["adamw"] = "adamw"
    memory_reserve: Annotated[float, Ge(0), Lt(1)] = 0.06
    """Share of each device's memory left free: the allocator's slack, which no sum of tensors
    shows.
    """

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step."""
        return self.global_batch * self.seq_len
