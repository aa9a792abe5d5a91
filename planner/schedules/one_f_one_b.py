"""1F1B: warm up, alternate one forward and one backward, drain (PipeDream-Flush, Narayanan et al.
2021, arXiv:2104.04473).

Stage s of p keeps at most min(m, p - s) micro-batches in flight; the step takes as long as GPipe's
where stages are equal: (m + p - 1) * (f + b). Fewer micro-batches than stages are allowed.
"""

from planner.schedules.action import Action, Flights, Table


def in_flight(num_stages: int, num_microbatches: int) -> Flights:
    """As many as there are stages to the end, and as many again while forwards go on."""
    before = [min(num_microbatches, num_stages - s) for s in range(num_stages)]
    return tuple((n, n if num_microbatches > n else n - 1) for n in before)


def table(num_stages: int, num_microbatches: int) -> Table:
    """Actions of each of `num_stages` ranks, one stage per rank."""
    rows = []
    for s in range(num_stages):
        warm_up = min(num_microbatches, num_stages - s - 1)
        row = [Action(s, "F", k) for k in range(warm_up)]
        for k in range(num_microbatches - warm_up):
            row += [Action(s, "F", warm_up + k), Action(s, "B", k)]
        row += [Action(s, "B", k) for k in range(num_microbatches - warm_up, num_microbatches)]
        rows.append(tuple(row))
    return tuple(rows)
