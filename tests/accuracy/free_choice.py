"""What the planner would choose for published jobs; writes docs/free-choice.md.

`python -m tests.accuracy.free_choice RUNS.csv`. For every job of the table's trusted rows the
planner chooses with nothing pinned, within what the job's software has, and within the values that
published runs of that software have; each choice is compared with the layouts that were run, all
predicted by the same model. About 10 minutes on one core.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from launch.artifact import write_atomic
from launch.cli.terminal import Progress, note
from planner import search
from tests.accuracy.fit import trusted_runs
from tests.accuracy.free_choice_job import (
    Answer,
    Job,
    answer,
    jobs_of,
    published_of,
    seen_values,
)
from tests.accuracy.free_choice_page import page

PAGE = Path(__file__).parents[2] / "docs" / "free-choice.md"


@contextlib.contextmanager
def choices_alone() -> Iterator[None]:
    """Plans without frontier and table of axes, which take most of the time of a small one."""
    with (
        mock.patch.object(search, "_frontier", return_value=()),
        mock.patch.object(search, "_by_axis", return_value={}),
    ):
        yield


def answers_of(jobs: Sequence[Job], progress: Progress) -> list[Answer]:
    """All jobs, those that fill no whole nodes without a choice."""
    seen = seen_values([r for job in jobs for r in job.runs])
    found = []
    for index, job in enumerate(jobs):
        progress(index, len(jobs), "planning published jobs")
        if job.whole_nodes:
            found.append(answer(job, seen[job.software]))
        else:
            found.append(Answer(job, published_of(job)))
    return found


def main(argv: list[str]) -> None:
    """Choose, compare, write."""
    if len(argv) != 1:
        sys.exit("usage: python -m tests.accuracy.free_choice RUNS.csv")
    jobs = jobs_of(trusted_runs(Path(argv[0])))
    progress = Progress()
    with choices_alone():
        found = answers_of(jobs, progress)
    progress.close()
    write_atomic(PAGE, page(found))
    note(f"Wrote `{PAGE}`")


if __name__ == "__main__":
    main(sys.argv[1:])
