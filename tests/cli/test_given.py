"""Plans of a layout that the user gives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ASK = ("-m", "tiny-llama", "-c", "cpu-1x4", "--global-batch", 8, "--seq-len", 64)
Run = Callable[..., Any]


def write(text: str) -> None:
    Path("layout.yaml").write_text(text)


ROWS = [" ".join(f"{rank}{op}{k}" for op in "FB" for k in range(8)) for rank in range(4)]
TABLE = f"pp: 4\nschedule: table\ntable: {json.dumps(ROWS)}\n"


def test_a_layout_beyond_the_cost_model_is_planned_without_a_prediction(meshwright: Run) -> None:
    write(TABLE)
    done = meshwright("plan", *ASK, "--layout", "layout.yaml")
    assert done.code == 0
    assert "Given: tp1 pp4 dp1 mbs1 table" in done.out
    assert "nothing is predicted" in done.out
    plan = json.loads(Path("plan.json").read_text())
    assert plan["chosen"]["estimate"] is None
    assert plan["chosen"]["placement"]["stages"] == [[0, 3], [3, 6], [6, 8], [8, 10]]
    shown = meshwright("show", "plan.json")
    assert shown.code == 0
    assert "nothing is predicted" in shown.out
    assert max(len(line) for line in shown.out.splitlines()) <= 80
    assert meshwright("diff", "plan.json", "plan.json").code == 0
    assert meshwright("launch", "plan.json", "--dry-run").code == 0


def test_a_layout_of_every_axis_is_predicted(meshwright: Run) -> None:
    write("pp: 2\ndp_shard: 2\nzero: 1\nschedule: zero_bubble\n")
    done = meshwright("plan", *ASK, "--layout", "layout.yaml")
    assert done.code == 0
    assert "One layout, given" in done.out
    assert "zero_bubble" in done.out
    assert "nothing is predicted" not in done.out
    plan = json.loads(Path("plan.json").read_text())
    assert plan["chosen"]["estimate"]["step_s"] > 0
    assert len(plan["chosen"]["estimate"]["stages"]) == 2
    assert plan["chosen"]["placement"]["stages"] == [[0, 5], [5, 10]]


def test_a_layout_that_the_cost_model_covers_costs_what_the_search_says(meshwright: Run) -> None:
    write("pp: 2\ntp: 2\nmicro_batch: 2\nstages: [[0, 4], [4, 10]]\n")
    meshwright("plan", *ASK, "--layout", "layout.yaml", "-o", "given.json")
    pins = "pp=2,tp=2,mbs=2,recompute=none,schedule=1f1b,split=3,5"
    meshwright("plan", *ASK, "--pin", pins, "-o", "found.json")
    given, found = (
        json.loads(Path(name).read_text())["chosen"] for name in ("given.json", "found.json")
    )
    assert given == found
    assert given["estimate"]["step_s"] > 0


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("pp: 8\n", "needs 8 devices", "number of devices"),
        ("pp: 4\nvpp: 65\n", "less than or equal to 64", None),
        ("zero: 2\ntp: 4\n", "(zero-dp-shard)", None),
        ("pp: 4\nschedule: zbv\n", "(schedule-vpp)", None),
        ("pp: 2\ndp_shard: 2\nzero: 2\nschedule: zero_bubble\n", "(split-backward-zero)", None),
        ("ep: 2\ndp_replicate: 4\n", "ep and etp need a model with experts (no-experts)", None),
        ("cp: 4\nranks: [0, 1, 2, 2]\n", "must name every rank once (ranks)", None),
        ("pp: 4\nstages: [[0, 3], [3, 9]]\n", "cover the model's blocks in order (stages)", None),
        (
            'pp: 4\nschedule: table\ntable: ["0F0"]\n', "not a schedule of these stages", None,
        ),
        (
            'pp: 4\nschedule: table\ntable: ["0X0"]\n', "layout.yaml: `0X0` in row 0", "like `2F0`",
        ),
        ("pp: 2\ndp: 2\n", "layout.yaml:2: unknown key `dp`", "dp_replicate"),
        ("pp: two\n", "layout.yaml:1:", None),
        ("{}\n", "needs 1 devices", None),
    ],
)  # fmt: skip
def test_a_layout_that_cannot_be_names_the_rule(
    meshwright: Run, text: str, message: str, hint: str | None
) -> None:
    write(text)
    done = meshwright("plan", *ASK, "--layout", "layout.yaml")
    assert done.code == 1
    assert message in done.err
    assert (hint or "") in done.err
    assert not Path("plan.json").exists()


def test_a_layout_that_does_not_fit_is_refused(meshwright: Run) -> None:
    write("tp: 2\n")
    ask = ("-m", "llama3-70b", "-c", "h100-1x2", "--global-batch", 8, "--layout", "layout.yaml")
    done = meshwright("plan", *ask)
    assert done.code == 3
    assert "GiB on its fullest device (limit 7" in done.err
    assert not Path("plan.json").exists()


def test_a_layout_and_pins_exclude_each_other(meshwright: Run) -> None:
    write("tp: 4\n")
    done = meshwright("plan", *ASK, "--layout", "layout.yaml", "--pin", "tp=4")
    assert done.code == 1
    assert "`--layout` leaves nothing to `--pin`, `--forbid`" in done.err


def test_no_such_layout_file(meshwright: Run) -> None:
    done = meshwright("plan", *ASK, "--layout", "nowhere.yaml")
    assert done.code == 1
    assert "no such file: `nowhere.yaml`" in done.err
