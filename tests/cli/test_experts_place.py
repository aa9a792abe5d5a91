"""`meshwright experts TRACE` and `plan --routing`: what users see and what the files say."""

import json

import numpy as np
import pytest

from launch.routing_files import write_routing
from profiler.catalog import resolve_model
from tests.unit.made_routing import skewed_trace

MODEL = resolve_model("mixtral-8x7b")
RATES = (
    "--compute-s-per-token", 1e-6, "--intra-s-per-token", 1e-7, "--inter-s-per-token", 1e-6,
)  # fmt: skip
WORLD = ("--ep", 4, "--ranks-per-node", 2)
ASK = (
    "plan", "-m", "mixtral-8x7b", "-c", "h100-2x8", "--global-batch", 64, "--top", 3,
)  # fmt: skip


@pytest.fixture
def recorded(tmp_path):
    """A recording of Mixtral's shape, skewed."""
    path = tmp_path / "trace.npz"
    write_routing(path, skewed_trace(tokens=800, layers=MODEL.num_layers, skew=1.0))
    return path


def test_a_placement_and_its_table(meshwright, recorded):
    result = meshwright("experts", recorded, *WORLD, *RATES, "-o", "placed.json")
    assert result.code == 0, result.err
    assert max(map(len, result.out.splitlines())) <= 80
    rows = {
        line.split()[0]: line.split()[1:] for line in result.out.splitlines() if line[:1] == " "
    }
    assert {"contiguous", "eplb"} <= set(rows)
    (ours,) = (line.split()[2:] for line in result.out.splitlines() if line.startswith("✔"))
    for other in ("contiguous", "eplb"):
        assert float(ours[4]) <= float(rows[other][4])
    assert result.err.splitlines()[-1] == "Saved the placement to: `placed.json`"


def test_json_is_what_scorers_read(meshwright, recorded):
    result = meshwright(
        "experts", recorded, *WORLD, *RATES, "--redundant", 4, "--json", "-o", "p.json"
    )
    document = json.loads(result.out)
    saved = json.loads((recorded.parent / "p.json").read_text())
    assert saved == {key: value for key, value in document.items() if key != "cpu_s"}
    assert (document["kind"], document["num_ranks"]) == ("experts", 4)
    assert len(document["layers"]) == MODEL.num_layers
    for layer in document["layers"]:
        slots, shares = np.array(layer["slots"]), np.array(layer["shares"])
        assert len(slots) == 12
        assert np.bincount(slots, shares, 8) == pytest.approx(np.ones(8))
    assert document["bound_s"] <= document["objective_s"]
    assert document["held_out"]["max_over_mean_load"] >= 1


def test_forms_of_others(meshwright, recorded):
    def saved(form, *more):
        out = recorded.parent / f"{form}.json"
        result = meshwright("experts", recorded, *WORLD, *RATES, "--format", form, "-o", out, *more)
        assert result.code == 0, result.err
        return json.loads(out.read_text())

    slots = [layer["slots"] for layer in saved("meshwright")["layers"]]
    assert saved("vllm") == slots
    assert saved("megatron") == {"expert_order": slots}
    assert saved("sglang", "-m", "mixtral-8x7b") == {"physical_to_logical_map": slots}
    none = meshwright(
        "experts",
        recorded,
        *WORLD,
        *RATES,
        "--format",
        "megatron",
        "--redundant",
        4,
        "-o",
        "m.json",
    )
    assert none.err.startswith("error: Megatron-Core keeps every expert on one rank")
    assert not (recorded.parent / "m.json").exists()


WRONG = [
    ((*WORLD, *RATES, "--redundant", 3), "error: 8 experts and 3 replicas do not fill 4 ranks"),
    (("--ep", 3, *RATES), "error: 8 experts and 0 replicas do not fill 3 ranks"),
    (("--ep", 4, "--ranks-per-node", 3, *RATES), "error: 4 ranks do not fill nodes of 3"),
    (("--ep", 4), "error: what a token takes is not known without `-m MODEL`"),
    (("--ep", 4, "-m", "mixtral-8x7b"), "error: what a token takes is not known without `-c"),
    ((*WORLD, *RATES, "-m", "deepseek-v3"), "error: "),
    ((*WORLD, *RATES, "--groups", 3), "error: 3 groups do not divide 8 experts"),
    ((*WORLD, *RATES, "--method", "magic"), "error: `--method magic` is not known"),
    (("--ep", 8, *RATES, "--method", "exact"), "error: `exact` does not place these experts: "),
    ((*WORLD, *RATES, "--traffic", "away"), "error: `--traffic away` is not known"),
    ((*WORLD, *RATES, "--format", "gguf"), "error: `--format gguf` is not known"),
]


@pytest.mark.parametrize(("args", "error"), WRONG, ids=[str(k) for k in range(len(WRONG))])
def test_wrong_input_is_one_error(args, error, meshwright, recorded):
    result = meshwright("experts", recorded, *args)
    assert (result.code in (1, 5), result.out) == (True, "")
    (line,) = (line for line in result.err.splitlines() if line.startswith("error:"))
    assert line.startswith(error) or result.err.replace("\n", " ").startswith(error)


