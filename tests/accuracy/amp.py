"""AMP's measured sweep as a table of runs: `python -m tests.accuracy.amp homogeneous.csv OUT.csv`.

24 layers of GPT-2 at hidden size 1024 on four g4dn.12xlarge (16 T4), global batch 32, sequences of
1024 (Li et al. 2022, arXiv:2210.07297). No run of it, of a T4 or of that network took part in the
fit, so `meshwright validate OUT.csv` shows what the model knows of hardware that it never saw.
Activation checkpointing is assumed: half of the layouts that ran would not fit without.
"""

import argparse
import csv
from pathlib import Path

COLUMNS = {
    "model": "GPT h1024 L24", "layers": "24", "hidden": "1024", "heads": "16", "vocab": "50304",
    "seq_len": "1024", "gpu": "T4", "gpus_per_node": "4", "n_gpus": "16", "gbs": "32",
    "inter_link": "50 Gbps per node Ethernet", "precision": "fp16", "recompute": "full",
    "framework": "Megatron-DeepSpeed", "source": "AMP", "trusted": "Y",
}  # fmt: skip


def rows_of(text: str) -> list[dict[str, str]]:
    """Rows of the schema of `launch.published.table`; layouts that failed are left out."""
    found = []
    for number, row in enumerate(csv.DictReader(text.splitlines())):
        if row["real_s"] != "inf":
            own = {name: row[name] for name in ("mbs", "tp", "pp", "dp")}
            found.append({"row_id": f"amp-{number}", **COLUMNS, **own, "step_s": row["real_s"]})
    return found


def main() -> None:
    """Read AMP's table, write ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    rows = rows_of(args.sweep.read_text(encoding="utf-8"))
    with args.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
