"""A map of ranks from measured links wins the time that it promises, by the stopwatch."""

import statistics

import pytest

from planner.mapping import map_ranks
from planner.mesh import Mesh
from planner.traffic import Traffic
from tests.lab import jobs, measure

pytestmark = [pytest.mark.lab, pytest.mark.distributed, pytest.mark.usefixtures("can_lab")]

NUM_BYTES, NUM_RANKS = 1 << 20, 8
INSIDE = 1e9
"""Bytes per second between ranks of a host: not measured, and of no weight here."""


def test_the_map_goes_around_the_bad_link(cluster, ranks):
    links = measure.links_of(cluster, INSIDE)
    hops = 2 * (NUM_RANKS - 1)
    ring = Traffic(axis="dp", shape="ring", num_bytes=hops / NUM_RANKS * NUM_BYTES, messages=hops)
    mapped = map_ranks(Mesh(axes={"dp": NUM_RANKS}), (ring,), links, 2)
    orders = [[links.hosts[n] for n in m.nodes] for m in (mapped.default, mapped.best)]
    seconds: list[list[float]] = [[], []]
    for _ in range(2):
        for order, found in zip(orders, seconds, strict=True):
            result = ranks.run(
                cluster, jobs.all_reduce, placed=tuple(order), num_bytes=NUM_BYTES, times=3
            )
            found += result[0]
    default, ours = (statistics.median(found) for found in seconds)
    for name, measured, mapping in (
        ("default", default, mapped.default),
        ("map", ours, mapped.best),
    ):  # shown by `pytest -s`
        print(f"{name}: {measured:.3f} s, predicted {mapping.seconds:.3f} s")
    assert mapped.default.seconds / mapped.best.seconds > 3
    assert default / ours > 3
    # The default is what the bad link takes; around it, processes that share cores add to the wire.
    assert default == pytest.approx(mapped.default.seconds, rel=0.5)
