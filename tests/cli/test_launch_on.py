"""`launch --on`: what each scheduler would be given, and what is refused before anything starts."""
# ruff: noqa: E501  (tables of inputs and messages)

import json
from pathlib import Path

import pytest

from planner.plan import plan_id
from profiler.codec import encode, replace
from tests.unit.runs import plan_of, run_of

SLURM = ("--on", "slurm", "--python", "python3")
KUBERNETES = ("--on", "kubernetes", "--image", "registry/meshwright:1", "--claim", "shared:/shared")


def on_two_kinds():
    """A plan for a cluster of two kinds of host, whose first ranks are on the second."""
    plan = plan_of("cpu-1x2", devices=(2, 3, 0, 1))
    group = plan.cluster.groups[0]
    other = replace(group, device=replace(group.device, name="fast-cpu"))
    plan = replace(plan, cluster=replace(plan.cluster, groups=(group, other)))
    return replace(plan, id=plan_id(plan))


@pytest.fixture
def planned(tmp_path):
    """plan.json for two nodes of two ranks, swap.json with the nodes the other way round,
    mixed.json with their ranks dealt out, kinds.json on two kinds of node, the second first; two
    hosts."""
    for name, placement in {
        "plan": {},
        "swap": {"devices": (2, 3, 0, 1), "interfaces": ("eth1", "eth0")},
        "mixed": {"devices": (0, 2, 1, 3)},
        "uneven": {"devices": (0, 1, 2, 4)},
    }.items():
        cluster = "cpu-3x2" if name == "uneven" else "cpu-2x2"
        plan = plan_of(cluster, **placement)
        (tmp_path / f"{name}.json").write_text(encode(plan))
    (tmp_path / "kinds.json").write_text(encode(on_two_kinds()))
    (tmp_path / "hosts").write_text("alpha\nme@beta slots=2\n")
    (tmp_path / "narrow").write_text("alpha slots=1\nbeta\n")
    (tmp_path / "one").write_text("alpha\n")


