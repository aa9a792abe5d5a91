"""Every pair of options in as few layouts as a greedy search over random ones needed.

`cases.CASES` holds what one would think of; these are what it left out, mostly six options and more
at once on 8 processes. They take too long for every run of the tests: `make parity` runs them.
"""

import dataclasses

from cases import (
    CROWD,
    DEEP,
    DENSE,
    DROP,
    HALVES,
    MOE,
    ONE_EMPTY,
    REPLICAS,
    SHARED,
    TIED_MOE,
    greedy_table,
    small,
)

TIED_DROP = dataclasses.replace(DROP, tie_embeddings=True)
TIED_SHARED = dataclasses.replace(SHARED, tie_embeddings=True)
SHARED_DROP = dataclasses.replace(SHARED, capacity_factor=1.0, capacity_group=4)
MIXED = {
    "pp2 zero1 ulysses ep2 interleaved selective placed": small(
        model=SHARED_DROP, shard=2, cp=2, pp=2, schedule="interleaved", vpp=2, zero=1,
        cp_method="ulysses", ep=2, ep_overlap=2, experts=(HALVES, REPLICAS), recompute="selective",
        ranks=(3, 6, 0, 4, 1, 2, 5, 7),
    ),
    "pp2 dp2 all_gather ep4 gpipe full placed": small(
        model=TIED_DROP, dp=2, cp=2, pp=2, schedule="gpipe", cp_method="all_gather",
        ep=4, ep_overlap=4,
        experts=(CROWD, ONE_EMPTY), recompute="full", ranks=(6, 7, 1, 4, 5, 3, 0, 2),
    ),
    "pp2 zero2 all_gather ep2 etp2 table selective": small(
        model=SHARED_DROP, shard=2, cp=2, pp=2, schedule="table", vpp=2, zero=2,
        cp_method="all_gather",
        ep=2, ep_overlap=2, etp=2, recompute="selective", ranks=(0, 2, 4, 3, 1, 7, 6, 5),
        table=greedy_table((1, 1, 0, 0), 2, ()),
    ),
    "pp2 dp2 zero1 ep2 zero_bubble full placed": small(
        model=SHARED_DROP, dp=2, shard=2, pp=2, schedule="zero_bubble", vpp=2, zero=1,
        ep=2, ep_overlap=4,
        experts=(HALVES, HALVES), recompute="full", ranks=(1, 5, 2, 0, 6, 3, 4, 7), micro_batch=1,
    ),
    "pp2 tp2 all_gather etp2 zero_bubble": small(
        model=TIED_DROP, cp=2, tp=2, pp=2, schedule="zero_bubble", cp_method="all_gather", etp=2,
        ranks=(4, 7, 2, 5, 0, 6, 1, 3),
    ),
    "pp2 dp2 ulysses ep2 zbv full placed": small(
        model=DROP, dp=2, cp=2, pp=2, schedule="zbv", vpp=2, cp_method="ulysses",
        ep=2, ep_overlap=2,
        experts=(REPLICAS, HALVES), recompute="full", ranks=(6, 1, 4, 5, 7, 0, 2, 3),
    ),
    "pp2 tp2 ulysses ep2 etp2 dualpipev selective placed": small(
        model=TIED_SHARED, cp=2, tp=2, pp=2, schedule="dualpipev", vpp=2, cp_method="ulysses",
        ep=2, ep_overlap=4,
        etp=2, experts=(REPLICAS, HALVES), recompute="selective", ranks=(7, 3, 6, 5, 4, 0, 1, 2),
    ),
    "pp2 zero3 all_gather etp2 gpipe selective": small(
        model=SHARED_DROP, shard=2, cp=2, pp=2, schedule="gpipe", zero=3, cp_method="all_gather",
        etp=2, recompute="selective", ranks=(2, 1, 7, 5, 0, 4, 6, 3),
    ),
    "pp2 tp2 ring ep2 etp2 zero_bubble selective placed": small(
        model=MOE, cp=2, tp=2, pp=2, schedule="zero_bubble", vpp=2, ep=2, ep_overlap=2, etp=2,
        experts=(REPLICAS, REPLICAS), recompute="selective", ranks=(5, 4, 3, 6, 1, 2, 7, 0),
    ),
    "pp2 dp2 ring ep2 table full placed": small(
        model=SHARED, dp=2, cp=2, pp=2, schedule="table", vpp=2,
        ep=2, ep_overlap=4, experts=(REPLICAS, REPLICAS),
        recompute="full", table=greedy_table((0, 1, 1, 0), 2, (1, 2)),
    ),
    "pp2 zero2 all_gather ep2 interleaved full placed": small(
        model=TIED_MOE, shard=2, cp=2, pp=2, schedule="interleaved", vpp=2, zero=2,
        cp_method="all_gather", ep=2, ep_overlap=2, experts=(HALVES, HALVES), recompute="full",
    ),
    "pp2 dp2 all_gather ep2 dualpipev full placed": small(
        model=DEEP, dp=2, cp=2, pp=2, schedule="dualpipev", vpp=2, cp_method="all_gather",
        ep=2, ep_overlap=4,
        experts=(HALVES, REPLICAS), recompute="full",
    ),
    "pp2 dp2 tp2 ep4 zero_bubble selective placed": small(
        model=SHARED_DROP, dp=2, tp=2, pp=2, schedule="zero_bubble", ep=4, ep_overlap=2,
        experts=(ONE_EMPTY, ONE_EMPTY), recompute="selective",
    ),
    "pp2 tp2 all_gather etp2 zbv selective": small(
        model=SHARED, cp=2, tp=2, pp=2, schedule="zbv", vpp=2, cp_method="all_gather", etp=2,
        recompute="selective", ranks=(4, 6, 1, 2, 7, 0, 5, 3),
    ),
    "pp2 zero2 ring gpipe full": small(
        model=DENSE, shard=2, cp=2, pp=2, schedule="gpipe", zero=2, recompute="full",
        ranks=(1, 3, 0, 7, 6, 4, 2, 5),
    ),
    "pp2 zero1 ulysses ep4 gpipe full placed": small(
        model=TIED_MOE, shard=2, cp=2, pp=2, schedule="gpipe", zero=1, cp_method="ulysses",
        ep=4, ep_overlap=4,
        experts=(ONE_EMPTY, CROWD), recompute="full",
    ),
    "pp2 zero3 ulysses etp2 table full": small(
        model=SHARED, shard=2, cp=2, pp=2, schedule="table", vpp=2, zero=3, cp_method="ulysses",
        etp=2, recompute="full", table=greedy_table((1, 0, 0, 1), 2, ()),
    ),
    "pp2 dp2 ulysses zero_bubble full": small(
        model=DENSE, dp=2, cp=2, pp=2, schedule="zero_bubble", vpp=2, cp_method="ulysses",
        recompute="full", ranks=(7, 1, 2, 0, 4, 3, 5, 6),
    ),
    "pp2 zero1 all_gather ep4 zero_bubble selective placed": small(
        model=MOE, shard=2, cp=2, pp=2, schedule="zero_bubble", vpp=2, zero=1,
        cp_method="all_gather",
        ep=4, ep_overlap=2, experts=(ONE_EMPTY, ONE_EMPTY), recompute="selective",
    ),
    "pp2 all_gather 1f1b selective": small(
        model=DENSE, pp=2, cp=2, cp_method="all_gather", recompute="selective"
    ),
}  # fmt: skip
