"""Predicted against measured over many layouts on this machine; writes docs/accuracy.md.

Profiles once, then plans, launches and verifies each layout with the user's own commands, in
rounds: every layout is run `ROUNDS` times with the others in between, and the distance between
rounds is the noise that no prediction can beat. `python -P -m tests.accuracy.loop [FOLDER]` keeps
its files in FOLDER (default: a temporary one) and resumes there.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.accuracy.readme import write_block
from tests.commands import command

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "tiny-llama" / "config.json"
BATCH, STEPS, ROUNDS = 16, 10, 2
LAYOUTS = (
    "tp=1,pp=1,dp=4,mbs=1,recompute=none",
    "tp=1,pp=1,dp=4,mbs=2,recompute=none",
    "tp=1,pp=1,dp=4,mbs=4,recompute=none",
    "tp=1,pp=1,dp=4,mbs=2,recompute=full",
    "tp=1,pp=2,dp=2,mbs=1,recompute=none,schedule=1f1b",
    "tp=1,pp=2,dp=2,mbs=2,recompute=none,schedule=1f1b",
    "tp=1,pp=2,dp=2,mbs=2,recompute=none,schedule=gpipe",
    "tp=1,pp=2,dp=2,mbs=2,recompute=none,schedule=1f1b,split=6,2",
    "tp=1,pp=4,dp=1,mbs=1,recompute=none,schedule=1f1b",
    "tp=1,pp=4,dp=1,mbs=2,recompute=none,schedule=gpipe",
    "tp=1,pp=4,dp=1,mbs=4,recompute=none,schedule=1f1b",
    "tp=1,pp=4,dp=1,mbs=2,recompute=full,schedule=1f1b",
    "tp=2,pp=1,dp=2,mbs=2,recompute=none",
    "tp=2,pp=1,dp=2,mbs=4,recompute=none",
    "tp=2,pp=2,dp=1,mbs=2,recompute=none,schedule=1f1b",
    "tp=2,pp=2,dp=1,mbs=4,recompute=none,schedule=gpipe",
    "tp=4,pp=1,dp=1,mbs=2,recompute=none",
    "tp=4,pp=1,dp=1,mbs=4,recompute=none",
)

MARK = "accuracy: written by `make accuracy`"
COLUMNS = (
    "layout", "schedule", "blocks", "predicted", "observed", "rounds differ", "error",
    "compute", "p2p", "collective", "idle", "memory", "error",
)  # fmt: skip
TABLE_HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def meshwright(*args: object, ok: tuple[int, ...] = (0,)) -> str:
    """Run one of the user's commands; its stdout."""
    argv = command(*args)
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True)
    if done.returncode not in ok:
        sys.exit(f"{' '.join(argv)} ended with {done.returncode}")
    return done.stdout


def run_once(folder: Path, index: int, number: int) -> dict[str, Any]:
    """Plan, launch and verify one layout; the verdict and the plan's choice."""
    kept = folder / f"verdict-{index:02d}-{number}.json"
    if not kept.exists():
        plan, runs = folder / f"plan-{index:02d}.json", folder / f"runs-{number}"
        meshwright(
            "plan", "-m", MODEL, "--profile", folder / "profile.json", "--global-batch", BATCH,
            "--pin", LAYOUTS[index], "--top", 0, "-o", plan,
        )  # fmt: skip
        content = json.loads(plan.read_text())
        meshwright("-q", "launch", plan, "--steps", STEPS, "--runs", runs)
        observed = runs / content["id"] / "observed.json"
        verdict = json.loads(meshwright("verify", plan, observed, "--json", ok=(0, 4)))
        kept.write_text(json.dumps({"verdict": verdict, "chosen": content["chosen"]}))
        print(f"{LAYOUTS[index]}: {cells(verdict, 'step')}", file=sys.stderr, flush=True)
    out: dict[str, Any] = json.loads(kept.read_text())
    return out


def row_of(verdict: dict[str, Any], name: str) -> dict[str, Any]:
    """One figure of a verdict."""
    return next(row for row in verdict["rows"] if row["name"] == name)


def cells(verdict: dict[str, Any], name: str) -> str:
    """`predicted observed error` of a figure in s."""
    row = row_of(verdict, name)
    return f"{row['predicted']:.3f} s, observed {row['observed']:.3f} s, {row['error']:+.1%}"


