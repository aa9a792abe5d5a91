"""Which models the reference runtime refuses, and that launching and measuring say so."""

from pathlib import Path
from typing import Any

import pytest

from launch.framework.native import check_runnable
from launch.profiling import measure_profile
from planner.given import LayoutFile, plan_for
from profiler import catalog
from profiler.catalog.load import names
from profiler.codec import replace
from profiler.errors import UserError
from profiler.model_support import REFERENCE_FAMILIES, check_reference, runs_on_reference
from tests.unit import facts
from tests.unit.test_model_counts import EXPERTS, LINEAR, MLA, spec


def test_catalogued_models_run_by_their_family() -> None:
    for name in names("model"):
        model = catalog.load_model(name)
        assert (runs_on_reference(model) is None) == (model.family in REFERENCE_FAMILIES), name


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (MLA, "it has multi-head latent attention (MLA)"),
        ({"attention_pattern": ("linear", "full"), **LINEAR}, "it has linear attention"),
        ({"attention_pattern": ("sliding",), "window": 4}, "it has sliding-window attention"),
        ({"attention_sinks": True}, "it has attention sinks"),
        ({"attention_gate": True}, "it has a gate on the attention's output"),
        ({"value_head_dim": 3}, "it has value heads of another width"),
        ({"num_mtp_layers": 1}, "it has multi-token prediction"),
        ({"moe_every": 2, **EXPERTS}, "it has dense layers between MoE layers"),
        ({"gated_ffn": False}, "it has a feed-forward network without a gate"),
        ({"activation": "gelu"}, "it has another activation than SiLU"),
        ({"layer_norm": True}, "it has LayerNorm"),
        ({"norms_per_layer": 4}, "it has another number of norms than two a layer"),
        ({"embed_norm": True}, "it has a norm behind the embedding"),
        ({"position": "none"}, "it has positions other than rotary ones"),
        ({"rope_scaling": "yarn"}, "it has a scaled rotary embedding"),
        ({"out_bias": True}, "it has biases beside those of q, k and v"),
        ({"family": "phi3"}, "its family is `phi3`"),
    ],
)
def test_what_the_reference_runtime_has_no_part_for(changes: dict[str, Any], why: str) -> None:
    assert runs_on_reference(spec()) is None
    assert runs_on_reference(spec(qkv_bias=True, qk_norm=True, value_head_dim=6)) is None
    assert runs_on_reference(spec(**changes)) == why
    with pytest.raises(UserError) as caught:
        check_reference(spec(**changes), hint="h", place="p")
    assert str(caught.value) == f"p: the reference runtime does not train model `m`: {why}"


def test_measuring_refuses_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        measure_profile(
            catalog.load_model("deepseek-v3"), 64, "fp32", num_processes=1, micro_batches=(1,),
            tp_degrees=(1,), device=catalog.load_device("cpu").device, out=tmp_path / "p.json",
        )  # fmt: skip
    assert caught.value.message == (
        "the reference runtime does not train model `deepseek-v3`: it has multi-head latent "
        "attention (MLA)"
    )
    assert "--analytic" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_launching_refuses_a_plan_of_such_a_model() -> None:
    plan = plan_for(
        facts.model(), facts.job(), facts.profile(), LayoutFile(dp_replicate=4), "layout.yaml"
    )
    check_runnable(plan)
    model = replace(plan.model, rope_scaling="llama3")
    with pytest.raises(UserError) as caught:
        check_runnable(replace(plan, model=model))
    assert caught.value.message.endswith("it has a scaled rotary embedding")
