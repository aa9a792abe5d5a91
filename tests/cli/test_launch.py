"""`launch` before anything starts: what it refuses, what it would run, and with what."""
# ruff: noqa: E501  (tables of inputs and messages)

import json
import sys
from pathlib import Path

import pytest

from profiler.codec import encode, replace, to_plain

PLANS = {}
"""Files of the plans made so far, by what was asked: planning is another test's."""


def tiny_plan(meshwright, *extra):
    base = ("plan", "-m", "tiny-llama", "-c", "cpu-1x4", "--seq-len", 128, "--global-batch", 16)
    if extra in PLANS:
        Path("plan.json").write_text(PLANS[extra])
        return
    assert meshwright(*base, *extra).code == 0
    PLANS[extra] = Path("plan.json").read_text()


def test_dry_run_prints_the_command_and_touches_nothing(meshwright, tmp_path):
    tiny_plan(meshwright)
    before = sorted(tmp_path.iterdir())
    result = meshwright("launch", "plan.json", "--dry-run")
    assert result.code == 0
    words = result.out.split()
    assert {"OMP_NUM_THREADS=1", "PYTHONSAFEPATH=1"} <= set(words[:4])
    assert {"torch.distributed.run", "--nproc-per-node=4", "launch.runtime.train"} <= set(words)
    assert sorted(tmp_path.iterdir()) == before
    document = json.loads(meshwright("launch", "plan.json", "--dry-run", "--json").out)
    assert document["argv"][:4] == [sys.executable, "-P", "-m", "torch.distributed.run"]
    assert document["argv"][-4::2] == ["--plan", "--run-dir"]


@pytest.mark.parametrize(
    ("make", "args", "code", "message"),
    [
        (("-m", "tiny-llama", "-c", "cpu-2x4"), (), 5, "is for 2 nodes"),
        (("-m", "tiny-llama", "-c", "h100-1x4", "--precision", "fp32"), (), 5, "is stale: it was made for 4 x h100"),
        (("-m", "tiny-llama", "-c", "cpu-1x4"), ("--data", "nowhere.txt"), 1, "/nowhere.txt`"),
        (("-m", "tiny-llama", "-c", "cpu-1x4"), ("--data", "short.txt"), 1, "short.txt: 5 bytes of text do not fill"),
    ],
)  # fmt: skip
def test_launch_refuses(make, args, code, message, meshwright, tmp_path):
    (tmp_path / "short.txt").write_text("short")
    assert meshwright("plan", *make, "--seq-len", 128).code == 0
    result = meshwright("launch", "plan.json", *args)
    assert result.code == code
    assert message in result.err
    assert not (tmp_path / "runs").exists()


def tiny_config(**changes):
    keys = {
        "model_type": "llama", "vocab_size": 256, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
    }  # fmt: skip
    return json.dumps(keys | changes)


