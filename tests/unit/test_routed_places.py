"""Places of experts while training: against all that could be done, on links that are measured."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.config import ExpertSlots
from planner.expert_moves import MoveRates
from planner.expert_placement import parts_of
from planner.grid import Grid
from planner.holdings import contiguous_slots
from planner.rebalance import Look, decide
from planner.routed_places import routed_places
from planner.where import nodes_of_ranks
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster
from profiler.cluster import ClusterSpec
from profiler.codec import replace
from profiler.model import ModelSpec
from profiler.profile import HostLinks, Profile

from . import facts
from .layouts import MODELS, Layout, layout
from .routed import fullest, level_places

MOE = MODELS[2]
"""Two MoE layers of four experts."""
SIX = replace(MOE, num_experts=6)
JOB = facts.job()
COPY = 4 * MOE.hidden_size * 4
"""Bytes of a choice in a step: out and back, forward and backward, in float32."""
COMPUTE_S = 1e-6


def links_of(rates: list[list[float]], out: list[float], into: list[float]) -> HostLinks:
    n = len(rates)
    return HostLinks(
        hosts=tuple(f"h{i}" for i in range(n)), bytes_per_s=tuple(map(tuple, rates)),
        latency_s=((0.0,) * n,) * n, out_bytes_per_s=tuple(out), in_bytes_per_s=tuple(into),
    )  # fmt: skip


def even_links(
    n: int, rate: float, slow: dict[int, float] | None = None, *, sends: bool = True
) -> HostLinks:
    """All alike but for some hosts, which receive so many times slower, and send so (`sends`)."""
    into = [rate / (slow or {}).get(i, 1.0) for i in range(n)]
    out = into if sends else [rate] * n
    pairs = [[10 * rate if a == b else min(out[a], into[b]) for b in range(n)] for a in range(n)]
    return links_of(pairs, out, into)


def profile_of(links: HostLinks, model: ModelSpec, per_node: int = 1) -> Profile:
    return replace(facts.profile(len(links.hosts), per_node), links=links, model=model)


def places_of(profile: Profile, of: Layout):
    return routed_places(profile, JOB, *of, compute_s=COMPUTE_S)


def all_pairs() -> list[ExpertSlots]:
    """Six experts, two on each of three ranks."""
    return [
        ExpertSlots(slots=(order[:2], order[2:4], order[4:]))
        for order in itertools.permutations(range(6))
        if order[0] < order[1] and order[2] < order[3] and order[4] < order[5]
    ]


PAIRS = all_pairs()
COUNTS = st.lists(st.integers(0, 1000), min_size=6, max_size=6)
THREE = layout(SIX, dp_replicate=3, ep=3)
START = ExpertSlots(slots=((0, 1), (2, 3), (4, 5)))


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(COUNTS, min_size=2, max_size=2))
def test_over_equal_links_load_alone_decides(rows):
    counts = np.array(rows)
    found = places_of(profile_of(even_links(3, 1e8), SIX), THREE)
    by_links = found.place(counts, (START, START))
    by_load = level_places(2, 3).place(counts, (START, START))
    assert fullest(counts, by_links) == pytest.approx(fullest(counts, by_load))


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(COUNTS, min_size=2, max_size=2), slow=st.sampled_from((1.5, 3.0, 10.0)))
def test_with_one_slow_nic_the_price_is_the_least_of_all(rows, slow):
    counts = np.array(rows)
    places = places_of(profile_of(even_links(3, 1e8, {1: slow}), SIX), THREE)
    found = places.price(counts, places.place(counts, (START, START)))
    best = np.min([places.price(counts, (each, each)) for each in PAIRS], axis=0)
    assert (found <= 1.01 * best + 1e-12).all()


def slow_to_receive(host: int, times: float) -> HostLinks:
    return even_links(3, 1e8, {host: times}, sends=False)


def test_hot_experts_leave_the_host_with_the_slow_nic():
    """Where a NIC is slow in both directions, the host's own tokens leave it slowly as well: of all
    1000 choices a third begins there, and the fewer end there the more have to leave."""
    counts = np.array([[100, 100, 300, 300, 100, 100]] * 2)
    of_slow = {}
    for name, links in {
        "even": even_links(3, 1e8),
        "slow": even_links(3, 1e8, {1: 4.0}),
        "slow to receive": slow_to_receive(1, 4.0),
    }.items():
        places = places_of(profile_of(links, SIX), THREE)
        (found, other) = places.place(counts, (START, START))
        assert found == other
        loads = counts[0] @ parts_of(found, 6)
        assert loads.max() == 400
        of_slow[name] = loads[1]
        prices = [places.price(counts, (each, each))[0] for each in PAIRS]
        assert places.price(counts, (found, found))[0] == pytest.approx(min(prices))
    assert of_slow["slow"] <= 400
    assert of_slow["slow to receive"] == 200


def test_a_layer_that_would_gain_nothing_stays():
    counts = np.array([[200, 200, 100, 100, 200, 200]] * 2)
    places = places_of(profile_of(slow_to_receive(1, 2.0), SIX), THREE)
    assert places.place(counts, (START, START)) == (START, START)


def test_alike_hosts_trade_and_the_slow_one_does_not():
    """Level experts in another order: only where the slow NIC is, other ones have to be."""
    counts = np.array([[300, 300, 100, 100, 300, 300]] * 2)
    places = places_of(profile_of(slow_to_receive(0, 4.0), SIX), THREE)
    (found, _) = places.place(counts, (START, START))
    assert {*found.slots[0]} == {2, 3}
    assert [sorted(rank) for rank in found.slots[1:]] in ([[0, 1], [4, 5]], [[0, 4], [1, 5]])


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_what_moves_pays_by_its_own_price(data):
    rows = data.draw(st.lists(COUNTS, min_size=2, max_size=2))
    slow = data.draw(st.sampled_from((1.0, 2.0, 8.0)))
    rate = data.draw(st.sampled_from((1e5, 1e7, 1e9)))
    gain = data.draw(st.sampled_from((0.5, 1.0, 3.0)))
    counts = np.array(rows)
    places = places_of(profile_of(even_links(3, 1e8, {2: slow}), SIX), THREE)
    look = Look(
        counts=counts, num_steps=1, steps_left=1000,
        rates=MoveRates(inside=rate, between=(rate,) * 3, source="by hand"),
    )  # fmt: skip
    found = decide(SIX, *THREE, look, places, gain=gain, node_of_rank=(0, 1, 2))
    if found.experts is None:
        return
    assert found.gain_s * 1000 > gain * found.move_s
    before, after = (places.price(counts, e) for e in ((START, START), found.experts))
    assert (after <= before).all()
    assert found.gain_s == pytest.approx((before - after).sum())


def by_hand(profile: Profile, of: Layout, counts, experts: ExpertSlots, layer: int) -> float:
    """Seconds of a layer: every group's choices from every rank to the experts', node by node."""
    config, placement = of
    grid, nodes = Grid(config, placement), nodes_of_ranks(profile.cluster, *of)
    links = profile.links
    assert links is not None
    parts = counts[layer] @ parts_of(experts, len(counts[layer]))
    flows: Counter[tuple[int, int]] = Counter()
    stage = 0 if config.pp == 1 else layer
    for group in grid.groups("ep"):
        if grid.coordinate(group[0])["pp"] == stage:
            for source, (target, load) in itertools.product(
                group, zip(group, parts.tolist(), strict=True)
            ):
                flows[nodes[source], nodes[target]] += load / config.ep
    way, back = [], []
    for found, turned in ((way, False), (back, True)):
        ports: Counter[tuple[str, int]] = Counter()
        for (a, b), copies in flows.items():
            if a != b:
                a, b = (b, a) if turned else (a, b)
                found.append(COPY * copies / links.bytes_per_s[a][b])
                ports["out", a] += COPY * copies / links.out_bytes_per_s[a]
                ports["in", b] += COPY * copies / links.in_bytes_per_s[b]
        found += ports.values()
    between = (max(way, default=0.0) + max(back, default=0.0)) / 2
    return COMPUTE_S * parts.max() + between


LAYOUTS = {
    "a rank on each host": layout(MOE, dp_replicate=4, ep=4),
    "two groups on four hosts": layout(MOE, dp_replicate=4, ep=2),
    "groups over both hosts of two": layout(MOE, {"ranks": (0, 2, 1, 3)}, dp_replicate=4, ep=2),
    "hosts in another order": layout(MOE, {"devices": (3, 1, 0, 2)}, dp_replicate=4, ep=4),
    "a pipeline rank on each pair": layout(
        MOE, {"stages": ((0, 3), (3, 5))}, pp=2, dp_replicate=2, ep=2
    ),
}


@settings(deadline=None, max_examples=20)
@given(data=st.data())
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_price_is_that_of_all_groups_at_once(name, data):
    of = LAYOUTS[name]
    per_node = 2 if "of two" in name else 1
    n = 4 // per_node
    rate = st.floats(1e6, 1e7)
    port = st.lists(rate, min_size=n, max_size=n)
    links = links_of(
        data.draw(st.lists(port, min_size=n, max_size=n)), data.draw(port), data.draw(port)
    )
    counts = np.array(data.draw(st.lists(
        st.lists(st.integers(1, 1000), min_size=4, max_size=4), min_size=2, max_size=2
    )))  # fmt: skip
    profile = profile_of(links, MOE, per_node)
    experts = contiguous_slots(4, of[0].ep)
    found = places_of(profile, of).price(counts, (experts, experts))
    wanted = [by_hand(profile, of, counts, experts, layer) for layer in (0, 1)]
    assert found == pytest.approx(wanted)


def test_where_nodes_hold_unequal_parts_every_rank_is_its_own():
    """Three ranks of a group on two nodes: none can be said to hold as many as another."""
    of = layout(SIX, {"devices": (0, 1, 2)}, dp_replicate=3, ep=3)
    profile = profile_of(even_links(2, 1e6), SIX, 2)
    counts = np.array([[200, 100, 100, 100, 100, 100]] * 2)
    found = places_of(profile, of)
    assert set(found.price(counts, (START, START)) > COMPUTE_S * 300) == {True}
    (layer, _) = found.place(counts, (START, START))
    assert sorted(e for rank in layer.slots for e in rank) == list(range(6))


@pytest.mark.parametrize("turned", [False, True])
def test_a_slow_kind_of_device_counts_wherever_its_ranks_are(turned):
    """Ranks of a group over two kinds of node: the hottest expert costs more on the slow kind."""
    model = replace(MOE, num_experts=16)
    groups = tuple(resolve_cluster(name).groups[0] for name in ("a100-80-1x8", "h100-1x8"))
    cluster = ClusterSpec(name="mix", groups=groups)
    ranks = (*range(8, 16), *range(8)) if turned else tuple(range(16))
    of = layout(model, {"ranks": ranks}, dp_replicate=16, ep=16)
    profile = analytic_profile(model, JOB, cluster)
    (group,) = Grid(*of).groups("ep")
    nodes = np.array(nodes_of_ranks(cluster, *of))[list(group)]
    counts = np.full((2, 16), 100)
    counts[:, 0] = 1600
    places = places_of(profile, of)

    def price(node: int) -> float:
        at = int(np.flatnonzero(nodes == node)[0])
        order = list(range(1, 16))
        order.insert(at, 0)
        experts = ExpertSlots(slots=tuple((e,) for e in order))
        return float(places.price(counts, (experts, experts))[0])

    assert price(0) > 1.2 * price(1)
