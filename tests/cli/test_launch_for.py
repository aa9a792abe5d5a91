"""`launch --for`: what each framework is given, frozen; what is printed, written and refused."""
# ruff: noqa: E501  (tables of inputs and messages)

import json
import os
import subprocess
from pathlib import Path

import pytest

from profiler.codec import encode
from tests.emitted import MEGATRON, megatron_plan, plan_of


def emitted(meshwright, plan, *args):
    """What is printed for a plan, which is then in plan.json."""
    Path("plan.json").write_text(encode(plan))
    result = meshwright("launch", "plan.json", *args)
    assert result.code == 0, result.err
    return result, result.out.replace(plan.id, "p-1")


@pytest.mark.parametrize("name", MEGATRON)
def test_what_megatron_is_given_is_frozen(name, meshwright, golden):
    _, text = emitted(meshwright, megatron_plan(name), "--for", "megatron")
    golden(f"megatron/{name}.sh", text)


def run_script(folder, *launcher, **variables):
    env = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(
        ["bash", str(folder / "train.sh"), *launcher], capture_output=True, text=True, env=env
    )


def test_the_script_runs_what_it_is_given(meshwright, tmp_path):
    result, _ = emitted(meshwright, megatron_plan("moe"), "--for", "megatron", "-o", "out")
    assert result.out == f"{tmp_path}/out/train.sh\n"
    assert "Set MEGATRON: checkout of Megatron-LM" in result.err
    assert "bash train.sh torchrun --nnodes=8 --nproc-per-node=8" in result.err
    missing = run_script(tmp_path / "out", "echo")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == "set MEGATRON: checkout of Megatron-LM, with pretrain_gpt.py\n"
    done = run_script(tmp_path / "out", "printf", "%s\n", MEGATRON="/a b", DATA_PATH="mock")
    words = done.stdout.splitlines()
    assert words[:3] == ["/a b/pretrain_gpt.py", "--num-layers", "32"]
    assert words[-5:] == [
        "--mock-data",
        "--tokenizer-type",
        "NullTokenizer",
        "--vocab-size",
        "32000",
    ]
    real = run_script(tmp_path / "out", "echo", MEGATRON="/m", DATA_PATH="/d")
    assert real.returncode != 0
    assert "TOKENIZER" in real.stderr


@pytest.mark.parametrize(
    ("words", "variables", "interface"),
    [
        (("--node-rank=1",), {"SLURM_PROCID": "0"}, "ib1"),
        (("--node_rank=0",), {"NODE_RANK": "1"}, "ib0"),
        ((), {"NODE_RANK": "1"}, "ib1"),
        ((), {"RANK": "3", "SLURM_PROCID": "3"}, "ib0"),
        ((), {"RANK": "2"}, "ib1"),
    ],
)
def test_each_node_has_its_interface(words, variables, interface, meshwright, tmp_path):
    """However the script is started: by torchrun for a node, or rank by rank."""
    placement = {"devices": (0, 2, 3, 1), "interfaces": ("ib0", "ib1")}
    plan = plan_of("llama3-8b", "h100-2x2", dp_shard=4, zero=1, placement=placement)
    emitted(meshwright, plan, "--for", "megatron", "--on", "slurm", "--tasks", "rank", "-o", "out")
    shown = 'echo "$NCCL_SOCKET_IFNAME $GLOO_SOCKET_IFNAME"'
    variables = {"MEGATRON": "/m", "DATA_PATH": "mock", **variables}
    done = run_script(tmp_path / "out", "bash", "-c", shown, *words, **variables)
    assert done.stdout == f"{interface} {interface}\n"


