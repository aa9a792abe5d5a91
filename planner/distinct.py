"""Which of many layouts share what the time of a layer, or memory, depends on."""

from collections.abc import Sequence

import numpy as np

from planner.layouts import FIELDS, Ints, Layouts

KEY = ("tp", "cp", "cp_method", "cp_heads", "ep", "etp", "ep_overlap", "micro_batch", "recompute")
"""What the time of a layer depends on; and whether there is a pipeline, and several nodes."""
_MEMORY_KEY = tuple(name for name in FIELDS if name not in ("cp_method", "cp_heads", "ep_overlap"))


def distinct_layers(layouts: Layouts, per_node: int) -> tuple[Ints, Ints]:
    """(position among the distinct layer keys of each layout, a layout of each distinct key)."""
    code = 2 * (layouts.pp > 1).astype(np.int64) + (layouts.num_devices > per_node)
    code, size = _coded(layouts, KEY, code, 4)
    if size > 1 << 24:
        _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
        return inverse.reshape(-1), first
    first = np.full(size, -1, dtype=np.int64)
    first[code[::-1]] = np.arange(len(code))[::-1]
    used = np.flatnonzero(first >= 0)
    position = np.empty(size, dtype=np.int64)
    position[used] = np.arange(len(used))
    return position[code], first[used]


def distinct_memory(layouts: Layouts) -> tuple[Ints, Ints]:
    """The same for memory: neither how a sequence is exchanged by context parallelism nor in how
    many chunks tokens go to experts makes a difference."""
    code, _ = _coded(layouts, _MEMORY_KEY, np.zeros(len(layouts), dtype=np.int64), 1)
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    return inverse.reshape(-1), first


def _coded(layouts: Layouts, key: Sequence[str], code: Ints, size: int) -> tuple[Ints, int]:
    """A code below `size` with the fields of `key` besides, and the size that it then is below."""
    for name in key:
        values = getattr(layouts, name)
        if not len(values) or (values == values[0]).all():  # as most are in a chunk
            continue
        known, place = _ranks(values)
        code = code * known + place
        size *= known
    return code, size


def _ranks(values: Ints) -> tuple[int, Ints]:
    """(number of distinct values, each value's place among them): for small positive values."""
    most = int(values.max())
    if most < 1 << 20:
        seen = np.zeros(most + 1, dtype=np.bool_)
        seen[values] = True
        place = np.cumsum(seen) - 1
        return int(place[-1]) + 1, place[values]
    known, inverse = np.unique(values, return_inverse=True)
    return len(known), inverse.reshape(-1)
