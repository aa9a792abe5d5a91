"""Machines, layouts and constants that tests of the time model share."""

import dataclasses

from planner.layouts import SCHEDULES
from planner.timing.inputs import constants_of, machine_of, shape_of
from planner.timing.quantities import Constants, Machine, Split
from profiler.catalog.constants import resolve_constants
from profiler.catalog.load import load_model, names
from profiler.catalog.node_types import node_group

MODELS = tuple(names("model"))
SEQ = 4096
IDEAL = Machine(
    peak=1e15, peak_low=2e15, low=0.0, element_bytes=2.0, memory_rate=1e30, units=100.0,
    inner_rate=400e9, nic_rate=50e9, domain=8.0, per_node=8.0, num_devices=64.0, host_rate=50e9,
)  # fmt: skip
"""Memory never binds."""
FREE = dataclasses.replace(IDEAL, inner_rate=1e30, nic_rate=1e30)
"""Nor does a network."""
ONE = Split(
    pp=1, vpp=1, replicas=1, dp_shard=1, zero=0, cp=1, cp_method=0, cp_heads=1, tp=1, ep=1, etp=1,
    micro_batch=1, num_microbatches=1, recompute=0, schedule=SCHEDULES.index("1f1b"), offload=0,
)  # fmt: skip
H100 = machine_of(node_group("dgx-h100", 8), 64, "bf16")
FITTED = constants_of(resolve_constants(node_group("dgx-h100", 8), "megatron"))


def exact(**given):
    """Constants of hardware that reaches its peaks and starts nothing."""
    zeros = dict.fromkeys((f.name for f in dataclasses.fields(Constants)), 0.0)
    ones = (
        "matrix_efficiency", "low_efficiency", "memory_efficiency", "inner_efficiency",
        "network_efficiency", "attention_efficiency", "exchange_efficiency", "weight_grad",
        "attention_backward", "exposed_tensor",
    )  # fmt: skip
    return Constants(**{**zeros, **dict.fromkeys(ones, 1.0), **given})


def split(**given):
    return dataclasses.replace(ONE, **given)


def shape(name="llama3-8b", seq=SEQ):
    return shape_of(load_model(name), seq)
