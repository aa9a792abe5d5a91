"""ssh and Slurm work in a lab as they do in a cluster."""

import pytest

from tests.lab import slurm, ssh
from tests.lab.measure import wait_for

pytestmark = [pytest.mark.lab, pytest.mark.distributed, pytest.mark.usefixtures("can_lab")]


@pytest.mark.usefixtures("can_ssh")
def test_ssh_by_key(cluster):
    ssh.start(cluster)
    there = cluster.run("host0", ["ssh", "host3", "hostname; echo $SSH_CONNECTION"])
    name, source, _, target, port = there.stdout.split()
    assert (name, source, target, port) == ("host3", "10.77.0.1", "10.77.0.4", "2222")
    assert cluster.run("ctl", ["ssh", "10.77.0.2", "hostname"]).stdout == "host1\n"
    options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
    keyless = ["ssh", "-F", "none", "-p", "2222", *(f"-o{option}" for option in options)]
    refused = cluster.run("host0", [*keyless, "host3", "hostname"])
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr


@pytest.mark.usefixtures("can_slurm")
def test_slurm_runs_a_command_on_all_hosts(cluster):
    slurm.start(cluster)
    show = "echo $(hostname) $SLURM_PROCID $CUDA_VISIBLE_DEVICES; sleep 0.4; cat /proc/self/cgroup"
    job = f"srun --ntasks-per-node=2 --gres=gpu:2 --label bash -c '{show}'; echo end of the job"
    batch = ["sbatch", "--nodes=4", "--exclusive", "--gres=gpu:2", "--output=/run/lab/out"]
    out = cluster.shared("out")
    cluster.run("ctl", [*batch, f"--wrap={job}"], check=True)
    wait_for(lambda: out.exists() and "end of the job" in out.read_text(), 30)
    said = out.read_text()
    for rank in range(8):
        assert f"{rank}: host{rank // 2} {rank} 0,1\n" in said
        assert f"/host{rank // 2}/rank{rank % 2}\n" in said
