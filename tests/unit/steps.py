"""Programs for tests of the simulator, and a slow simulator written from the definition alone."""

import itertools

from hypothesis import strategies as st

from planner.schedules import allows_vpp, parse_table, table_of
from planner.simulate import Program, Sharing

NAMES = ("gpipe", "1f1b", "interleaved", "zero_bubble", "zbv", "dualpipev")
SHAPES = [(name, v) for name, v in itertools.product(NAMES, (1, 2, 3)) if allows_vpp(name, v)]
USERS = parse_table(
    ["0F0 0F1 2F0 2B0 2F1 0I0 2I1 0W0 0B1 2W1", "1F0 1F1 3F0 3B0 1I0 3F1 3B1 1B1 1W0"]
)


def program(
    name, p, m, f=1.0, b=2.0, w=0.0, *, vpp=1, send=0.0, bucket=0.0, sync=0.0, optimizer=0.0,
    forward=None, **more,
):  # fmt: skip
    """Equal stages; `b` is the whole backward."""
    num = p * vpp
    return Program(
        schedule=name,
        num_microbatches=m,
        vpp=vpp,
        forward_s=forward or (f,) * num,
        input_s=(b - w,) * num,
        weight_s=(w,) * num,
        send_forward_s=(send,) * num,
        send_backward_s=(send,) * num,
        bucket_s=(bucket,) * p,
        sync_s=(sync,) * num,
        optimizer_s=(optimizer,) * p,
        **more,
    )


def cores(p, num_cores, per_stage=1):
    """A host whose ranks, and a lane of each, run at full speed up to `num_cores`."""
    curve = tuple(max(1.0, k / num_cores) for k in range(1, 2 * p * per_stage + 1))
    return Sharing(slowdown=curve, sync_slowdown=curve, ranks_on_host=((per_stage,),) * p)


@st.composite
def programs(draw, shapes=(*SHAPES, ("table", 2)), max_p=6, max_m=14):
    """Any schedule with any times, some of them 0."""
    name, vpp = draw(st.sampled_from(shapes))
    p, m = draw(st.integers(1, max_p)), draw(st.integers(1, max_m))
    if name == "table":
        p, m = 2, 2
    pick = draw(st.randoms(use_true_random=False))

    def times(num, most):
        return tuple(pick.uniform(0, most) if pick.random() < 0.9 else 0.0 for _ in range(num))

    num = p * vpp
    return Program(
        schedule=name,
        num_microbatches=m,
        vpp=vpp,
        table=USERS if name == "table" else None,
        forward_s=times(num, 3),
        input_s=times(num, 3),
        weight_s=times(num, 3),
        send_forward_s=times(num, 1),
        send_backward_s=times(num, 1),
        head_s=pick.choice([(), times(p, 9)]),
        bucket_s=times(p, 2),
        sync_s=times(num, 9),
        optimizer_s=times(p, 2),
        overlap_sync=pick.random() < 0.5,
    )


def actions_of(prog):
    """The program's table, asked of the schedules themselves."""
    if prog.table is not None:
        return prog.table
    return table_of(prog.schedule, len(prog.bucket_s), prog.num_microbatches, prog.vpp)


def reference(prog):
    """(start and end of each action, end of each rank's update), by trying all ranks in turn."""
    table, last = actions_of(prog), len(prog.forward_s) - 1
    seconds = {"F": prog.forward_s, "I": prog.input_s, "W": prog.weight_s}
    seconds["B"] = [i + w for i, w in zip(prog.input_s, prog.weight_s, strict=True)]
    free = list(prog.head_s or [0.0] * len(table))
    arrived, spans, rows = {("F", 0, k): 0.0 for k in range(prog.num_microbatches)}, {}, []
    rows = [list(row) for row in table]
    while any(rows):
        before = sum(map(len, rows))
        for rank, row in enumerate(rows):
            while row:
                s, op, k = row[0]
                needs = ("B" if op == "I" else op, s, k)
                if needs not in arrived:
                    break
                start = max(free[rank], arrived[needs])
                free[rank] = end = start + seconds[op][s]
                spans[row.pop(0)] = (start, end)
                if op == "F" and s < last:
                    arrived["F", s + 1, k] = end + prog.send_forward_s[s]
                elif op == "F":
                    arrived["B", s, k] = end
                elif op != "W" and s:
                    arrived["B", s - 1, k] = end + prog.send_backward_s[s]
                arrived["W", s, k] = end
        assert sum(map(len, rows)) < before, "stuck"
    return spans, [_update_end(prog, row, spans, r) for r, row in enumerate(table)]


def _update_end(prog, row, spans, rank):
    copied = spans[row[-1]][1] + prog.bucket_s[rank]
    ready = {a.stage: spans[a][1] for a in row if a.op in "BW"}  # the last one stays
    lane = 0.0
    for stage in sorted(ready, key=ready.get):
        lane = max(lane, ready[stage] if prog.overlap_sync else copied) + prog.sync_s[stage]
    return max(copied, lane) + prog.optimizer_s[rank]
