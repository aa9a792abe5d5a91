"""`launch --on slurm` on real hosts."""

import json

import pytest

from profiler.codec import encode
from tests.lab import slurm
from tests.lab.box import SHARED
from tests.lab.lab import Lab
from tests.lab.launching import follow, hosts_of, launch, make_plan, running, unhurried
from tests.unit.runs import plan_of

pytestmark = [pytest.mark.lab, pytest.mark.distributed, pytest.mark.usefixtures("can_slurm")]

PLAN, HOSTS = SHARED / "plan.json", SHARED / "hosts"


@pytest.fixture(scope="module")
def lab():
    """Four hosts with Slurm, and a plan for two of them."""
    with Lab(unhurried()) as lab:
        slurm.start(lab)
        make_plan(lab)
        dealt = plan_of(devices=(0, 2, 1, 3))  # the ranks of a node do not follow each other
        lab.shared("dealt.json").write_text(encode(dealt))
        lab.shared("hosts").write_text("host2\nhost0\n")
        yield lab


@pytest.mark.parametrize(
    ("tasks", "plan", "order"),
    [
        ("node", "plan", ["host2", "host2", "host0", "host0"]),
        ("rank", "dealt", ["host2", "host0", "host2", "host0"]),
    ],
)
def test_ranks_sit_on_the_hosts_that_the_plan_names(tasks, plan, order, lab):
    where = ("--on", "slurm", "--hosts", HOSTS, "--tasks", tasks, "--runs", SHARED / tasks)
    options = ("--sbatch-option", "partition=all", "--sbatch-option", "time=5")
    with launch(lab, SHARED / f"{plan}.json", *where, *options, "--steps", 3, "--json") as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    steps = [line.split(" loss")[0] for line in err.splitlines() if line.startswith("step ")]
    assert steps == [f"step {k}" for k in range(5)]
    observed = json.loads(out)
    assert observed["state"] == "complete"
    assert hosts_of(observed) == order


def test_stop_cancels_the_job_and_the_launcher_knows(lab):
    """Without a hostfile: Slurm's own choice and order of nodes."""
    with launch(lab, PLAN, "--on", "slurm", "--runs", SHARED / "long", "--steps", 10**6) as process:
        run = running(lab, "long")
        path = SHARED / run.relative_to(lab.shared())
        report = json.loads(follow(lab, "--status", path, "--json"))
        assert (report["state"], report["scheduler"]) == ("running", "slurm")
        assert report["job"] in lab.run("ctl", ["squeue", "--noheader", "--format=%i"]).stdout
        assert "interrupted" in follow(lab, "--stop", path)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the run was stopped after" in err
    assert lab.run("ctl", ["squeue", "--noheader"]).stdout == ""
    observed = json.loads((run / "observed.json").read_text())
    assert hosts_of(observed) == ["host0", "host0", "host1", "host1"]


def test_a_job_outlives_its_launcher_and_is_stopped_all_the_same(lab):
    with launch(lab, PLAN, "--on", "slurm", "--runs", SHARED / "left", "--steps", 10**6) as process:
        run = running(lab, "left")
        process.kill()
    path = SHARED / run.relative_to(lab.shared())
    assert json.loads(follow(lab, "--status", path, "--json"))["state"] == "running"
    assert "interrupted" in follow(lab, "--stop", path)
    assert lab.run("ctl", ["squeue", "--noheader"]).stdout == ""
    assert json.loads((run / "observed.json").read_text())["state"] == "interrupted"


def test_what_sbatch_refuses_is_one_error(lab):
    where = ("--on", "slurm", "--runs", SHARED / "refused", "--sbatch-option", "partition=none")
    with launch(lab, PLAN, *where) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("error: sbatch refused the job: ")
    (run,) = lab.shared("refused").glob("p-*")
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
