"""Fixtures of what runs in a lab."""

import os
from pathlib import Path

import pytest

from tests.lab import quota, slurm, ssh
from tests.lab.lab import Lab, why_not
from tests.lab.ranks import Ranks
from tests.lab.topology import shipped

REQUIRED = "REQUIRE_LAB" in os.environ
"""Set where labs must be possible (CI): their tests then fail where they are not."""


def refuse(reason):
    """Skip, or fail where labs are required."""
    (pytest.fail if REQUIRED else pytest.skip)(reason)


@pytest.fixture(scope="session")
def can_lab():
    """For tests that bring up labs."""
    if reason := why_not() or quota.why_not():
        refuse(f"no lab on this machine: {reason}")


@pytest.fixture(scope="session")
def can_ssh(can_lab):
    """For tests with sshd."""
    if not Path(ssh.PROGRAM).exists():
        refuse("sshd is not installed (apt-get install openssh-server)")


@pytest.fixture(scope="session")
def can_slurm(can_lab):
    """For tests with Slurm."""
    if gone := slurm.missing():
        refuse(f"{', '.join(gone)} not installed (apt-get install {slurm.PACKAGES})")


@pytest.fixture(scope="session")
def ranks(can_lab):
    """A server of ranks, which imports torch once for all tests."""
    with Ranks() as server:
        yield server


@pytest.fixture(scope="module")
def cluster(can_lab):
    """Four hosts of two ranks, one bad link, CPU quotas."""
    with Lab(shipped("one-bad-link")) as lab:
        yield lab
