"""Ranks to nodes: against a plain evaluation, all assignments, and proven bounds."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.mapping import Mapped, map_ranks
from planner.mapping_flows import Ends, costs_of, ends_of, flows_of
from planner.mesh import Mesh
from planner.traffic import Traffic
from profiler.errors import UserError
from profiler.links import Links
from solvers.mapping import chain_orders, map_blocks
from solvers.mapping_bound import lower_bounds, node_bounds
from solvers.mapping_problem import Problem
from solvers.mapping_swaps import Swaps
from tests.unit.made_links import CHAIN, CLOSED, EXPERTS, INNER, RING, alike, links_of, random_links

CASES = [
    (Mesh(axes={"pp": 2, "dp": 2, "tp": 2}), (CHAIN, RING, INNER), 2),
    (Mesh(axes={"pp": 4, "dp": 2}), (CLOSED, RING), 2),
    (Mesh(axes={"pp": 1, "dp": 8}, ep=4), (RING, EXPERTS), 2),
    (Mesh(axes={"pp": 3, "dp": 2}), (CHAIN, RING), 1),
    (Mesh(axes={"dp": 2, "pp": 3}), (CHAIN, RING), 2),
    (Mesh(axes={"dp": 4, "tp": 2}, ep=2), (RING, INNER, EXPERTS), 4),
]


def plain_seconds(
    mesh: Mesh, traffic: tuple[Traffic, ...], links: Links, nodes: list[int]
) -> float:
    """The module's formulas in loops over ranks: nothing of the planner's arrays."""
    rate, latency = links.bytes_per_s, links.latency_s
    out, into = links.out_bytes_per_s, links.in_bytes_per_s
    total = 0.0
    for axis in traffic:
        groups = [[int(r) for r in group] for group in mesh.groups(axis.axis)]
        if axis.shape == "all_to_all":
            total += _plain_sums(axis, links, groups, nodes)
            continue
        last = 1 if axis.shape == "chain" and not axis.closed else 0
        hops = [[(g[k], g[(k + 1) % len(g)]) for k in range(len(g) - last)] for g in groups]
        pairs = [(nodes[a], nodes[b]) for group in hops for a, b in group]

        def way(u: int, v: int, count: int, left: int, entered: int, axis: Traffic = axis) -> float:
            per_byte = 1 / rate[u, v]
            if u != v:
                per_byte = max(count / rate[u, v], left / out[u], entered / into[v])
            return axis.num_bytes * per_byte + axis.messages * latency[u, v]

        slowest = 0.0
        for group in hops:
            seconds = []
            for a, b in group:
                u, v = nodes[a], nodes[b]
                count = pairs.count((u, v))
                left = sum(x == u and y != u for x, y in pairs)
                entered = sum(y == v and x != v for x, y in pairs)
                here = way(u, v, count, left, entered)
                if axis.shape == "chain":
                    here += way(v, u, count, entered, left)
                seconds.append(here)
            slowest = max(slowest, sum(seconds) if axis.shape == "chain" else max(seconds))
        total += slowest
    return total


def _plain_sums(axis: Traffic, links: Links, groups: list[list[int]], nodes: list[int]) -> float:
    table = np.zeros((len(links.hosts),) * 2)
    for group in groups:
        for a in group:
            for b in group:
                table[nodes[a], nodes[b]] += a != b
    seconds = np.zeros_like(table)
    for u, v in zip(*np.nonzero(table), strict=True):
        flows = table[u, v] if u != v else table[u, v] // nodes.count(u)
        seconds[u, v] = flows * axis.num_bytes / links.bytes_per_s[u, v]
        seconds[u, v] += axis.messages * links.latency_s[u, v]
    return float(max(seconds.sum(axis=1).max(), seconds.sum(axis=0).max()))


def assignments(num_ranks: int, counts: list[int]) -> set[tuple[int, ...]]:
    """All ways to give ranks to nodes."""
    slots = [node for node, count in enumerate(counts) for _ in range(count)]
    return set(permutations(slots, num_ranks))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", range(len(CASES)))
def test_few_ranks_get_the_best_of_all_assignments(case: int, seed: int) -> None:
    mesh, traffic, per_node = CASES[case]
    links = random_links(-(-mesh.num_ranks // per_node), seed)
    mapped = map_ranks(mesh, traffic, links, per_node)
    assert mapped.exact
    assert mapped.best.seconds == pytest.approx(
        plain_seconds(mesh, traffic, links, list(mapped.best.nodes))
    )
    everything = sorted(assignments(mesh.num_ranks, [per_node] * len(links.hosts)))
    if len(everything) > 800:
        picked = np.random.default_rng(seed).choice(len(everything), 800, replace=False)
        everything = [everything[k] for k in picked]
    for nodes in everything:
        assert mapped.best.seconds <= plain_seconds(mesh, traffic, links, list(nodes)) * (1 + 1e-9)


def large() -> tuple[Mesh, tuple[Traffic, ...]]:
    return Mesh(axes={"pp": 3, "dp": 2, "tp": 2}, ep=2), (CHAIN, RING, INNER, EXPERTS)


@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_ranks_take_what_their_ranks_take(seed: int) -> None:
    mesh, traffic = large()
    links = random_links(6, seed)
    mapped = map_ranks(mesh, traffic, links, 2, effort=2000, seed=seed)
    assert not mapped.exact
    for mapping in (mapped.default, mapped.best):
        plain = plain_seconds(mesh, traffic, links, list(mapping.nodes))
        assert mapping.seconds == pytest.approx(plain)
        assert sum(mapping.by_axis.values()) == pytest.approx(plain)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_order_of_few_nodes_is_found_and_no_bound_exceeds_it(seed: int) -> None:
    mesh, traffic = large()
    links = random_links(6 + seed % 2, seed)
    mapped = map_ranks(mesh, traffic, links, 2, effort=20_000, boxes=False)
    flows, kinds = flows_of(mesh, traffic, np.arange(mesh.num_ranks) // 2)
    problem = Problem(flows, costs_of(kinds, links))
    orders = np.array(list(permutations(range(len(links.hosts)))))
    least = float(problem.seconds(orders)[0].min())
    assert mapped.best.seconds == pytest.approx(least)
    assert float(lower_bounds(problem).sum()) <= least * (1 + 1e-9)
    assert mapped.bound_s <= least * (1 + 1e-9)
    assert mapped.bound_s > 0.3 * least


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num=st.integers(4, 9), closed=st.booleans())
def test_bounds_hold_phase_by_phase(seed: int, num: int, closed: bool) -> None:
    random = np.random.default_rng(seed)
    axes = [{"pp": 2, "dp": 2}, {"pp": 4}, {"dp": 4}, {"pp": 1, "dp": 2, "cp": 2}][seed % 4]
    mesh = Mesh(axes=axes, ep=1 if axes == {"pp": 4} else 2)
    phases = (CLOSED if closed else CHAIN, RING, EXPERTS)
    traffic = tuple(t for t in phases if mesh.groups(t.axis).shape[1] > 1)
    links = random_links(num, seed)
    flows, kinds = flows_of(mesh, traffic, np.arange(4))
    problem = Problem(flows, costs_of(kinds, links))
    places = np.array([random.permutation(num) for _ in range(200)])
    seen = problem.phases(places).min(axis=0)
    assert (lower_bounds(problem) <= seen * (1 + 1e-9)).all()
    quick = node_bounds(flows, *ends_of(kinds, links, Ends.of(links)))
    assert (quick <= seen * (1 + 1e-9)).all()


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), per_node=st.integers(2, 5), closed=st.booleans())
def test_bounds_hold_where_nodes_hold_no_box(seed: int, per_node: int, closed: bool) -> None:
    """Rings then share nodes in ways in which no cycle goes through each node once."""
    random = np.random.default_rng(seed)
    axes = [{"pp": 2, "dp": 3}, {"dp": 4, "tp": 2}, {"pp": 3, "dp": 2, "tp": 2}, {"dp": 2, "pp": 5}]
    mesh = Mesh(axes=axes[seed % 4])
    phases = (CLOSED if closed else CHAIN, RING, INNER)
    traffic = tuple(t for t in phases if t.axis in mesh.axes)
    block_of = np.arange(mesh.num_ranks) // per_node
    num = int(block_of.max()) + 1 + seed % 2
    links = random_links(num, seed, spread=0.95)
    flows, kinds = flows_of(mesh, traffic, block_of)
    problem = Problem(flows, costs_of(kinds, links))
    places = np.array([random.permutation(num) for _ in range(150)])
    seen = problem.phases(places).min(axis=0)
    assert (lower_bounds(problem) <= seen * (1 + 1e-9)).all()
    quick = node_bounds(flows, *ends_of(kinds, links, Ends.of(links)))
    assert (quick <= seen * (1 + 1e-9)).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), closed=st.booleans())
def test_swaps_are_what_all_flows_say(seed: int, closed: bool) -> None:
    random = np.random.default_rng(seed)
    mesh = Mesh(axes={"pp": 4, "dp": 4, "tp": 2}, ep=4)
    traffic = (CLOSED if closed else CHAIN, RING, EXPERTS, INNER)
    links = random_links(18, seed)
    flows, kinds = flows_of(mesh, traffic, np.arange(32) // 2)
    problem = Problem(flows, costs_of(kinds, links))
    place = random.permutation(18)
    pairs = random.integers(0, 18, (40, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    swaps = Swaps(problem)
    swaps.move(place)
    total, led = swaps.seconds(pairs)
    moved = np.repeat(place[None], len(pairs), axis=0)
    for row, (a, b) in zip(moved, pairs, strict=True):
        row[[a, b]] = row[[b, a]]
    whole, whole_led = problem.seconds(moved)
    np.testing.assert_allclose(total, whole, rtol=1e-9)
    np.testing.assert_allclose(led, whole_led, rtol=1e-9)


def ring_of(num: int, **axes: int) -> tuple[Mesh, tuple[Traffic, ...]]:
    return Mesh(axes=axes or {"dp": num}), (RING,)


def test_a_bad_link_is_left_out_of_the_ring() -> None:
    rates = alike(12)
    rates[3, 4] = rates[4, 3] = 0.1e9
    mesh, traffic = ring_of(24)
    mapped = map_ranks(mesh, traffic, links_of(rates), 2)
    assert mapped.default.seconds / mapped.best.seconds > 50
    assert mapped.gap == pytest.approx(0, abs=1e-9)


def test_replicas_stay_within_fast_islands() -> None:
    island = np.array([0, 1] * 8)
    rates = np.where(island[:, None] == island[None], 10e9, 1e9)
    np.fill_diagonal(rates, 100e9)
    mesh = Mesh(axes={"pp": 2, "dp": 8})
    mapped = map_ranks(mesh, (CHAIN, RING), links_of(rates), 1)
    nodes = np.array(mapped.best.nodes).reshape(2, 8)
    assert all(len(set(island[stage])) == 1 for stage in nodes)
    assert mapped.best.seconds < 0.5 * mapped.default.seconds


def test_a_host_with_a_bad_nic_is_idle_where_one_may_be() -> None:
    rates = alike(10)
    rates[2, :] = rates[:, 2] = 0.5e9
    mesh, traffic = ring_of(9)
    mapped = map_ranks(mesh, traffic, links_of(rates), 1)
    assert 2 not in mapped.best.nodes
    assert mapped.gap == pytest.approx(0, abs=1e-9)


def test_no_order_of_alike_links_is_better_than_the_default() -> None:
    mesh, traffic = ring_of(24)
    mapped = map_ranks(mesh, traffic, links_of(alike(12)), 2)
    assert mapped.best == mapped.default
    assert mapped.gap == pytest.approx(0, abs=1e-9)


def test_what_is_inside_a_node_may_differ_from_the_default() -> None:
    """tp talks little and replicas much: replicas belong inside the nodes."""
    little = Traffic(axis="tp", shape="ring", num_bytes=1e6, messages=1)
    mesh = Mesh(axes={"dp": 4, "tp": 4})
    mapped = map_ranks(mesh, (RING, little), links_of(alike(4)), 4)
    assert mapped.best.box == {"dp": 4, "tp": 1}
    kept = map_ranks(mesh, (RING, little), links_of(alike(4)), 4, boxes=False)
    assert kept.best.box == {"dp": 1, "tp": 4}
    assert kept.best.seconds > 2 * mapped.best.seconds


def test_equal_seeds_give_equal_maps() -> None:
    mesh = Mesh(axes={"pp": 4, "dp": 7})
    links = random_links(28, 5)

    def once(seed: int) -> Mapped:
        return map_ranks(mesh, (CHAIN, RING), links, 1, effort=30_000, seed=seed)

    assert once(3) == once(3)
    assert once(3).best.seconds <= once(3).default.seconds


def test_a_long_search_is_never_worse_than_a_start() -> None:
    links = random_links(30, 8)
    flows, kinds = flows_of(Mesh(axes={"dp": 30}), (RING,), np.arange(30))
    problem = Problem(flows, costs_of(kinds, links))
    starts = [np.arange(30), *chain_orders(1 / links.bytes_per_s, 3)]
    seconds = problem.seconds(np.array(starts))[0]
    place, found = map_blocks(problem, starts, 20_000)
    assert sorted(place) == list(range(30))
    assert found <= seconds.min()
    assert found == pytest.approx(float(problem.phases(place[None]).sum()))


def test_one_rank_and_no_traffic() -> None:
    mapped = map_ranks(Mesh(axes={"pp": 1, "tp": 1}), (), links_of(alike(1)), 8)
    assert (mapped.best.nodes, mapped.best.seconds, mapped.gap) == ((0,), 0.0, 0.0)
    whole = map_ranks(Mesh(axes={"pp": 1, "tp": 16}), (INNER,), links_of(alike(1)), 16)
    assert whole.best.nodes == (0,) * 16


def test_too_many_ranks_are_refused() -> None:
    with pytest.raises(UserError, match="need 16 devices; 3 hosts with 4 each have 12"):
        map_ranks(Mesh(axes={"dp": 16}), (RING,), links_of(alike(3)), 4)
    with pytest.raises(UserError, match="ep 3 x etp 1 does not divide the 8 ranks"):
        map_ranks(Mesh(axes={"pp": 2, "dp": 8}, ep=3), (RING,), links_of(alike(4)), 4)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (np.ones((2, 3)), "`bytes_per_s` is 2 x 3, but there are 2 hosts"),
        (np.array([[1.0, 0.0], [1.0, 1.0]]), "the rate from `host0` to `host1` is 0"),
        (np.array([[1.0, 1.0], [np.nan, 1.0]]), "the rate from `host1` to `host0` is nan"),
    ],
)
def test_links_need_every_pair(rates: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Links(hosts=("host0", "host1"), bytes_per_s=rates, latency_s=np.zeros((2, 2)))


def test_islands_of_unlike_nics_keep_their_replicas_together():
    """InfiniBand and RoCE hosts taken in turn, joined by Ethernet (Holmes, Yang et al. 2023,
    arXiv:2312.03549): gradients are reduced within an island, pipelines cross."""
    rates = np.where(np.arange(8)[:, None] % 2 == np.arange(8)[None] % 2, 25e9, 1.25e9)
    np.fill_diagonal(rates, 200e9)
    mapped = map_ranks(
        Mesh(axes={"pp": 2, "dp": 4, "tp": 8}),
        (replace(CHAIN, num_bytes=1e8), RING, INNER),
        links_of(rates),
        8,
    )
    nodes = np.array(mapped.best.nodes).reshape(2, 4, 8)
    assert all(len(set((stage % 2).reshape(-1))) == 1 for stage in nodes)
    assert mapped.default.seconds > 3 * mapped.best.seconds
