"""Every layout of the table against one process; writes docs/parity.md (`make parity`)."""

import os
import platform
import sys
import time
import warnings
from pathlib import Path

import torch
from cases import CASES
from compare import LOSS_TOLERANCE, NORM_TOLERANCE, WEIGHT_TOLERANCE, Errors, errors_of
from grid import Case
from mixed import MIXED

DOC = Path(__file__).resolve().parents[2] / "docs" / "parity.md"


def main() -> int:
    """0 where all are within the tolerances."""
    warnings.simplefilter("error")
    rows: list[tuple[str, Case, Errors, float]] = []
    cases = CASES | MIXED
    for number, (name, case) in enumerate(cases.items(), 1):
        start = time.perf_counter()
        errors = errors_of(case)
        rows.append((name, case, errors, time.perf_counter() - start))
        print(f"[{number}/{len(cases)}] {name}: {rows[-1][3]:.1f} s, {errors}", flush=True)
    DOC.write_text(_document(rows), encoding="utf-8")
    wrong = [name for name, _, errors, _ in rows if not errors.is_small]
    print(f"{DOC}: {len(rows)} layouts, not within the tolerances: {wrong or 'none'}")
    return bool(wrong)


def _document(rows: list[tuple[str, Case, Errors, float]]) -> str:
    first = rows[0][1]
    assert all((case.steps, case.dtype) == (first.steps, first.dtype) for _, case, _, _ in rows)
    worst = {
        field: max(rows, key=lambda row: getattr(row[2], field))
        for field in ("loss", "norm", "weight")
    }
    lines = [
        "# Layouts against one process",
        "",
        f"Written by `make parity`; do not edit. {len(rows)} layouts of small models on up to",
        f"{max(case.config.num_devices for _, case, _, _ in rows)} processes, {first.steps} steps "
        f"with clipping in {str(first.dtype).removeprefix('torch.')}, against a plain PyTorch loop",
        "on one process.",
        "",
        f"Host: {_cpu()}, {os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}, "
        "gloo.",
        "",
        "- loss: largest relative error of a step's loss; "
        f"tolerance {LOSS_TOLERANCE:.0e}, worst {_worst(worst, 'loss')}",
        "- norm: the same of the norm of all gradients before clipping; "
        f"tolerance {NORM_TOLERANCE:.0e}, worst {_worst(worst, 'norm')}",
        "- weight: largest error of a weight at the end, relative to the largest movement of its "
        f"tensor; tolerance {WEIGHT_TOLERANCE:.0e}, worst {_worst(worst, 'weight')}",
        f"- within the tolerances: {sum(e.is_small for _, _, e, _ in rows)} of {len(rows)}; "
        f"{sum(seconds for _, _, _, seconds in rows):.0f} s together",
        "",
        "Degrees not named are 1, and the optimizer is AdamW. Ranks that hold copies of a weight "
        "hold the same bits, or the run fails.",
        "",
        "| combination | model | layout | processes | loss | norm | weight | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {_model(case)} | {_layout(case)} | {case.config.num_devices} "
        f"| {errors.loss:.1e} | {errors.norm:.1e} | {errors.weight:.1e} | {seconds:.1f} |"
        for name, case, errors, seconds in rows
    ]
    return "\n".join(lines) + "\n"


def _worst(worst: dict[str, tuple[str, Case, Errors, float]], field: str) -> str:
    name, _, errors, _ = worst[field]
    return f"{getattr(errors, field):.1e} (`{name}`)"


def _model(case: Case) -> str:
    model = case.model
    parts = [model.family, f"{model.num_layers} layers"]
    parts += ["tied"] if model.tie_embeddings else []
    parts += ["dropping"] if model.capacity_factor else []
    return ", ".join(parts)


def _layout(case: Case) -> str:
    """Degrees above 1 and choices."""
    config = case.config
    parts = [p for p in config.label.split() if p not in ("tp1", "pp1", "dp1")]
    parts += [f"etp{case.etp}"] if case.etp == case.tp > 1 else []  # the label leaves it out
    parts.append(f"batch {case.batch}")
    parts += [config.schedule] if case.pp > 1 else []
    parts += ["ranks permuted"] if case.ranks else []
    parts += ["experts placed"] if case.experts else []
    parts += ["stages given"] if case.stages else []
    parts += ["recompute per layer"] if case.per_layer else []
    parts += [case.optimizer] if case.optimizer != "adamw" else []
    return " ".join(parts)


def _cpu() -> str:
    """Model of the processor, where the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
