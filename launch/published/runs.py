"""Published runs: rows of a CSV as jobs that the planner understands, or why it does not.

A row that leaves something out is read with the assumptions that `row_model`, `row_cluster`,
`row_software` and `row_layout` state. Rows whose columns contradict each other, or lack a column
that nothing stands for, are named with the reason. A time is `step_s`, else the tokens of a step
over `tok_s_gpu`.

What a memory reading is, `mem_definition` says: allocated or reserved by PyTorch's allocator, or as
nvidia-smi shows it (reserved and the context). nanotron's readings are its log's
`max_memory_reserved / 1024**3` under the name GB, turned into GiB once more by the table: the
prediction is turned the same way, and is that of the first pipeline rank, which alone logs.
"""

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launch.published import table as run_table
from launch.published.cells import UnusableRowError, count, measured, number
from launch.published.row_cluster import group_of
from launch.published.row_layout import config_of
from launch.published.row_model import model_of
from launch.published.row_software import (
    precision_of,
    software_of,
    traits_of,
    unknown_features,
    unknown_framework,
)
from launch.published.table import Cells
from planner.peak import RECIPES, Peaks, Recipe
from planner.predict import Progress, Run, predict_peaks, predict_steps
from planner.scored import Scored, Unmodelled
from planner.timing.inputs import constants_of
from profiler.catalog.constants import load_software, resolve_constants
from profiler.codec import replace
from profiler.job import LOW_PRECISIONS, JobSpec

GIB = 2.0**30
GB_IN_GIB = 1e9 / 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRun:
    """A row that can be predicted."""

    cells: Cells
    run: Run
    software: str
    step_s: float | None
    peak_gib: float | None


def run_of(cells: Cells) -> PublishedRun:
    """A row as a run; `UnusableRowError` says why it is none."""
    model = model_of(cells)
    software = software_of(cells)
    config = config_of(cells, model, software)
    num_devices = config.num_devices
    group = group_of(cells, num_devices)
    precision = precision_of(cells)
    if precision in LOW_PRECISIONS and precision not in group.device.flops_per_s:
        raise UnusableRowError(f"the device has no such precision: {group.device.name} {precision}")
    job = JobSpec(
        global_batch=count(cells, "gbs"), seq_len=count(cells, "seq_len"), precision=precision
    )
    run = Run(
        model=model,
        job=job,
        config=config,
        group=group,
        num_devices=num_devices,
        software=traits_of(cells, software, config.tp, model.num_layers / config.pp),
        constants=constants_of(resolve_constants(group, software)),
        recipe=_recipe(cells, software),
    )
    return PublishedRun(
        cells=cells,
        run=run,
        software=software,
        step_s=_step_s(cells, job, num_devices),
        peak_gib=measured(cells, "peak_mem_gib"),
    )


def _step_s(cells: Cells, job: JobSpec, num_devices: int) -> float | None:
    step, rate = measured(cells, "step_s"), measured(cells, "tok_s_gpu")
    return step or (job.tokens_per_step / (rate * num_devices) if rate else None)


def _recipe(cells: Cells, software: str) -> Recipe:
    name = load_software(software).recipe
    if name.startswith("deepspeed") and "bf16" in cells.get("precision", "").lower():
        name = "deepspeed-bf16"
    if name == "composer" and "pure" in cells.get("precision", "").lower():
        name = "composer-pure"
    if name == "megatron" and "peak allocated after" in cells.get("mem_definition", ""):
        name = "megatron-bf16-moments"  # Megatron-Bridge's recipe of these runs
    return RECIPES[name]


def _reading_gib(published: PublishedRun, peaks: Peaks) -> float:
    """What the row's reading would show."""
    words = published.cells.get("mem_definition", "").lower()
    room = published.run.group.device.memory_bytes - peaks.recipe.context_gib * GIB
    if "hover" in words:
        parts = peaks.weights + peaks.grads + peaks.optimizer + peaks.buffers
        moving = (1 + peaks.recipe.slack) * (peaks.activations + peaks.transient)
        return float(min((parts + moving)[0, 0], room)) / GIB * GB_IN_GIB
    if "smi" in words:
        return float(peaks.smi[0]) / GIB * GB_IN_GIB
    if re.search("reserved/active|^reserved|max reserved", words):
        return float(min(peaks.reserved[0], room)) / GIB
    return float(peaks.allocated[0]) / GIB


def _fits(published: PublishedRun, peaks: Peaks) -> bool:
    """The layout fits; where the row does not say what it recomputes, with full recomputation if
    need be, as the planner would have chosen."""
    run = published.run
    room = run.group.device.memory_bytes
    if bool(np.all(peaks.fits(room))):
        return True
    if published.cells.get("recompute") or run.config.recompute != "none":
        return False
    full = dataclasses.replace(run, config=replace(run.config, recompute="full"))
    return bool(np.all(predict_peaks(full).fits(room)))


def _label(published: PublishedRun) -> str:
    cells, config = published.cells, published.run.config
    said = [cells.get(c, "") for c in ("features", "recompute")]
    return " ".join([config.label, config.schedule, *(s for s in said if s)])


