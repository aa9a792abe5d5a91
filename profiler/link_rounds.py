"""Who measures with whom: rounds of disjoint pairs of hosts.

All pairs take n - 1 rounds for n hosts (n for an odd n, one host idle in each): the circle method
of round-robin tournaments (Kirkman 1847), in which host 0 stays and the others move on by one seat.
A round takes as long as one pair. Beyond some size hosts meet only some of the others, drawn at
random, half of the rounds under the same leaf switch where the fabric is known: pairs of one leaf
are rare among random ones.
"""

from collections.abc import Sequence

import numpy as np

Pair = tuple[int, int]
Round = tuple[Pair, ...]

ALL_PAIRS_HOSTS = 64
"""Up to so many hosts all pairs are measured: 63 rounds."""
SAMPLED_ROUNDS = 24


def circle_rounds(num_hosts: int) -> tuple[Round, ...]:
    """Every pair (i < j) once, in rounds of disjoint pairs."""
    seats = [*range(num_hosts), *([-1] if num_hosts % 2 else [])]
    rounds = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        facing = zip(seats[:half], reversed(seats[half:]), strict=True)
        rounds.append(tuple(sorted((min(p), max(p)) for p in facing if min(p) >= 0)))
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return tuple(r for r in rounds if r)


def sampled_rounds(
    num_hosts: int, count: int, seed: int, leaves: Sequence[object] | None = None
) -> tuple[Round, ...]:
    """`count` rounds of disjoint pairs at random, no pair twice; `leaves`: the leaf of each host.

    A pair drawn before is left out of its round, so rounds may be smaller than n / 2.
    """
    random = np.random.default_rng(seed)
    seen: set[Pair] = set()
    rounds = []
    for number in range(count):
        near = leaves is not None and number % 2 == 0
        order = [int(k) for k in random.permutation(num_hosts)]
        if near and leaves is not None:  # a stable sort: at random within a leaf
            order.sort(key=lambda host: str(leaves[host]))
        drawn = []
        pending: int | None = None
        for host in order:
            if pending is None:
                pending = host
            elif near and leaves is not None and leaves[pending] != leaves[host]:
                pending = host  # one is left over in an odd leaf
            else:
                drawn.append((min(pending, host), max(pending, host)))
                pending = None
        fresh = tuple(sorted(pair for pair in drawn if pair not in seen))
        seen.update(fresh)
        if fresh:
            rounds.append(fresh)
    return tuple(rounds)


def rounds_of(
    num_hosts: int, seed: int, leaves: Sequence[object] | None = None
) -> tuple[Round, ...]:
    """All pairs of up to `ALL_PAIRS_HOSTS` hosts, `SAMPLED_ROUNDS` rounds of more."""
    if num_hosts <= ALL_PAIRS_HOSTS:
        return circle_rounds(num_hosts)
    return sampled_rounds(num_hosts, SAMPLED_ROUNDS, seed, leaves)


def serial(rounds: Sequence[Round]) -> tuple[Round, ...]:
    """One pair at a time."""
    return tuple((pair,) for r in rounds for pair in r)
