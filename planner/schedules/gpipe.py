"""GPipe: every forward, then every backward (Huang et al. 2019, arXiv:1811.06965).

Each stage keeps all micro-batches in flight. With equal stages and forward f, backward b:
step = (m + p - 1) * (f + b).
"""

from planner.schedules.action import Action, Flights, Table


def in_flight(num_stages: int, num_microbatches: int) -> Flights:
    """Every micro-batch is in flight before the first backward."""
    return ((num_microbatches, num_microbatches - 1),) * num_stages


def table(num_stages: int, num_microbatches: int) -> Table:
    """Actions of each of `num_stages` ranks, one stage per rank."""
    return tuple(
        tuple(Action(s, "F", k) for k in range(num_microbatches))
        + tuple(Action(s, "B", k) for k in range(num_microbatches))
        for s in range(num_stages)
    )
