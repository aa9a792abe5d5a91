"""Scores predictions of published runs; writes docs/accuracy-published.md, its picture,
and a summary in the README.

`python -m tests.accuracy.published CALIBRATION.csv FAILED.csv [FIT.json]`. FIT.json holds a `Fit`:
constants with their ranges and the leave-one-out errors, as the fitting script writes it.
"""

import sys
from pathlib import Path

from launch.artifact import write_atomic
from launch.cli.terminal import Progress, note
from launch.picture import check_picture
from launch.published.runs import read_and_predict
from launch.published.scatter import draw
from planner.scoring import score
from profiler.codec import decode, read_text
from tests.accuracy.published_page import NO_FIT, Fit, Target, page, summary
from tests.accuracy.readme import write_block

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "accuracy-published.md"
PICTURE = PAGE.with_suffix(".png")
NOTES = Path(__file__).with_name("published_notes.md")
GROUP = ("model", "n_gpus")
MARK = "published: written by `python -m tests.accuracy.published`"
TARGETS = (
    Target(what="rows that state enough and are predicted", figure="modelled_share", bar=0.97,
           better="higher"),
    Target(what="step time of a model left out, median error", figure="pooled.median_ape",
           of="model left out", bar=0.08),
    Target(what="the same, 90th percentile", figure="pooled.p90_ape", of="model left out",
           bar=0.20),
    Target(what="the same, largest median error of a source", figure="worst_source",
           of="model left out", bar=0.12),
    Target(what="step time of a source left out, median error", figure="pooled.median_ape",
           of="source left out", bar=0.12),
    Target(what="the same, 90th percentile", figure="pooled.p90_ape", of="source left out",
           bar=0.30),
    Target(what="peak memory, median error", figure="memory.median_ape", bar=0.08),
    Target(what="peak memory, rows more than 5 % too low", figure="memory.underestimates_over_5pct",
           bar=0.05),
    Target(what="regret of the layout chosen, median", figure="choice.regret_median", bar=1.03,
           unit="number"),
    Target(what="regret of the layout chosen, geometric mean", figure="choice.regret_geomean",
           bar=1.08, unit="number"),
    Target(what="runs that ran and are said not to fit",
           figure="fit_errors.feasible_called_oom.share", bar=0.02),
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Predict, score, draw and write."""
    if len(argv) not in (2, 3):
        sys.exit("usage: python -m tests.accuracy.published CALIBRATION.csv FAILED.csv [FIT.json]")
    runs, failed, *rest = map(Path, argv)
    fit = decode(Fit, read_text(rest[0]), str(rest[0])) if rest else NO_FIT
    check_picture(PICTURE)
    progress = Progress()
    rows, left_out, _ = read_and_predict(runs, GROUP, failed, progress)
    progress.close()
    result = score(rows, left_out)
    draw(rows, PICTURE, memory=True)
    notes = NOTES.read_text(encoding="utf-8") if NOTES.exists() else ""
    write_atomic(PAGE, page(result, fit, TARGETS, picture=PICTURE.name, notes=notes))
    write_block(MARK, summary(result, fit))
    note(f"Wrote `{PAGE}` and `{PICTURE}`")


if __name__ == "__main__":
    main(sys.argv[1:])
