"""What an all-to-all waits for in a lab: equal work on each rank, then the exchange, repeated.

`python -P -m tests.lab.exchange_wait`. `last`: when the last rank has done its work; `exchange`:
how long the rank that waits least is in the all-to-all then.
"""

import numpy as np

from tests.lab import bench_jobs
from tests.lab.lab import Lab
from tests.lab.ranks import Ranks
from tests.lab.topology import shipped

SIZES, PRODUCTS, REPEATS, FIRST = (4096, 1 << 20), (0, 100, 300, 900), 40, 3
"""Bytes that each rank sends; products of matrices before; repeats, the first left out."""


def main() -> None:
    """Print the table, in milliseconds."""
    print("bytes     work   last   exchange   all of it")
    with Ranks() as ranks, Lab(shipped("uniform")) as lab:
        for num_bytes in SIZES:
            for products in PRODUCTS:
                rows = ranks.run(
                    lab, bench_jobs.exchange_after_work, timeout_s=120,
                    num_bytes=num_bytes, products=products, repeats=REPEATS + FIRST,
                )  # fmt: skip
                times = 1e3 * np.array(rows)[:, FIRST:]
                work, waits = times[..., 0], times[..., 1]
                print(
                    f"{num_bytes:<8} {work.mean():5.0f} {work.max(axis=0).mean():6.0f} "
                    f"{waits.min(axis=0).mean():10.0f} {times.sum(axis=2).mean():11.0f}"
                )


if __name__ == "__main__":
    main()
