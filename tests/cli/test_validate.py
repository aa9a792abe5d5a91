"""`meshwright validate`: its tables, its one document, its picture and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from launch.published.table import MEASURED, REQUIRED
from tests.unit.scored_rows import failed_row, left_out, row

ROOT = Path(__file__).resolve().parents[2]
HEADER = (*REQUIRED, "step_s")
LINE = ("m", "2", "64", "128", "H100", "8", "64", "1", "1", "1", "0.5")
LONG = "a-source-with-a-name-that-is-longer-than-any-column"


def predictions():
    many = [
        row(f"row-{n:03d}", 1.0 + n % 7 / 10, 1.0 + n % 5 / 20, source=("lab", "a" * 60)[n % 2],
            group=("a-model-of-a-very-long-name-" + "x" * 40, "1024"), model="y" * 50,
            num_gpus=1024, label="tp8 pp16 " * 9, parts={"a term of a long name": 1.0, "tp": 0.5},
            predicted_peak_gib=70.0, measured_peak_gib=71.0 + n % 9)
        for n in range(30)
    ]  # fmt: skip
    apart = [row("u", 123456.7, 1e-5, trusted=False), failed_row("f", fits=True)]
    out = [left_out("z", f"{LONG} {LONG}: 1"), left_out("y", "no tp")]
    return [*many, *apart], out, ["feature `warp drive` is odd"]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A table of runs, and a reader that predicts what `predictions` says."""
    asked = []

    def read_and_predict(path, group, failed, progress):
        asked.append((path, group, failed))
        progress(0, 1, "reading")
        return module.found

    module = ModuleType("launch.published.runs")
    module.read_and_predict, module.asked = read_and_predict, asked
    module.found = predictions()
    monkeypatch.setitem(sys.modules, "launch.published.runs", module)
    write(tmp_path / "runs.csv")
    return module


def write(path, header=HEADER, lines=(LINE,)):
    path.write_text("\n".join(",".join(cells) for cells in (header, *lines)) + "\n")


def test_help_is_frozen_and_fits(meshwright, golden):
    result = meshwright("validate", "--help")
    assert max(map(len, result.out.splitlines())) <= 80
    golden("help-validate.txt", result.out)


@pytest.mark.parametrize("options", [(), ("--memory",)])
def test_tables_fit_and_say_all(options, meshwright, runs):
    result = meshwright("validate", "runs.csv", *options)
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 80
    for part in (
        "Predicted 31 of 31 complete rows (100.0%), 33 rows in all",
        "Scored 30 trusted rows; 1 that are not trusted are apart",
        "Step time, 30 rows",
        "Per source ",
        "(not trusted) ",
        "Per model, n_gpus ",
        "Peak memory, 30 rows",
        "failed, but said to fit     1 of 1, 100.0%",
        "By largest term",
        "Furthest off",
        "Not predicted, 2 rows",
        "          y\n",
        "no tp",
    ):
        assert part in result.out, part
    assert ("Memory per source" in result.out) == bool(options)
    assert "nan" not in result.out
    assert "feature `warp drive` is odd\n" in result.err
    assert runs.asked == [(Path("runs.csv"), ("model", "n_gpus"), None)]


def test_json_is_one_document_and_the_same_each_time(meshwright, runs):
    first = meshwright("validate", "runs.csv", "--json", "--group", "model")
    document = json.loads(first.out)
    assert (document["kind"], document["format_version"]) == ("score", "1.0")
    assert document["group"] == ["model"]
    assert document["step_time"]["rows"] == 30
    assert document["memory"]["rows"] == 30
    assert set(document["per_source"]["lab"]) == {"step_time", "memory", "choice", "fit_errors"}
    assert document["unmodelled_rows"]["no tp"] == ["y"]
    assert meshwright("validate", "runs.csv", "--json", "--group", "model").out == first.out


def test_reader_gets_the_failed_runs(meshwright, runs, tmp_path):
    write(tmp_path / "failed.csv", ("model_size_b", "n_gpus", "gbs", "mbs", "tp", "pp", "dp"),
          [("8.86", "8", "64", "1", "1", "1", "8")])  # fmt: skip
    assert meshwright("validate", "runs.csv", "--failed", "failed.csv").code == 0
    assert runs.asked[0][2] == Path("failed.csv")


def test_nothing_predicted_is_an_error_that_names_reasons(meshwright, runs):
    runs.found = ([], [left_out("a", "no tp"), left_out("b", "no tp")], [])
    result = meshwright("validate", "runs.csv")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: runs.csv: no row of the table can be predicted\n")
    assert "2  no tp" in result.err
    assert "hint: " in result.err
    document = json.loads(meshwright("validate", "runs.csv", "--json").out)
    assert document["kind"] == "error"