def dry(meshwright, plan, *args):
    result = meshwright("launch", f"{plan}.json", "--dry-run", "--runs", "/shared/runs", *args)
    assert (result.code, result.err) == (0, "")
    plan_id = json.loads(Path(f"{plan}.json").read_text())["id"]
    return result.out.replace(plan_id, "p-1")


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize(
    ("name", "plan", "args"),
    [
        ("slurm-node.sh", "plan", SLURM),
        ("slurm-node-hosts.sh", "swap", (*SLURM, "--hosts", "hosts", "--sbatch-option", "time=30")),
        ("slurm-rank.sh", "mixed", (*SLURM, "--tasks", "rank", "--max-restarts", 2)),
        ("pytorchjob.yaml", "plan", KUBERNETES),
        ("jobset.yaml", "plan", (*KUBERNETES, "--manifest", "jobset", "--namespace", "team")),
        ("trainjob.yaml", "plan", (*KUBERNETES, "--manifest", "trainjob", "--max-restarts", 2)),
        ("ssh.txt", "swap", ("--on", "ssh", "--hosts", "hosts", "--python", "python3")),
    ],
)
def test_what_is_given_to_the_scheduler_is_frozen(name, plan, args, meshwright, golden):
    golden(f"launch-{name}", dry(meshwright, plan, *args))


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize(
    ("plan", "args", "message", "hint"),
    [
        ("plan", ("--on", "pbs"), "`--on pbs` is not known", "one of local, ssh, slurm, kubernetes"),
        ("plan", ("--hosts", "hosts"), "`--hosts` is not an option of `--on local`", "`--on ssh` and `--on slurm`"),
        ("plan", ("--on", "ssh"), "`--on ssh` needs the hosts", "--hosts FILE"),
        ("plan", ("--on", "ssh", "--hosts", "nofile"), "no such file: `nofile`", None),
        ("plan", ("--on", "ssh", "--hosts", "one"), "one: it names 1 hosts, and the plan uses node 2 of its cluster", None),
        ("plan", ("--on", "ssh", "--hosts", "narrow"), "narrow: host `alpha` has 1 slots, and the plan puts 2 ranks there", None),
        ("plan", ("--on", "ssh", "--hosts", "hosts", "--ssh-option", "Port"), "`--ssh-option Port` is not of the form Key=value", None),
        ("plan", ("--on", "ssh", "--hosts", "hosts", "--tasks", "rank"), "`--tasks` is not an option of `--on ssh`", "`--on slurm`"),
        ("mixed", ("--on", "ssh", "--hosts", "hosts"), "deals the ranks of a node out among those of others", "--tasks rank"),
        ("mixed", SLURM, "deals the ranks of a node out among those of others", "--tasks rank"),
        ("kinds", SLURM, "on fast-cpu and cpu nodes, and Slurm does not know which node is of which kind", "`--hosts FILE`"),
        ("kinds", KUBERNETES, "on fast-cpu and cpu nodes, and Kubernetes does not know", "`--on ssh` or `--on slurm`"),
        ("uneven", SLURM, "takes unlike numbers of devices of its nodes", "--tasks rank"),
        ("plan", (*SLURM, "--tasks", "core"), "`--tasks core` is not known", "`node` or `rank`"),
        ("plan", (*SLURM, "--sbatch-option", "time=1; reboot"), "`--sbatch-option time=1; reboot` is not of the form KEY=VALUE", None),
        ("plan", ("--on", "kubernetes", "--claim", "x"), "`--on kubernetes` needs `--image`", None),
        ("plan", (*KUBERNETES, "--manifest", "pod"), "`--manifest pod` is not known", "pytorchjob, jobset, trainjob"),
        ("plan", (*KUBERNETES, "--claim", "x:rel"), "`--claim x:rel` is not of the form NAME or NAME:/PATH", None),
        ("plan", (*KUBERNETES, "--claim", "x:/elsewhere"), "is not in `/elsewhere`, where the claim `x` is mounted", "--runs"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", [(), ("--dry-run",), ("--prepare",)])
def test_launch_on_refuses(plan, args, message, hint, how, meshwright, tmp_path):
    result = meshwright("launch", f"{plan}.json", *args, *how)
    assert (result.code, result.out) == (1, ""), result.err
    assert message in result.err
    assert hint is None or hint in " ".join(result.err.split())
    runs = tmp_path / "runs"
    assert not runs.exists() or not list(runs.iterdir())


@pytest.mark.usefixtures("planned")
def test_unlike_nodes_are_started_in_the_order_of_their_ranks(meshwright):
    scripts = {
        on: dry(meshwright, "kinds", "--on", on, "--hosts", "hosts") for on in ("slurm", "ssh")
    }
    assert "tasks=(beta alpha)" in scripts["slurm"]
    assert [line.partition(":")[0] for line in scripts["ssh"].splitlines()] == ["me@beta", "alpha"]
    places = "NODE_RANK to its place (0: node 2 of the cluster, fast-cpu; 1: node 1 of the cluster, cpu)\n"
    assert meshwright("launch", "kinds.json", "--dry-run").err.endswith(places)
    assert meshwright("launch", "plan.json", "--dry-run").err.endswith("NODE_RANK to its place\n")


@pytest.mark.usefixtures("planned")
def test_prepare_writes_what_would_be_started(meshwright, tmp_path):
    document = json.loads(meshwright("launch", "plan.json", "--prepare", *SLURM, "--json").out)
    run = Path(document["run_dir"])
    assert run.parent == tmp_path / "runs"
    script = (run / "job.sh").read_text()
    assert document["files"] == {"job.sh": script}
    assert f"run={run}\n" in script


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize(
    ("args", "program"),
    [
        (("--on", "ssh", "--hosts", "hosts"), "ssh"),
        (SLURM, "sbatch"),
        ((*KUBERNETES, "--claim", "shared"), "kubectl"),
    ],
)
def test_a_scheduler_that_is_not_there_is_said(args, program, meshwright, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = meshwright("launch", "plan.json", *args)
    assert result.code == 1
    assert result.err.startswith(f"error: there is no `{program}` here\n")
    assert "hint: " in result.err
    assert not (tmp_path / "runs").exists()


def test_status_and_stop_of_a_run(meshwright, tmp_path):
    run = run_of(plan_of(), tmp_path / "run", 4, started=1)
    shown = meshwright("launch", "--status", run)
    assert (shown.code, shown.err.startswith("Its launcher is gone")) == (0, True)
    assert shown.out.splitlines()[0].endswith(" lost")
    report = json.loads(meshwright("launch", "--stop", run, "--json").out)
    assert (report["kind"], report["state"], report["steps_done"]) == ("run", "interrupted", 4)
    assert json.loads((run / "observed.json").read_text())["state"] == "interrupted"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 2, "missing argument 'PLAN'"),
        (("--status", "run", "--stop", "run"), 2, "--stop RUN does not go with --status"),
        (("plan.json", "--status", "run"), 2, "--status RUN does not go with PLAN"),
        (("--stop", "run", "--steps", "5"), 2, "--stop RUN does not go with --steps"),
        (("--status", "run"), 1, "run: it is not a run's folder"),
        (("--stop", "run"), 1, "run: it is not a run's folder"),
    ],
)
def test_status_and_stop_refuse(args, code, message, meshwright):
    result = meshwright("launch", *args)
    assert (result.code, result.out) == (code, "")
    assert f"error: {message}" in result.err
