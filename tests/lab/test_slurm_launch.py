"""`launch --on slurm` on real hosts."""

import json

import pytest

from tests.lab import slurm
from tests.lab.box import SHARED
from tests.lab.lab import Lab
from tests.lab.launching import hosts_of, launch, make_plan, unhurried

pytestmark = [pytest.mark.lab, pytest.mark.distributed, pytest.mark.usefixtures("can_slurm")]

PLAN, HOSTS = SHARED / "plan.json", SHARED / "hosts"


@pytest.fixture(scope="module")
def lab():
    """Four hosts with Slurm, and a plan for two of them."""
    with Lab(unhurried()) as lab:
        slurm.start(lab)
        make_plan(lab)
        lab.shared("hosts").write_text("host2\nhost0\n")
        yield lab


@pytest.mark.parametrize("tasks", ["node", "rank"])
def test_ranks_sit_on_the_hosts_in_the_order_of_the_file(tasks, lab):
    where = ("--on", "slurm", "--hosts", HOSTS, "--tasks", tasks, "--runs", SHARED / tasks)
    options = ("--sbatch-option", "partition=all", "--sbatch-option", "time=5")
    with launch(lab, PLAN, *where, *options, "--steps", 3, "--json") as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    steps = [line.split(" loss")[0] for line in err.splitlines() if line.startswith("step ")]
    assert steps == [f"step {k}" for k in range(5)]
    observed = json.loads(out)
    assert observed["state"] == "complete"
    assert hosts_of(observed) == ["host2", "host2", "host0", "host0"]
