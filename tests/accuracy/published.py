"""Scores predictions of published runs; writes docs/accuracy-published.md and its picture.

`python -m tests.accuracy.published CALIBRATION.csv FAILED.csv [FIT.json]`. FIT.json holds a `Fit`:
constants with their ranges and the leave-one-out errors, as the fitting script writes it.
"""

import sys
from pathlib import Path

from launch.artifact import write_atomic
from launch.cli.terminal import Progress, note
from launch.published.runs import read_and_predict
from launch.published.scatter import check_plot, draw
from planner.scoring import score
from profiler.codec import decode, read_text
from tests.accuracy.published_page import NO_FIT, Fit, Target, page

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "accuracy-published.md"
PICTURE = PAGE.with_suffix(".png")
NOTES = Path(__file__).with_name("published_notes.md")
GROUP = ("model", "n_gpus")
TARGETS = (
    Target(
        what="complete rows that are predicted", figure="modelled_share", bar=0.97, better="higher"
    ),
)


def main(argv: list[str]) -> None:
    """Predict, score, draw and write."""
    if len(argv) not in (2, 3):
        sys.exit("usage: python -m tests.accuracy.published CALIBRATION.csv FAILED.csv [FIT.json]")
    runs, failed, *rest = map(Path, argv)
    fit = decode(Fit, read_text(rest[0]), str(rest[0])) if rest else NO_FIT
    check_plot(PICTURE)
    progress = Progress()
    rows, left_out, _ = read_and_predict(runs, GROUP, failed, progress)
    progress.close()
    result = score(rows, left_out)
    draw(rows, PICTURE)
    notes = NOTES.read_text(encoding="utf-8") if NOTES.exists() else ""
    write_atomic(PAGE, page(result, fit, TARGETS, picture=PICTURE.name, notes=notes))
    note(f"Wrote `{PAGE}` and `{PICTURE}`")


if __name__ == "__main__":
    main(sys.argv[1:])