def table_row(results: list[dict[str, Any]]) -> tuple[str, float, float, float]:
    """Markdown row, and the errors of step time and memory and the noise, for one layout."""
    config = results[0]["chosen"]["config"]
    stages = results[0]["chosen"]["placement"]["stages"]
    steps = [row_of(r["verdict"], "step") for r in results]
    seen = statistics.mean(s["observed"] for s in steps)
    predicted = steps[0]["predicted"]
    noise = (max(s["observed"] for s in steps) - min(s["observed"] for s in steps)) / seen
    error = predicted / seen - 1
    parts = []
    for name in ("compute", "p2p", "collective", "idle"):
        both = [row_of(r["verdict"], name) for r in results]
        observed = statistics.mean(b["observed"] for b in both)
        parts.append(f"{both[0]['predicted'] * 1e3:.0f} / {observed * 1e3:.0f}")
    memory = row_of(results[0]["verdict"], "peak memory")
    layout = (
        f"tp{config['tp']} pp{config['pp']} dp{config['dp_replicate']} mbs{config['micro_batch']}"
    )
    layout += " full" if config["recompute"] == "full" else ""
    blocks = "+".join(str(end - first) for first, end in stages)
    line = (
        f"| {layout} | {config['schedule'] if config['pp'] > 1 else ''} | {blocks} "
        f"| {predicted:.3f} | {seen:.3f} | {noise:.1%} | {error:+.1%} | {' | '.join(parts)} "
        f"| {memory['predicted'] / 2**20:.0f} / {memory['observed'] / 2**20:.0f} "
        f"| {memory['error']:+.1%} |"
    )
    return line, error, memory["error"], noise


def rank_correlation(predicted: list[float], seen: list[float]) -> float:
    """Spearman's."""
    ranks = [[float(sorted(x).index(v)) for v in x] for x in (predicted, seen)]
    return statistics.correlation(*ranks)


def summary(rows: list[tuple[str, float, float, float]], all_results: list[Any]) -> str:
    """The sentences above the table."""
    errors = sorted(abs(e) for _, e, _, _ in rows)
    memory = sorted(abs(m) for _, _, m, _ in rows)
    predicted = [row_of(r[0]["verdict"], "step")["predicted"] for r in all_results]
    seen = [
        statistics.mean(row_of(x["verdict"], "step")["observed"] for x in r) for r in all_results
    ]
    picked = seen[predicted.index(min(predicted))] / min(seen)
    noise = [n for *_, n in rows]
    correlation = rank_correlation(predicted, seen)
    return f"""\
- step time: median error {statistics.median(errors):.1%}, mean {statistics.mean(errors):.1%},
  worst {errors[-1]:.1%}
- noise: two runs of a layout differ by {statistics.median(noise):.1%} (median), at most
  {max(noise):.1%}
- order of the layouts: rank correlation {correlation:.3f}; the layout predicted fastest takes
  {picked:.3f} times as long as the fastest measured
- peak memory: median error {statistics.median(memory):.1%}, worst {memory[-1]:.1%}"""


def report(folder: Path, all_results: list[list[dict[str, Any]]]) -> str:
    """Content of docs/accuracy.md."""
    profile = json.loads((folder / "profile.json").read_text())
    where = profile["environment"]
    rows = [table_row(results) for results in all_results]
    sharing = ", ".join(f"{s['active']}: {s['slowdown']:.2f}x" for s in profile["sharing"])
    notes = (ROOT / "tests" / "accuracy" / "notes.md").read_text()
    return f"""# Predicted against measured

Written by `make accuracy`; do not edit. {len(rows)} layouts of `examples/tiny-llama` on 4
processes of one host, global batch {BATCH} x {profile["seq_len"]} tokens, fp32, {STEPS} timed
steps, {ROUNDS} rounds. Nothing is fitted to these runs: predictions come from one profile taken
before them.

Host: {where["device"]}, {where["num_cores"]} cores, {platform.system()}, torch
{where["torch"]}, gloo. Slow-down of a layer by the number of ranks that compute at once: {sharing}.

{summary(rows, all_results)}

Step in seconds; components in ms, predicted / observed; memory in MiB, predicted / observed, of
the fullest rank. `blocks` are those of each stage, embedding and head among them.

{TABLE_HEAD}
{chr(10).join(line for line, *_ in rows)}

{notes}"""


def main() -> None:
    """Run what is not yet there; write the report and its summary in the README."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "profile.json").exists():
        meshwright("profile", "-m", MODEL, "--nproc", 4, "-o", folder / "profile.json")
    results: list[list[dict[str, Any]]] = [[] for _ in LAYOUTS]
    for number in range(ROUNDS):
        for index in range(len(LAYOUTS)):
            results[index].append(run_once(folder, index, number))
    (ROOT / "docs" / "accuracy.md").write_text(report(folder, results))
    said = f"{len(LAYOUTS)} layouts of a small Llama on 4 processes of one host, from one profile"
    write_block(MARK, f"{said}:\n\n{summary([table_row(r) for r in results], results)}")


if __name__ == "__main__":
    main()
