"""What the ranks of a run wrote, as it lies in RUN/ranks/rank-NNNNN.jsonl.

A file is a header (where the rank sits, what it held) and a line per step. A rank that was killed
leaves a torn last line. Where torchrun started the ranks again, a step may be there once per
attempt, and a header too.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

LOOKS_NAME = "experts.jsonl"
"""Of a run whose experts follow the routing (`launch.expert_looks`)."""
Step = dict[str, Any]
Header = dict[str, Any]


def rank_files(run_dir: Path) -> list[Path]:
    """Files of all ranks that wrote one, in the order of ranks."""
    return sorted((run_dir / "ranks").glob("rank-*.jsonl"))


def read_rank_file(path: Path) -> tuple[Header, list[Step]]:
    """(header, steps in the order they were written); torn lines are dropped. The last header
    counts, with the memory of an earlier one where it has none itself."""
    header: Header = {}
    steps: list[Step] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(row, dict):
            continue
        if "step" in row:
            steps.append(row)
        else:
            memory = row.get("memory") or header.get("memory")
            header = row | {"memory": memory}
    return header, steps


def attempt_of(row: Step) -> int:
    """How often the ranks had been started again when the step was taken."""
    return int(row.get("attempt") or 0)


def steps_of_all(ranks: list[list[Step]]) -> list[tuple[Step, ...]]:
    """Per step, in order, the rows of all ranks from the last attempt in which each finished it."""
    found = [{(row["step"], attempt_of(row)): row for row in rows} for rows in ranks]
    last: dict[int, int] = {}
    for step, attempt in sorted(set(found[0]).intersection(*found[1:])):
        last[step] = attempt
    return [tuple(rows[at] for rows in found) for at in last.items()]


def has_period(steps: list[tuple[Step, ...]]) -> list[bool]:
    """Of each step: it began where the one before it ended, in the same processes."""
    follows = [
        b[0]["step"] == a[0]["step"] + 1 and attempt_of(a[0]) == attempt_of(b[0])
        for a, b in pairwise(steps)
    ]
    return [False, *follows]
