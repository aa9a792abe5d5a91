"""A placement of experts as files: our own, and those that serving and training systems take.

meshwright  {"num_ranks", "layers": [{"slots", "shares"}]} and the figures. Slots are rank-major;
            the shares of an expert's slots sum to 1
vllm        per MoE layer the expert of each physical slot, as its EPLB has them
            (`physical_to_logical_map`; a file of this form is proposed in vLLM's pull request
            49572, `initial_expert_map_path`)
sglang      {"physical_to_logical_map"} for `--init-expert-location`, a row per layer of the model:
            dense layers get the usual order
megatron    per MoE layer the order of experts. Megatron-Core keeps consecutive experts on a rank
            and has no placement: a checkpoint whose experts and router rows are put in this order
            is one. It has no replicas
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from planner.expert_placement import ExpertPlan
from profiler.codec import canonical
from profiler.errors import UserError
from profiler.model import ModelSpec
from profiler.routing.trace import Routing
from solvers.experts.problem import Score

FORMAT_VERSION = "1.0"
FORMS = ("meshwright", "vllm", "sglang", "megatron")


def document(found: ExpertPlan, routing: Routing) -> dict[str, Any]:
    """The placement with its figures, ready for JSON."""
    ranks = found.ranks
    return {
        "format_version": FORMAT_VERSION,
        "kind": "experts",
        "model": routing.model,
        "num_ranks": ranks.num_ranks,
        "ranks_per_node": ranks.ranks_per_node,
        "num_experts": routing.num_experts,
        "traffic": ranks.traffic,
        "copies": ranks.copies,
        "compute_s_per_token": ranks.rates.compute_s,
        "intra_s_per_token": ranks.rates.intra_s,
        "inter_s_per_token": ranks.rates.inter_s,
        "slowdown": None if ranks.slowdown is None else ranks.slowdown.tolist(),
        "method": found.method,
        "objective_s": found.objective_s,
        "bound_s": found.bound_s,
        "train": _figures(found.train),
        "held_out": _figures(found.held_out) if found.held_out else None,
        "others": {
            name: {"train": _figures(train), "held_out": _figures(test) if test else None}
            for name, (train, test) in found.others.items()
        },
        "layers": [
            {"slots": slots.tolist(), "shares": shares.tolist()}
            for slots, shares in zip(found.placed.slots, found.placed.shares, strict=True)
        ],
    }


def text_of(form: str, found: ExpertPlan, routing: Routing, model: ModelSpec | None) -> str:
    """Text of a file in one of `FORMS`; `UserError` for what the form cannot say."""
    return _WRITERS[form](found, routing, model)


def _meshwright(found: ExpertPlan, routing: Routing, model: ModelSpec | None) -> str:
    del model
    return canonical(document(found, routing))


def _vllm(found: ExpertPlan, routing: Routing, model: ModelSpec | None) -> str:
    del routing, model
    return json.dumps(found.placed.slots.tolist()) + "\n"


def _sglang(found: ExpertPlan, routing: Routing, model: ModelSpec | None) -> str:
    if model is None:
        raise UserError(
            "SGLang's file has a row for every layer, dense ones too",
            hint="pass `-m MODEL` to say which are dense",
        )
    rows = iter(found.placed.slots.tolist())
    usual = (np.arange(found.placed.slots.shape[1]) % routing.num_experts).tolist()
    table = [next(rows) if kind == "moe" else usual for kind in model.blocks[1:-1]]
    return json.dumps({"physical_to_logical_map": table}) + "\n"


def _megatron(found: ExpertPlan, routing: Routing, model: ModelSpec | None) -> str:
    del model
    if found.placed.slots.shape[1] > routing.num_experts:
        raise UserError(
            "Megatron-Core keeps every expert on one rank: it has no replicas",
            hint="place without `--redundant`",
        )
    return json.dumps({"expert_order": found.placed.slots.tolist()}) + "\n"


_Writer = Callable[[ExpertPlan, Routing, ModelSpec | None], str]
_WRITERS: dict[str, _Writer] = {
    "meshwright": _meshwright, "vllm": _vllm, "sglang": _sglang, "megatron": _megatron,
}  # fmt: skip


def _figures(score: Score) -> dict[str, float]:
    return {
        "max_over_mean_load": score.max_over_mean,
        "worst_layer": score.worst_layer,
        "nodes_per_token": score.nodes_per_token,
        "ranks_per_token": score.ranks_per_token,
        "hops": score.hops,
        "time_s": score.time_s,
    }
