"""The newest steps of a run, from its ranks' records while they grow."""

import json
from pathlib import Path
from typing import Any

from launch.records import Step, rank_files

_TAIL_BYTES = 1 << 16


def last_steps(run_dir: Path) -> list[list[Step]]:
    """[ranks that wrote][steps at the end of their files]; the files may be long."""
    return [_last_rows(path) for path in rank_files(run_dir)]


def steps_done(ranks: list[list[Step]], num_ranks: int) -> int:
    """Steps that all ranks have behind them."""
    if len(ranks) < num_ranks:
        return 0
    return min(int(own[-1]["step"]) + 1 if own else 0 for own in ranks)


def _last_rows(path: Path) -> list[Step]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return []
    rows: list[dict[str, Any]] = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # cut at its begin, or torn by a fault
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


class NewSteps:
    """Gives each step once, as the ranks themselves print it."""

    def __init__(self, run_dir: Path, num_ranks: int) -> None:
        self._run_dir, self._num_ranks = run_dir, num_ranks
        self._shown = 0

    def lines(self) -> list[str]:
        """Of the steps that all ranks have taken since the last call."""
        ranks = last_steps(self._run_dir)
        done = steps_done(ranks, self._num_ranks)
        spoken = {row["step"]: row for own in ranks for row in own if row["loss"] is not None}
        new = [spoken[step] for step in sorted(spoken) if self._shown <= step < done]
        self._shown = max(self._shown, done)
        return [
            f"step {row['step']} loss {row['loss']:.3f} {row['end'] - row['start']:.3f} s"
            for row in new
        ]
