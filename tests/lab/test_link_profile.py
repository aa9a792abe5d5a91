"""`meshwright profile --links` over ssh, on hosts whose links are known."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from profiler.codec import replace
from profiler.link_files import read_link_report, read_links
from tests import commands
from tests.lab import slurm, ssh
from tests.lab.lab import Lab
from tests.lab.measure import wait_for
from tests.lab.topology import shipped

pytestmark = [pytest.mark.lab, pytest.mark.distributed, pytest.mark.usefixtures("can_ssh")]

OVERHEAD = 0.957
"""What a socket gets of a rate of Ethernet frames."""


def command(lab, folder, *words):
    """The command line, and where it writes."""
    hosts = folder / "hosts"
    hosts.write_text("".join(f"{host.name}\n" for host in lab.topology.hosts))
    out = folder / "links.json"
    ask = ("profile", "--links", "--hosts", hosts, "--budget", 8, "-o", out, *words)
    return commands.command(*ask), out


def measured(lab, folder, *words):
    """Links and report of one run, and what it said."""
    argv, out = command(lab, folder, *words)
    done = lab.run("ctl", argv)
    assert done.returncode == 0, done.stderr
    assert not out.with_name("links.json.partial").exists()
    return read_links(out), read_link_report(out), done


def check_rates(lab, links, rel=0.15):
    """Links as their topology says; fast ones as the processors of a busy machine let them."""
    expected = np.array(
        [
            [np.inf if a == b else lab.topology.mbit(a, b, "eth0") for b in links.hosts]
            for a in links.hosts
        ]
    )
    rates = links.bytes_per_s * 8e-6 / OVERHEAD
    for rate in np.unique(expected[np.isfinite(expected)]):
        found = rates[expected == rate]
        assert np.median(found) == pytest.approx(rate, rel=rel if rate <= 500 else 2 * rel)
        if rate <= 500:
            assert found == pytest.approx(rate, rel=rel)


ONE_MACHINE = ("shared_switch", "slow_host")
"""Findings that hosts on the cores of one machine give each other, whatever their links are."""


def stands_out(report):
    return [(f.kind, f.host, f.nic, f.peer) for f in report.findings if f.kind not in ONE_MACHINE]


def test_islands_are_no_fault_and_rates_are_those_set(tmp_path):
    with Lab(shipped("two-islands")) as lab:
        ssh.start(lab)
        links, report, done = measured(lab, tmp_path)
        check_rates(lab, links)
        assert stands_out(report) == []
        assert "all_reduce" in done.stdout
        groups = {(len(g.hosts), g.op) for g in report.groups}
        assert groups == {
            (n, op) for n in (2, 4) for op in ("all_reduce", "all_gather", "all_to_all")
        }
        # A host's NIC is full with a neighbour and two others, where 200 each is no limit.
        assert links.out_bytes_per_s * 8e-6 == pytest.approx(957, rel=0.3)
        assert {f.kind for f in report.flows} == {"out", "in", "round"}


def test_the_bad_link_then_the_bad_nic_are_named(tmp_path):
    with Lab(shipped("one-bad-link")) as lab:
        ssh.start(lab)
        links, report, done = measured(lab, tmp_path)
        check_rates(lab, links)
        assert stands_out(report) == [("slow_link", "host1", "", "host2")]
        assert "host1 <-> host2 reaches 3" in done.stdout
        lab.set_rate("host1", "host2", 1000, both_ways=True)
        lab.set_nic_rate("host3", "eth0", 100)
        links, report, _ = measured(lab, tmp_path, "--nics", "eth0")
        assert stands_out(report) == [("slow_nic", "host3", "eth0", "")]
        assert report.findings[0].direction == "both"
        assert report.findings[0].value * 8e-6 == pytest.approx(95.7, rel=0.1)
        out = links.out_bytes_per_s * 8e-6
        assert out[3] == pytest.approx(95.7, rel=0.15)
        assert out[:3].min() > 500


def slower(topology, times):
    """The topology with all NICs at a part of their rates."""
    hosts = tuple(
        replace(
            host,
            nics=tuple(replace(nic, mbit_per_s=nic.mbit_per_s / times) for nic in host.nics),
        )
        for host in topology.hosts
    )
    return replace(topology, name="slower-nics", hosts=hosts)


@pytest.mark.usefixtures("can_slurm")
def test_two_nics_are_measured_apart_by_agents_that_srun_starts(tmp_path):
    # Without quotas: ranks of a job that have a fifth of a core measure their processor.
    # A quarter of the rates: both NICs at once must not measure the processors of this machine.
    with Lab(slower(replace(shipped("mixed-nics"), cpu_share=None), 4)) as lab:
        slurm.start(lab)
        words = ("--nics", "all", "--budget", "16", "--wait", "--address", "ctl:5000")
        argv, out = command(lab, tmp_path, *words)
        agent = [sys.executable, "-P", "-m", "launch.runtime.link_agent", "ctl:5000"]
        word = ["env", "MESHWRIGHT_LINK_TOKEN=a word", "PYTHONUNBUFFERED=1"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with lab.popen("ctl", [*word, *argv], text=True, **pipes) as process:
            agents = lab.run("ctl", [*word, "srun", "--nodes=4", "--ntasks-per-node=1", *agent])
            said = process.communicate()[0]
        assert (process.returncode, agents.returncode) == (0, 0), said + agents.stderr
        links, report = read_links(out), read_link_report(out)
        assert report.nics == ("eth0", "eth1")
        slow = [
            p.bytes_per_s * 8e-6 for p in report.pairs if p.nic == "eth0" and p.source > "host1"
        ]
        assert slow == pytest.approx([250 / 4 * OVERHEAD] * 6, rel=0.1)
        fast = next(
            p for p in report.pairs if (p.source, p.target, p.nic) == ("host0", "host1", "eth1")
        )
        assert fast.bytes_per_s * 8e-6 > 1300 / 4
        assert stands_out(report) == []
        both = links.bytes_per_s[0, 1] * 8e-6
        assert both > fast.bytes_per_s * 8e-6 + 300 / 4
        assert [f.kind for f in report.flows].count("nics") == 4


def test_an_interrupted_run_goes_on_and_alike_hosts_have_no_findings(tmp_path):
    with Lab(shipped("uniform")) as lab:
        ssh.start(lab)
        argv, out = command(lab, tmp_path)
        journal = Path(f"{out}.partial") / "journal.jsonl"
        with lab.popen("ctl", argv, stderr=subprocess.PIPE, text=True) as process:
            wait_for(lambda: journal.exists() and journal.read_text().count("\n") >= 2, 60)
            process.send_signal(signal.SIGINT)
            said = process.communicate()[1]
        assert process.returncode == 130
        assert "the same command again goes on where it stopped" in said
        kept = [json.loads(line) for line in journal.read_text().splitlines()]
        links, report, _ = measured(lab, tmp_path)
        for line in kept:
            for pair in line["result"]["pairs"]:
                now = next(
                    p
                    for p in report.pairs
                    if (p.source, p.target) == (pair["source"], pair["target"])
                )
                assert now.bytes_per_s == pair["bytes_per_s"]
        assert stands_out(report) == []
        check_rates(lab, links)


def test_a_host_that_dies_is_named_and_the_others_are_measured(tmp_path):
    with Lab(shipped("uniform")) as lab:
        ssh.start(lab)
        argv, out = command(lab, tmp_path)
        journal = Path(f"{out}.partial") / "journal.jsonl"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with lab.popen("ctl", argv, **pipes, text=True) as process:
            wait_for(lambda: journal.exists() and journal.read_text().count("\n") >= 2, 60)
            lab.kill_host("host2")
            shown, said = process.communicate()
        assert process.returncode == 0, said
        assert "warning: host2 did not take part to the end" in said
        assert "host2 did not answer" in shown
        links, report = read_links(out), read_link_report(out)
        assert links.hosts == ("host0", "host1", "host3")
        assert report.lost == ("host2",)
        assert np.isfinite(links.bytes_per_s[~np.eye(3, dtype=bool)]).all()
        assert stands_out(report) == [("lost_host", "host2", "", "")]