def test_a_plan_places_the_experts(meshwright, recorded, tmp_path):
    assert meshwright(*ASK, "-o", "level.json").code == 0
    result = meshwright(*ASK, "--routing", recorded, "--pin", "ep=4,8", "-o", "routed.json")
    assert result.code == 0, result.err
    level, routed = (json.loads((tmp_path / n).read_text()) for n in ("level.json", "routed.json"))
    chosen = routed["chosen"]
    loads = {each["ep"]: each for each in routed["profile"]["expert_loads"]}
    assert set(loads) == {4, 8}
    assert loads[8]["imbalance"] >= loads[4]["imbalance"] > 1
    layers = chosen["placement"]["experts"]
    assert len(layers) == MODEL.num_layers
    assert all(len(layer["slots"]) == chosen["config"]["ep"] for layer in layers)
    assert chosen["estimate"]["step_s"] > level["chosen"]["estimate"]["step_s"]
    why = meshwright("why", "routed.json").out
    assert "times the mean" in " ".join(why.split())


def test_planning_again_keeps_the_experts_where_it_can(meshwright, recorded, tmp_path):
    pins = ("--pin", "ep=8", "--pin", "tp=1")
    assert meshwright(*ASK, "--routing", recorded, *pins, "-o", "old.json").code == 0
    result = meshwright(
        "plan", "--from", "old.json", "-c", "h100-3x8", "--global-batch", 48, "-o", "new.json"
    )
    assert result.code in (0, 4), result.err
    old, new = (json.loads((tmp_path / n).read_text()) for n in ("old.json", "new.json"))
    assert new["chosen"]["config"]["ep"] == 8
    assert new["chosen"]["placement"]["experts"] == old["chosen"]["placement"]["experts"]
    assert new["profile"]["expert_loads"] == old["profile"]["expert_loads"]


def test_a_given_layout_is_priced_with_its_experts(meshwright, recorded, tmp_path):
    (tmp_path / "layout.yaml").write_text(
        "{dp_shard: 16, zero: 3, ep: 8, micro_batch: 1, recompute: full, experts: "
        f"{[{'slots': [[e] for e in (3, 1, 2, 0, 4, 5, 7, 6)]}] * 32}}}"
    )
    given = (*ASK[:-2], "--layout", "layout.yaml")
    found = []
    for more in ((), ("--routing", recorded)):
        assert meshwright(*given, *more, "-o", "plan.json").code == 0
        found.append(json.loads((tmp_path / "plan.json").read_text())["chosen"])
    assert found[0]["estimate"] is None  # nobody knows what these experts get
    assert found[1]["estimate"]["step_s"] > 0
    assert found[1]["placement"]["experts"] == found[0]["placement"]["experts"]
    assert found[1]["placement"]["experts"][0]["slots"][0] == [3]


def test_routing_of_another_model_is_stale(meshwright, tmp_path):
    write_routing(tmp_path / "other.npz", skewed_trace(tokens=40, layers=2))
    result = meshwright(*ASK, "--routing", "other.npz")
    assert (result.code, result.out) == (5, "")
    assert "2 MoE layers, mixtral-8x7b has 32" in result.err.replace("\n", " ")


MIXED = """name: mix
nodes:
  - {device: a100-80, count: 1, devices_per_node: 8}
  - {device: h100, count: 1, devices_per_node: 8}
"""


def test_experts_go_by_speed_on_a_mixed_cluster(meshwright, recorded, tmp_path):
    """Four ranks on each kind: those of h100 take more; EPLB knows nothing of it."""
    (tmp_path / "mix.yaml").write_text(MIXED)
    where = ("--ep", 8, "--ranks-per-node", 4, "-c", "mix.yaml", "-m", "mixtral-8x7b")
    links = ("--intra-s-per-token", 1e-9, "--inter-s-per-token", 1e-9)
    ask = ("experts", recorded, *where, *links, "--redundant", 8)
    result = meshwright(*ask)
    assert result.code == 0, result.err
    text = " ".join(result.out.split())
    assert "2 x 4, 2 slots each" in text
    assert "Ranks 0 to 3: computing takes 2.8" in text
    assert "Ranks 4 to 7: the fastest time max/level" in text
    document = json.loads(meshwright(*ask, "--json").out)
    assert document["slowdown"][:4] == [1.0] * 4
    assert max(document["slowdown"][4:]) < 0.5
    eplb = document["others"]["eplb"]["train"]
    assert document["train"]["max_over_mean_load"] < 0.9 * eplb["max_over_mean_load"]
    alone = meshwright("experts", recorded, "--ep", 32, "-c", "mix.yaml", "-m", "mixtral-8x7b")
    assert (alone.code, alone.out) == (1, "")


def test_a_plan_for_a_mixed_cluster_places_experts(meshwright, recorded, tmp_path):
    (tmp_path / "mix.yaml").write_text(MIXED)
    pins = ("--pin", "ep=8", "--pin", "tp=1", "--pin", "cp=1", "--pin", "mbs=1")
    result = meshwright(
        "plan", "-m", "mixtral-8x7b", "-c", "mix.yaml", "--global-batch", 32, *pins,
        "--routing", recorded, "-o", "mixed.json",
    )  # fmt: skip
    assert result.code == 0, result.err
    plan = json.loads((tmp_path / "mixed.json").read_text())
    loads = plan["profile"]["expert_loads"]
    assert {(each["ep"], each["group"]) for each in loads} == {(8, 0), (8, 1), (8, None)}
    layers = plan["chosen"]["placement"]["experts"]
    assert len(layers) == MODEL.num_layers
    for layer in layers:
        assert sorted(expert for rank in layer["slots"] for expert in rank) == list(range(8))
    why = " ".join(meshwright("why", "mixed.json").out.split())
    assert "times the mean" in why
