"""From specs to the quantities of the time model."""

import dataclasses

import numpy as np

from planner.layouts import Layouts
from planner.routed import EVEN, Routed
from planner.timing.quantities import Array, Constants, Machine, Shape, Software, Split
from profiler import profile
from profiler.cluster import DeviceSpec, NodeGroup
from profiler.job import ACTIVATION_BYTES, LOW_PRECISIONS, JobSpec, Precision
from profiler.model import ModelSpec

HOST_RATE = 50e9
"""Bytes/s between a device and its host where nothing is known: PCIe 5.0 x16 as transfers reach."""


def shape_of(model: ModelSpec, seq_len: int) -> Shape:
    """A model's shape at a sequence length. Multi-token prediction adds a layer and a head each."""
    attentions = model.attentions
    contexts = [model.mean_context(a, seq_len) for a in attentions]
    linear = sum(a == "linear" for a in attentions) / len(attentions)
    keys = model.linear_num_key_heads * model.linear_key_head_dim
    values = model.linear_num_value_heads * model.linear_value_head_dim
    last_is_moe = model.num_moe_layers > 0
    return Shape(
        hidden=model.hidden_size,
        num_layers=model.num_layers + model.num_mtp_layers,
        num_moe=model.num_moe_layers + model.num_mtp_layers * last_is_moe,
        heads=model.num_heads,
        kv_heads=model.num_kv_heads,
        qk_dim=model.qk_head_dim,
        q_gates=float(model.attention_gate),
        v_dim=model.v_head_dim,
        q_lora=model.q_lora_rank,
        kv_lora=model.kv_lora_rank,
        rope_dim=model.rope_head_dim,
        ffn=model.ffn_hidden_size,
        gated=float(model.gated_ffn),
        vocab=model.vocab_size,
        tied=float(model.tie_embeddings),
        experts=model.num_experts,
        topk=model.num_experts_per_token,
        expert_ffn=model.expert_width if model.num_experts else 0,
        expert_bias=float(model.expert_bias),
        shared_ffn=model.shared_ffn_hidden_size,
        context=sum(contexts) / len(contexts),
        linear_share=linear,
        linear_in=2 * (keys + values + model.linear_num_value_heads),
        linear_out=values,
        linear_state=model.linear_key_head_dim * values,
        mtp=model.num_mtp_layers,
        seq_len=seq_len,
    )


def split_of(layouts: Layouts, job: JobSpec, routed: Routed = EVEN) -> Split:
    """Degrees of layouts, for a job's batch, and what routing leaves to the fullest ranks."""

    def floats(values: Array) -> Array:
        return values.astype(np.float64)

    return Split(
        pp=floats(layouts.pp),
        vpp=floats(layouts.vpp),
        replicas=floats(layouts.num_replicas),
        dp_shard=floats(layouts.dp_shard),
        zero=layouts.zero,
        cp=floats(layouts.cp),
        cp_method=layouts.cp_method,
        cp_heads=floats(layouts.cp_heads),
        tp=floats(layouts.tp),
        ep=floats(layouts.ep),
        etp=floats(layouts.etp),
        micro_batch=floats(layouts.micro_batch),
        num_microbatches=floats(layouts.num_microbatches(job)),
        recompute=layouts.recompute,
        schedule=layouts.schedule,
        offload=layouts.offload,
        ep_overlap=floats(layouts.ep_overlap),
        **routed.quantities(layouts.ep, layouts.etp),
    )


def machine_of(group: NodeGroup, num_devices: int, precision: Precision) -> Machine:
    """Rates of a device of `group`, of which `num_devices` train in `precision`.

    A device without the precision computes in its widest 16-bit one; the planner refuses such jobs.
    """
    rates = group.device.flops_per_s
    plain = "fp32" if precision == "fp32" else "bf16"
    peak = rates.get(plain) or rates.get("fp16") or max(rates.values())
    low = precision in LOW_PRECISIONS
    return Machine(
        peak=peak,
        peak_low=rates.get(precision, peak) if low else peak,
        low=float(low),
        element_bytes=float(ACTIVATION_BYTES[precision]),
        memory_rate=group.device.memory_bytes_per_s,
        units=float(group.device.units),
        inner_rate=group.intra.bytes_per_s,
        nic_rate=group.nic.bytes_per_s * group.nics_per_node / group.devices_per_node,
        domain=float(group.devices_per_domain),
        per_node=float(group.devices_per_node),
        num_devices=float(num_devices),
        host_rate=HOST_RATE,
    )


def constants_of(values: dict[str, float]) -> Constants:
    """Constants from their names and values."""
    return Constants(**values)


def plan_software(software: profile.Software, device: DeviceSpec) -> Software:
    """What a profile's software does on a device, whose layers the planner splits. FlashAttention-2
    needs tensor cores with bf16 (Ampere and later; its README), which older ones lack. Processors
    that send with the cores which compute (gloo) hide no exchange."""
    return dataclasses.replace(
        Software(),
        flash=float(software.kernel != "none" and _has_flash(device)),
        sequence_parallel=float(software.sequence_parallel),
        stalls=float(software.stalls),
        broadcasts=float(software.broadcasts),
        graph=software.graph,
        fused_exchange=float(software.fused_exchange),
        overlap_exchange=float(software.overlap_exchange),
        chunked_exchange=float(software.chunked_exchange and not device.is_host),
        reduce_bytes=software.reduce_bytes,
    )


def _has_flash(device: DeviceSpec) -> bool:
    return "bf16" in device.flops_per_s or device.is_host