def test_little_data_is_dashes(meshwright, runs):
    runs.found = ([row("a", None, None)], [], [])
    result = meshwright("validate", "runs.csv", "--memory")
    assert result.code == 0
    assert "median error                  -" in result.out
    assert "Furthest off" not in result.out


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot(suffix, meshwright, runs, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "new" / f"out.{suffix}"
    result = meshwright("validate", "runs.csv", "--plot", picture, "--memory")
    assert result.code == 0
    assert result.err.endswith(f"Saved the plot to: `{picture}`\n")
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[suffix]
    assert picture.read_bytes().startswith(start)
    assert [p.name for p in picture.parent.iterdir()] == [picture.name]


def test_plot_is_the_same_each_time(tmp_path, runs):
    pytest.importorskip("matplotlib")
    from launch.published.scatter import draw

    rows, _, _ = predictions()
    draw(rows, tmp_path / "a.png")
    draw(rows[::-1], tmp_path / "b.png")
    draw([], tmp_path / "c.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_plot_needs_matplotlib_and_says_so_before_the_work(meshwright, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = meshwright("validate", "runs.csv", "--plot", "out.png")
    assert result.code == 1
    assert "hint: pip install 'meshwright[plot]'" in result.err
    assert runs.asked == []


def test_plot_that_cannot_be_written(meshwright, runs, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    result = meshwright("validate", "runs.csv", "--plot", "file/out.png")
    assert result.code == 1
    assert "\nerror: file/out.png: cannot write the file" in result.err
    assert meshwright("validate", "runs.csv", "--plot", "out.gif").code == 1


def without(*names):
    keep = [n for n, c in enumerate(HEADER) if c not in names]
    return [[cells[n] for n in keep] for cells in (HEADER, LINE)]


def renamed(old, new):
    return [[new if c == old else c for c in HEADER], LINE]


def text_of(table):
    return "\n".join(",".join(cells) for cells in table)


BAD = [
    ("", "error: bad.csv: the file is empty", "names its columns"),
    ("\n \n", "error: bad.csv: the file is empty", "names its columns"),
    ('{"a": 1}', "error: bad.csv: not a CSV file: its first line is one column", "names its"),
    (b"\x89PNG\xff", "error: bad.csv: cannot read the file: it is not utf-8 text", "CSV file"),
    (text_of([HEADER]), "error: bad.csv: no rows below the header", None),
    (text_of(without("tp")), "error: bad.csv: column `tp` is missing", "needed: model"),
    (text_of(without("tp", "pp")), "error: bad.csv: columns `tp`, `pp` are missing", "needed"),
    (text_of(renamed("seq_len", "seqlen")), "error: bad.csv: column `seq_len` is missing",
     "rename `seqlen` to `seq_len`"),
    (text_of(without(*MEASURED)), "error: bad.csv: no column of a measurement", "`tok_s_gpu`"),
    (text_of([[*HEADER, "tp"], [*LINE, "1"]]), "error: bad.csv:1: column `tp` is given", None),
    (text_of([HEADER, LINE, LINE[1:]]), "error: bad.csv:3: 10 cells in a table of 11", "quotes"),
    (text_of([HEADER]) + '\n"a"b,', "error: bad.csv:2: not CSV: ", None),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message", "hint"), BAD)
def test_what_is_no_table_of_runs(content, message, hint, meshwright, runs, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = meshwright("validate", "bad.csv")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(message), result.err
    assert result.err.count("error:") == 1
    if hint:
        assert hint in result.err.split("hint: ")[1]
    assert json.loads(meshwright("validate", "bad.csv", "--json").out)["kind"] == "error"
    assert runs.asked == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.csv",), "error: no such file: `nowhere.csv`\n\nhint: check the path"),
        (("runs.csv", "--failed", "no.csv"), "error: no such file: `no.csv`"),
        (("runs.csv", "--failed", "runs.csv"), "error: runs.csv: columns `model_size_b`, `dp` are"),
        (("runs.csv", "--group", "modle"), "error: runs.csv: no column `modle` to group by\n\n"
         "hint: did you mean `model`?"),
        (("runs.csv", "--group", "model,,tp"), "error: `--group model,,tp` is not a list"),
        (("runs.csv", "--group", "tp,tp"), "error: `--group tp,tp` is not a list of columns"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(arguments, message, meshwright, runs):
    result = meshwright("validate", *arguments)
    assert result.code == 1
    assert result.err.startswith(message), result.err


def test_usage(meshwright):
    assert meshwright("validate").code == 2


def test_columns_that_are_not_known_are_named(meshwright, runs, tmp_path):
    write(tmp_path / "runs.csv", [*HEADER, "colour", "shade"], [[*LINE, "red", "dark"]])
    result = meshwright("validate", "runs.csv", "--group", "shade")
    assert result.code == 0
    assert "warning: runs.csv: columns that are not known are not used: `colour`\n" in result.err


def test_a_byte_order_mark_quotes_and_blank_lines_are_read(tmp_path):
    from launch.published.table import read_runs

    path = tmp_path / "runs.csv"
    cells = ['"a, b"', *LINE[1:]]
    path.write_text(f"\ufeff{','.join(HEADER)}\r\n\r\n{','.join(cells)}\r\n,,\r\n", newline="")
    ((line, found),) = read_runs(path).rows
    assert (line, found["model"], found["step_s"]) == (3, "a, b", "0.5")


def test_piped_output_is_plain_and_a_reader_may_leave(tmp_path):
    """In a process of its own: no escapes in a pipe, and nothing is said to `| head`."""
    write(tmp_path / "runs.csv")
    script = (
        "import sys, tests.cli.test_validate as t\n"
        "from types import ModuleType\n"
        "m = ModuleType('launch.published.runs')\n"
        "m.read_and_predict = lambda *a: t.predictions()\n"
        "sys.modules['launch.published.runs'] = m\n"
        "from launch.cli.app import run\n"
        "sys.exit(run(['validate', 'runs.csv']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FORCE_COLOR": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout.startswith("Predicted 31 of 31")
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert said == b"feature `warp drive` is odd\n"