@pytest.mark.parametrize(
    ("args", "code", "message", "hint"),
    [
        (("--recipe", "none.yaml"), 1, "no such file: `none.yaml`", None),
        (("--recipe", "typo.yaml"), 1, "typo.yaml:2: unknown key `lerning_rate`", "did you mean `learning_rate`?"),
        (("--recipe", "typo.yaml", "--dry-run"), 1, "typo.yaml:2: unknown key `lerning_rate`", None),
        (("--recipe", "negative.yaml"), 1, "negative.yaml:1: `learning_rate`: input should be greater than or equal to 0", None),
        (("--recipe", "plan.json"), 1, "plan.json: this is a `plan` file, not a `recipe` file", None),
        (("--recipe", "weights.yaml"), 1, "/nowhere`", "--weights FOLDER"),
        (("--lr", "-1"), 2, "invalid value for '--lr'", None),
        (("--lr", "inf"), 1, "command line: `learning_rate`: input should be a finite number", None),
        (("--warmup", "1"), 2, "invalid value for '--warmup'", None),
        (("--checkpoint-every", 100), 1, "command line: `checkpoint_every` is 100, but the run ends after 12 steps", "raise `steps`"),
        (("--weights", "nowhere"), 1, "/nowhere`", "--weights FOLDER"),
        (("--weights", "empty"), 1, "/empty: the folder holds no `model.safetensors`", "safetensors"),
        (("--weights", "other"), 1, "/other/config.json: `hidden_size` is 32 here and", "meshwright plan -m"),
        (("--data", "tokens.bin"), 1, "tokens.bin: there is no `tokens.bin.json` beside it", "uint16"),
        (("--data", "tokens.npy"), 1, "tokens.npy: not a NumPy array file", None),
        (("--data", "."), 1, "it is not a file", None),
        (("--record-routing", 0.1), 1, "tiny-llama has no experts whose routing could be recorded", "leave `record_routing` out"),
        (("--record-routing", 1.5), 2, "invalid value for '--record-routing'", None),
        (("--rebalance-experts-every", 5), 1, "experts cannot be moved: there are none", "leave `rebalance_experts_every` out"),
        (("--rebalance-experts-gain", -1), 2, "invalid value for '--rebalance-experts-gain'", None),
    ],
)  # fmt: skip
def test_launch_refuses_what_it_cannot_train_with(args, code, message, hint, meshwright, tmp_path):
    for name, text in {
        "typo.yaml": "steps: 5\nlerning_rate: 1e-3\n",
        "negative.yaml": "learning_rate: -0.1\n",
        "weights.yaml": "weights: nowhere\n",
        "empty/config.json": tiny_config(),
        "other/config.json": tiny_config(),
        "other/model.safetensors": "",
        "tokens.bin": "x" * 1000,
        "tokens.npy": "x" * 1000,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    tiny_plan(meshwright)
    result = meshwright("launch", "plan.json", *args)
    assert result.code == code
    assert result.out == ""
    assert message in result.err
    assert hint is None or hint in result.err
    assert not (tmp_path / "runs").exists()


def test_what_was_typed_wins_over_the_recipe(meshwright, tmp_path):
    tiny_plan(meshwright)
    (tmp_path / "recipe.yaml").write_text(
        "steps: 500\nlearning_rate: 1e-4\nclip_norm: 1\nmax_restarts: 3\ntrace: true\n"
        "lr_schedule: cosine\ndata: my.txt\nweights: base\nrecord_routing: 0.5\n"
    )
    ask = ("launch", "plan.json", "--dry-run", "--json")
    document = json.loads(meshwright(*ask, "--recipe", "recipe.yaml").out)
    assert "--max-restarts=3" in document["argv"]
    recipe = document["recipe"]
    assert (recipe["steps"], recipe["learning_rate"], recipe["warmup"]) == (500, 1e-4, 2)
    assert (recipe["data"], recipe["weights"]) == (str(tmp_path / "my.txt"), str(tmp_path / "base"))
    flags = (
        "--recipe", "recipe.yaml", "--steps", 10, "--lr", 0.01, "--clip", 0, "--max-restarts", 0,
        "--record-routing", 0, "--no-trace", "--checkpoint-every", 5,
        "--rebalance-experts-every", 20, "--rebalance-experts-gain", 2.5, "--data", "b.npy",
        "--weights", "w", "--seed", 7,
    )  # fmt: skip
    document = json.loads(meshwright(*ask, *flags).out)
    assert "--max-restarts=0" in document["argv"]
    changed = {
        "steps": 10, "learning_rate": 0.01, "clip_norm": 0, "max_restarts": 0, "trace": False,
        "checkpoint_every": 5, "data": str(tmp_path / "b.npy"), "weights": str(tmp_path / "w"),
        "seed": 7, "record_routing": 0.0, "rebalance_experts_every": 20,
        "rebalance_experts_gain": 2.5,
    }  # fmt: skip
    assert document["recipe"] == recipe | changed
    assert not (tmp_path / "runs").exists()


def test_the_flags_have_the_defaults_of_a_recipe(meshwright):
    from launch.recipe import Recipe

    tiny_plan(meshwright)
    shown = meshwright("launch", "--help").out
    for flag, field in {
        "steps": "steps", "warmup": "warmup", "seed": "seed", "lr": "learning_rate",
        "clip": "clip_norm", "checkpoint-every": "checkpoint_every",
        "max-restarts": "max_restarts", "record-routing": "record_routing",
        "rebalance-experts-every": "rebalance_experts_every",
        "rebalance-experts-gain": "rebalance_experts_gain",
    }.items():  # fmt: skip
        text = " ".join(shown.split(f"--{flag} <")[1].split("\n  --")[0].split())
        assert f"[default: {getattr(Recipe(), field)};" in text
    document = json.loads(meshwright("launch", "plan.json", "--dry-run", "--json").out)
    assert document["recipe"] == to_plain(Recipe())


def test_a_run_folder_holds_the_plan_and_the_recipe(meshwright, tmp_path):
    from launch.apply import make_run_dir
    from launch.artifact import read_plan
    from launch.framework.native import command
    from launch.recipe import read_recipe, recipe_of

    tiny_plan(meshwright)
    plan = read_plan(tmp_path / "plan.json")
    recipe = recipe_of({"steps": 7, "lr_schedule": "wsd"})
    run = make_run_dir(plan, recipe, tmp_path / "runs")
    assert sorted(p.name for p in run.iterdir()) == ["plan.json", "ranks", "recipe.json"]
    assert read_recipe(run / "recipe.json") == recipe
    argv = command(plan, run, recipe).argv
    worker = argv[argv.index("launch.runtime.train") - 1 :]
    assert worker == (
        "-m", "launch.runtime.train", "--plan", str(run / "plan.json"), "--run-dir", str(run),
    )  # fmt: skip


def test_a_plan_measured_on_another_host_is_stale(meshwright, tmp_path):
    from launch.artifact import read_plan
    from planner.plan import plan_id

    tiny_plan(meshwright)
    plan = read_plan(tmp_path / "plan.json")
    where = replace(plan.profile.environment, host="elsewhere", num_cores=64)
    plan = replace(plan, profile=replace(plan.profile, environment=where))
    (tmp_path / "moved.json").write_text(encode(replace(plan, id=plan_id(plan))))
    result = meshwright("launch", "moved.json")
    assert result.code == 5
    assert "its profile is of host `elsewhere` with 64 cores" in result.err
    assert "--any-host" in result.err


def test_prepare_makes_the_folder_and_a_command_for_every_node(meshwright, tmp_path):
    assert meshwright("plan", "-m", "tiny-llama", "-c", "cpu-2x4", "--seq-len", 128).code == 0
    done = meshwright("launch", "plan.json", "--prepare")
    assert done.code == 0
    assert ' "--node-rank=$NODE_RANK" "--master-addr=$HEAD_NODE" --master-port=29500 ' in done.out
    assert "HEAD_NODE set to the first" in done.err
    again = meshwright("launch", "plan.json", "--dry-run", "--max-restarts", 2)
    assert ' "--rdzv-endpoint=$HEAD_NODE:29500" ' in again.out
    (run,) = (tmp_path / "runs").iterdir()
    assert {p.name for p in run.iterdir()} == {"plan.json", "recipe.json", "ranks", "command.sh"}
    assert f"--run-dir {run}" in done.out
    refused = meshwright("launch", "plan.json")
    assert (refused.code, "--prepare" in refused.err) == (5, True)
    bad = meshwright("launch", "plan.json", "--prepare", "--data", "nofile", "--runs", "others")
    assert (bad.code, "nofile" in bad.err) == (1, True)
    assert not (tmp_path / "others").exists()


@pytest.mark.parametrize("precision", ["fp8", "fp16"])
def test_launch_refuses_a_precision_that_the_runtime_has_not(precision, meshwright, tmp_path):
    ask = ("plan", "-m", "llama3-8b", "-c", "h100-2x8", "--pin", "tp=8", "--precision", precision)
    planned = meshwright(*ask)
    assert planned.code == 0
    assert "To run it" not in planned.out
    for flags in ((), ("--dry-run",), ("--prepare",)):
        result = meshwright("launch", "plan.json", *flags)
        assert (result.code, result.out) == (1, "")
        assert f"the reference runtime does not train in {precision}" in result.err
    assert not (tmp_path / "runs").exists()