def read_runs(path: Path) -> tuple[list[PublishedRun], list[Unmodelled], Counter[str]]:
    """(runs, rows that are none, features that nothing understands with their rows)."""
    runs, left_out, unknown = [], [], Counter[str]()
    for line, cells in run_table.read_runs(path).rows:
        row_id = cells.get("row_id") or f"line {line}"
        source = cells.get("source", "")
        try:
            published = run_of(cells)
        except UnusableRowError as e:
            complete = not str(e).startswith(("no `", "`", "contradiction"))
            left_out.append(
                Unmodelled(row_id=row_id, source=source, reason=str(e), complete=complete)
            )
            continue
        if published.step_s is None and published.peak_gib is None:
            why = "no measurement"
            left_out.append(Unmodelled(row_id=row_id, source=source, reason=why, complete=False))
            continue
        runs.append(published)
        unknown.update(unknown_features(cells))
    return runs, left_out, unknown


def read_and_predict(
    path: Path, group: tuple[str, ...], failed: Path | None, progress: Progress
) -> tuple[list[Scored], list[Unmodelled], list[str]]:
    """Rows of a table of runs, and of one of failed runs, as predicted; those that are not; and
    what else was left out of the predictions, in sentences."""
    runs, left_out, unknown = read_runs(path)
    scored = score_rows(runs, group, progress)
    frameworks = Counter(f for f in (unknown_framework(r.cells) for r in runs) if f is not None)
    notes = [
        f"feature `{feature}` is not understood: {_rows(number)} predicted without it"
        for feature, number in sorted(unknown.items())
    ]
    notes += [
        f"framework `{name}` is not known: {_rows(number)} predicted as Megatron-Core's"
        for name, number in sorted(frameworks.items())
    ]
    if failed is not None:
        found, skipped = _failed_rows(failed, runs, group)
        scored += found
        notes += [
            f"{failed.name}: {_rows(n)} left out: {why}" for why, n in sorted(skipped.items())
        ]
    return scored, left_out, notes


def _rows(number: int) -> str:
    return "1 row is" if number == 1 else f"{number:,} rows are"


def score_rows(
    runs: list[PublishedRun], group: tuple[str, ...], progress: Progress | None = None
) -> list[Scored]:
    """Runs with their predictions."""
    steps = predict_steps([r.run for r in runs], progress)
    rows = []
    for index, (published, (seconds, terms)) in enumerate(zip(runs, steps, strict=True)):
        peaks = predict_peaks(published.run)
        cells, run = published.cells, published.run
        rows.append(
            Scored(
                row_id=cells.get("row_id") or f"row {index + 1}",
                source=cells.get("source", ""),
                model=cells.get("model", ""),
                gpu=cells.get("gpu", ""),
                num_gpus=run.num_devices,
                global_batch=run.job.global_batch,
                seq_len=run.job.seq_len,
                precision=cells.get("precision", ""),
                trusted=cells.get("trusted", "Y").upper() == "Y",
                group=tuple(cells.get(c, "") for c in group),
                label=_label(published),
                measured_step_s=published.step_s,
                predicted_step_s=seconds if published.step_s else None,
                measured_peak_gib=published.peak_gib,
                predicted_peak_gib=_reading_gib(published, peaks) if published.peak_gib else None,
                fits=_fits(published, peaks),
                failed=False,
                parts=terms,
            )
        )
    return rows


def _failed_rows(
    path: Path, runs: list[PublishedRun], group: tuple[str, ...]
) -> tuple[list[Scored], Counter[str]]:
    """Failed runs, each the run of the same size of model and software in another layout; and why
    others are left out."""
    named = {f"{r.run.model.num_params / 1e9:.2f}": r for r in runs if r.software == "nanotron"}
    rows, skipped = [], Counter[str]()
    for line, cells in run_table.read_failed(path).rows:
        try:
            like = _nearest_size(named, number(cells, "model_size_b") or 0.0)
            own = {c: cells[c] for c in ("n_gpus", "gbs", "mbs", "tp", "pp", "dp")}
            zero = "ZeRO-1" if cells.get("zero") == "1" else "ZeRO-0"
            published = run_of({**like.cells, **own, "dp_shard": zero})
        except UnusableRowError as e:
            skipped[str(e).split(": ")[0]] += 1
            continue
        rows.append(_failed_row(published, f"failed line {line}", path.name, group))
    return rows, skipped


def _failed_row(published: PublishedRun, row_id: str, table: str, group: tuple[str, ...]) -> Scored:
    run, cells = published.run, published.cells
    peaks = predict_peaks(run)
    return Scored(
        row_id=row_id, source=f"failed: {table}", model=cells.get("model", ""),
        gpu=cells.get("gpu", ""), num_gpus=run.num_devices, global_batch=run.job.global_batch,
        seq_len=run.job.seq_len, precision="", trusted=False,
        group=tuple(cells.get(c, "") for c in group), label=_label(published),
        measured_step_s=None, predicted_step_s=None, measured_peak_gib=None,
        predicted_peak_gib=float(peaks.allocated[0]) / GIB,
        fits=bool(np.all(peaks.fits(run.group.device.memory_bytes))), failed=True, parts={},
    )  # fmt: skip


def _nearest_size(named: dict[str, PublishedRun], size: float) -> PublishedRun:
    near = min(named, key=lambda text: abs(float(text) - size), default=None)
    if near is None or abs(float(near) - size) > 0.1 * size:
        raise UnusableRowError(f"no nanotron run of a model of that size: {size:.2f}B")
    return named[near]
