"""Items to bins with equally many in each, so that the fullest bin is least: many cases at once.

Longest processing time first (Graham 1969), each item into the emptiest bin with room; then swaps
between the fullest bin and any other, the one that leaves the smaller maximum, while one helps.
"""

import numpy as np

from solvers.experts.problem import Floats, Ints

_SAME = 1 - 1e-12
_MOST_SWAPS = 2000


def longest_first(weights: Floats, num_bins: int) -> Ints:
    """[cases, bins, room]: the items of each bin, in the order in which they came; `weights`
    [cases, items], of which there are bins * room."""
    cases, num = weights.shape
    room = num // num_bins
    if room * num_bins != num:
        raise ValueError("the items do not fill the bins evenly")
    order = np.argsort(-weights, axis=1, kind="stable")
    bins = np.empty((cases, num_bins, room), np.int64)
    load, filled = np.zeros((cases, num_bins)), np.zeros((cases, num_bins), np.int64)
    case = np.arange(cases)
    for item in order.T:
        into = np.where(filled < room, load, np.inf).argmin(axis=1)
        bins[case, into, filled[case, into]] = item
        load[case, into] += weights[case, item]
        filled[case, into] += 1
    return bins


def swapped(weights: Floats, bins: Ints) -> Ints:
    """`bins` [cases, bins, room] after swaps; never a fuller fullest bin."""
    cases, num_bins, room = bins.shape
    place = bins.reshape(cases, -1).copy()
    of_bin = np.arange(num_bins * room) // room
    now = np.take_along_axis(weights, place, axis=1)
    load = now.reshape(cases, num_bins, room).sum(axis=2)
    live = np.arange(cases)
    for _ in range(_MOST_SWAPS):
        if not len(live) or num_bins == 1:
            break
        row = np.arange(len(live))
        full = load[live].argmax(axis=1)
        top = load[live, full]
        mine = full[:, None] * room + np.arange(room)
        less = now[live[:, None], mine][:, :, None] - now[live][:, None, :]
        worst = np.maximum(top[:, None, None] - less, load[live][:, None, of_bin] + less)
        worst = np.where((of_bin == full[:, None])[:, None, :], np.inf, worst).reshape(len(row), -1)
        best = worst.argmin(axis=1)
        better = worst[row, best] < top * _SAME
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


def packed(weights: Floats, num_bins: int) -> Ints:
    """[cases, bins, room]: longest first, then swaps."""
    return swapped(weights, longest_first(weights, num_bins))


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
