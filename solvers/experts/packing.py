"""Items to bins with equally many in each, so that the fullest bin is least: many cases at once.

Longest processing time first (Graham 1969), each item into the emptiest bin with room; then swaps
between the fullest bin and any other, the one that leaves the smaller maximum, while one helps.

Bins may be unlike: `slow` [bins] or [cases, bins] is what each takes for the same weight. An item
then goes where it is done first (Gonzalez, Ibarra and Sahni 1977), and the fullest bin is the one
that takes longest.
"""

import numpy as np

from solvers.experts.problem import Floats, Ints

_SAME = 1 - 1e-12
_MOST_SWAPS = 2000


def longest_first(
    weights: Floats, num_bins: int, slow: Floats | None = None, kind: Ints | None = None
) -> Ints:
    """[cases, bins, room]: the items of each bin, in the order in which they came; `weights`
    [cases, items], of which there are bins * room. Items of one `kind` [cases, items] go to
    different bins as long as those have room."""
    cases, num = weights.shape
    slow = _of_cases(slow, cases, num_bins)
    later = slow - slow.min(axis=1, keepdims=True)
    room = num // num_bins
    if room * num_bins != num:
        raise ValueError("the items do not fill the bins evenly")
    order = np.argsort(-weights, axis=1, kind="stable")
    bins = np.empty((cases, num_bins, room), np.int64)
    load, filled = np.zeros((cases, num_bins)), np.zeros((cases, num_bins), np.int64)
    case = np.arange(cases)
    has = None if kind is None else np.zeros((cases, num_bins, int(kind.max()) + 1), np.bool_)
    for item in order.T:
        # When it is done, less what it takes in the fastest bin: of like bins the load alone.
        done = load * slow + weights[case, item][:, None] * later
        free = filled < room
        if kind is not None and has is not None:
            apart = free & ~has[case, :, kind[case, item]]
            free = np.where(apart.any(axis=1, keepdims=True), apart, free)
        into = np.where(free, done, np.inf).argmin(axis=1)
        if kind is not None and has is not None:
            has[case, into, kind[case, item]] = True
        bins[case, into, filled[case, into]] = item
        load[case, into] += weights[case, item]
        filled[case, into] += 1
    return bins


def swapped(weights: Floats, bins: Ints, slow: Floats | None = None) -> Ints:
    """`bins` [cases, bins, room] after swaps; never a fuller fullest bin."""
    cases, num_bins, room = bins.shape
    slow = _of_cases(slow, cases, num_bins)
    place = bins.reshape(cases, -1).copy()
    of_bin = np.arange(num_bins * room) // room
    now = np.take_along_axis(weights, place, axis=1)
    load = now.reshape(cases, num_bins, room).sum(axis=2)
    live = np.arange(cases)
    for _ in range(_MOST_SWAPS):
        if not len(live) or num_bins == 1:
            break
        row = np.arange(len(live))
        full = (load * slow)[live].argmax(axis=1)
        top, rate = load[live, full], slow[live, full]
        mine = full[:, None] * room + np.arange(room)
        less = now[live[:, None], mine][:, :, None] - now[live][:, None, :]
        worst = np.maximum(
            (top[:, None, None] - less) * rate[:, None, None],
            (load[live][:, None, of_bin] + less) * slow[live][:, None, of_bin],
        )
        worst = np.where((of_bin == full[:, None])[:, None, :], np.inf, worst).reshape(len(row), -1)
        best = worst.argmin(axis=1)
        better = worst[row, best] < top * rate * _SAME
        live, best, mine = live[better], best[better], mine[better]
        one = mine[np.arange(len(live)), best // len(of_bin)]
        two = best % len(of_bin)
        moved = now[live, one] - now[live, two]
        load[live, of_bin[one]] -= moved
        load[live, of_bin[two]] += moved
        for table in (place, now):
            kept = table[live, one]
            table[live, one] = table[live, two]
            table[live, two] = kept
    return place.reshape(bins.shape)


def packed(weights: Floats, num_bins: int, slow: Floats | None = None) -> Ints:
    """[cases, bins, room]: longest first, then swaps."""
    return swapped(weights, longest_first(weights, num_bins, slow), slow)


def _of_cases(slow: Floats | None, cases: int, num_bins: int) -> Floats:
    """[cases, bins]: ones for None."""
    return np.broadcast_to(np.ones(1) if slow is None else slow, (cases, num_bins))


def replicated(weights: Floats, num_slots: int) -> Ints:
    """[cases, slots]: every item once, in order, then again and again the one with most weight per
    slot."""
    cases, num = weights.shape
    item = np.empty((cases, num_slots), np.int64)
    item[:, :num] = np.arange(num)
    times = np.ones((cases, num), np.int64)
    case = np.arange(cases)
    for slot in range(num, num_slots):
        hottest = (weights / times).argmax(axis=1)
        item[:, slot] = hottest
        times[case, hottest] += 1
    return item


def per_slot(weights: Floats, item: Ints) -> Floats:
    """[cases, slots]: weight of each slot where an item's is split evenly over its slots."""
    case = np.arange(len(weights))[:, None]
    times = np.zeros(weights.shape)
    np.add.at(times, (case, item), 1.0)
    return np.asarray((weights / np.maximum(times, 1))[case, item])
