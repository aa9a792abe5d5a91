"""NICs of GPUs: near, and equally many on each."""

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.nics import nics_of_gpus
from profiler.errors import UserError
from profiler.link_files import read_nvidia_topo
from profiler.link_files.nvidia_topo import NvidiaTopo, rank_of

FAR = ("PIX", "PXB", "PHB", "NODE", "SYS")


def table(kinds):
    """A node with GPUs and NICs joined as `kinds` [gpu][nic] says."""
    gpus = tuple(f"GPU{k}" for k in range(len(kinds)))
    nics = tuple(f"mlx5_{k}" for k in range(len(kinds[0])))
    size = len(gpus) + len(nics)
    every = [["X" if a == b else "SYS" for b in range(size)] for a in range(size)]
    for i, row in enumerate(kinds):
        for j, kind in enumerate(row):
            every[i][len(gpus) + j] = every[len(gpus) + j][i] = kind
    blank = ("",) * len(gpus)
    return NvidiaTopo(gpus=gpus, nics=nics, kinds=tuple(map(tuple, every)), cpus=blank, numa=blank)


def test_each_gpu_of_a_real_node_has_its_own_nearest_nic():
    topo = read_nvidia_topo(Path(__file__).parent / "links" / "topo-h100.txt")
    found = nics_of_gpus(topo, "topo")
    assert [n.gpu for n in found] == list(topo.gpus)
    for n in found:
        assert n.nic in topo.nearest_nics(n.gpu)
    loads = [sum(n.nic == nic for n in found) for nic in topo.nics]
    assert max(loads) <= -(-len(topo.gpus) // len(topo.nics))


def test_gpus_take_turns_where_all_nics_are_as_near():
    found = nics_of_gpus(table([["NODE"] * 2] * 4), "topo")
    assert [n.nic for n in found] == ["mlx5_0", "mlx5_0", "mlx5_1", "mlx5_1"]


kinds = st.integers(1, 5).flatmap(
    lambda nics: st.lists(
        st.lists(st.sampled_from(FAR), min_size=nics, max_size=nics), min_size=1, max_size=5
    )
)


@given(kinds=kinds)
def test_equals_brute_force(kinds):
    topo = table(kinds)
    found = nics_of_gpus(topo, "topo")
    room = -(-len(kinds) // len(topo.nics))

    def total(places):
        return sum(rank_of(row[k]) for row, k in zip(kinds, places, strict=True))

    least = min(
        total(places)
        for places in product(range(len(topo.nics)), repeat=len(kinds))
        if all(places.count(k) <= room for k in places)
    )
    chosen = [topo.nics.index(n.nic) for n in found]
    assert total(chosen) == least
    assert all(chosen.count(k) <= room for k in chosen)


def test_a_node_without_nics_is_an_error_with_its_place():
    topo = table([["SYS"]])
    bare = NvidiaTopo(gpus=topo.gpus, nics=(), kinds=(("X",),), cpus=("",), numa=("",))
    with pytest.raises(UserError, match="no NICs") as e:
        nics_of_gpus(bare, "node.txt")
    assert e.value.place == "node.txt"