def test_a_node_that_nobody_names_has_no_interface(meshwright, tmp_path):
    placement = {"interfaces": ("ib0", "ib1")}
    plan = plan_of("llama3-8b", "h100-2x2", dp_shard=4, zero=1, placement=placement)
    emitted(meshwright, plan, "--for", "megatron", "-o", "out")
    done = run_script(tmp_path / "out", "echo", MEGATRON="/m", DATA_PATH="mock", SLURM_PROCID="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "set NODE_RANK: the place of this node\n"


def test_slurm_starts_the_script_on_the_planned_nodes(meshwright, tmp_path):
    Path("hosts").write_text("alpha\nbeta\n")
    plan = plan_of("llama3-8b", "h100-2x2", dp_shard=4, zero=1, placement={"devices": (2, 3, 0, 1)})
    slurm = ("--on", "slurm", "--hosts", "hosts", "--python", "python3")
    emitted(meshwright, plan, "--for", "megatron", *slurm, "-o", "out")
    job = Path("out/job.sh").read_text()
    assert "tasks=(beta alpha)" in job
    assert (
        f'"PORT=$PORT" bash {tmp_path}/out/train.sh torchrun --nnodes=2 --nproc-per-node=2' in job
    )
    mixed = plan_of(
        "llama3-8b", "h100-2x2", dp_shard=4, zero=1, placement={"devices": (0, 2, 1, 3)}
    )
    emitted(meshwright, mixed, "--for", "megatron", *slurm, "--tasks", "rank", "-o", "out")
    job = Path("out/job.sh").read_text()
    assert "tasks=(alpha beta alpha beta)" in job
    assert f"MASTER_PORT=$PORT bash {tmp_path}/out/train.sh python3" in job


def test_json_is_one_document(meshwright):
    result, _ = emitted(meshwright, megatron_plan("zero1"), "--for", "megatron", "--json")
    document = json.loads(result.out)
    assert document["framework"] == "megatron"
    assert list(document["files"]) == ["train.sh"]
    assert list(document["needs"]) == ["DATA_PATH", "MEGATRON"]
    assert document["command"].startswith("bash train.sh torchrun --standalone")


@pytest.mark.parametrize(
    ("degrees", "args", "code", "message", "hint"),
    [
        ({"tp": 4}, ("--for", "jax"), 1, "`--for jax` is not known", "one of megatron, megatron-bridge, torchtitan"),
        ({"tp": 4}, ("--for", "megatron", "--on", "kubernetes", "--image", "i", "--claim", "c:/shared"), 1, "is not in `/shared`, where the claim `c` is mounted", "`-o` names another folder"),
        ({"tp": 4}, ("-o", "x"), 2, "--out goes with --for", None),
        ({"pp": 4, "schedule": "gpipe"}, ("--for", "megatron"), 1, "does not run layout `tp1 pp4 dp1 mbs1` of `llama3-8b`: it has no schedule gpipe", "--pin schedule=1f1b"),
    ],
)  # fmt: skip
def test_refusals(degrees, args, code, message, hint, meshwright):
    Path("plan.json").write_text(encode(plan_of("llama3-8b", "h100-1x4", **degrees)))
    Path("hosts").write_text("alpha\n")
    result = meshwright("launch", "plan.json", *args)
    assert (result.code, result.out) == (code, "")
    assert message in result.err.replace("\n", " ")
    if hint:
        assert hint in result.err


@pytest.mark.parametrize(
    ("name", "plan", "files"),
    [
        ("megatron-bridge", ("mixtral-8x7b", "h100-1x8", {"tp": 2, "dp_shard": 4, "zero": 1, "ep": 8}), ["planned.py"]),
        ("torchtitan", ("llama3-8b", "h100-1x4", {"dp_shard": 4, "zero": 3}), ["planned.py"]),
        ("torchtitan-0.2", ("llama3-8b", "h100-1x4", {"pp": 2, "dp_shard": 2, "zero": 2}), ["plan.toml", "planned_model.py"]),
        ("deepspeed", ("llama3-8b", "h100-1x4", {"dp_shard": 4, "zero": 2}), ["deepspeed.json"]),
        ("accelerate", ("llama3-8b", "h100-1x4", {"dp_shard": 4, "zero": 3}), ["accelerate.yaml"]),
        ("nanotron", ("llama3-8b", "h100-1x4", {"tp": 2, "pp": 2}), ["nanotron.yaml"]),
    ],
)  # fmt: skip
def test_what_the_others_are_given_is_frozen(name, plan, files, meshwright, golden):
    model, cluster, degrees = plan
    _, text = emitted(meshwright, plan_of(model, cluster, **degrees), "--for", name)
    assert [line[4:-4] for line in text.splitlines() if line.startswith("==> ")] == [
        *files,
        "train.sh",
    ]
    golden(f"emitted/{name}.txt", text)


def test_a_launcher_of_its_own_is_told_its_node(meshwright, tmp_path):
    plan = plan_of("llama3-8b", "h100-2x2", dp_shard=4, zero=3)
    result, _ = emitted(meshwright, plan, "--for", "accelerate", "-o", "out")
    assert result.err.endswith(
        "Start it on every node, with HEAD_NODE and NODE_RANK:\n    bash train.sh\n"
    )
    slurm = ("--on", "slurm", "--python", "python3", "-o", "out")
    emitted(meshwright, plan, "--for", "accelerate", *slurm)
    told = 'exec env "HEAD_NODE=$HEAD_NODE" "NODE_RANK=$SLURM_PROCID" "PORT=$PORT" bash'
    assert f"{told} {tmp_path}/out/train.sh" in Path("out/job.sh").read_text()
    refused = meshwright("launch", "plan.json", "--for", "accelerate", *slurm, "--tasks", "rank")
    assert (refused.code, refused.out) == (1, "")
    assert "starts the ranks of a node itself" in refused.err


@pytest.mark.parametrize("name", ["megatron", "accelerate"])
@pytest.mark.parametrize("on", ["ssh", "pytorchjob", "jobset", "trainjob"])
def test_hosts_and_pods_run_the_script(on, name, meshwright, golden, tmp_path):
    """The same start as a native job's, with the framework's script in its place."""
    Path("hosts").write_text("alpha\nbeta\n")
    options = ("--on", "ssh", "--hosts", "hosts")
    if on != "ssh":
        options = ("--on", "kubernetes", "--manifest", on, "--image", "registry/megatron:1")
        options += ("--claim", f"shared:{tmp_path}", "--namespace", "team")
    plan = plan_of("llama3-8b", "h100-2x2", dp_shard=4, zero=3)
    result, _ = emitted(
        meshwright, plan, "--for", name, *options, "--python", "python3", "-o", "out"
    )
    file = Path("out", "commands.txt" if on == "ssh" else "job.yaml")
    text = file.read_text().replace(plan.id, "p-1").replace(str(tmp_path), "/shared")
    golden(f"emitted/{name}-{on}{file.suffix}", text)
    if on == "ssh":
        assert "Start it, on each host its line:\n    alpha: env HEAD_NODE=alpha" in result.err
    else:
        assert f"kubectl create -f {tmp_path}/out/job.yaml" in result.err


def test_a_host_that_inherits_nothing_reads_the_settings(meshwright, tmp_path):
    emitted(meshwright, megatron_plan("zero1"), "--for", "megatron", "-o", "out")
    settings = tmp_path / "out" / "settings.sh"
    settings.write_text("MEGATRON=/m\nDATA_PATH=mock\n")
    done = run_script(tmp_path / "out", "echo")
    assert (done.returncode, done.stdout.split()[0]) == (0, "/m/pretrain_gpt.py")
    settings.unlink()
    assert run_script(tmp_path / "out", "echo").returncode == 2


def test_each_node_has_the_interface_that_the_plan_gives_it(meshwright, tmp_path):
    """The plan's rank 0 is on the first node; Megatron's, coordinate 0, on the second."""
    placed = {"ranks": (2, 3, 0, 1), "interfaces": ("ib0", "ib1")}
    plan = plan_of("llama3-8b", "h100-2x2", dp_shard=4, zero=1, placement=placed)
    emitted(meshwright, plan, "--for", "megatron", "-o", "out")
    given = {"MEGATRON": "/m", "DATA_PATH": "mock"}
    show = ("bash", "-c", "echo $NCCL_SOCKET_IFNAME $GLOO_SOCKET_IFNAME")
    for where, name in (
        ({"NODE_RANK": "1"}, "ib0"),
        ({"RANK": "1"}, "ib1"),
        ({"RANK": "2"}, "ib0"),
        ({"RANK": "0", "NODE_RANK": "1"}, "ib0"),  # a pod's own number is no rank
    ):
        done = run_script(tmp_path / "out", *show, **given, **where)
        assert done.stdout == f"{name} {name}\n", done.stderr
