"""The terminal: what users see, in which stream, with which exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from profiler.codec import content_id
from tests import commands

ASK = ("plan", "-m", "llama3-8b", "-c", "h100-2x8", "--global-batch", 256, "--seq-len", 8192)
COMMANDS = ("profile", "plan", "show", "diff", "launch", "verify", "list", "map", "schema")


@pytest.fixture
def planned(meshwright, tmp_path):
    assert meshwright(*ASK).code == 0
    return tmp_path / "plan.json"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_frozen_and_fits(command, meshwright, golden):
    result = meshwright(*command.split(), "--help")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 80
    golden(f"help-{command or 'meshwright'}.txt", result.out)


def test_plan_and_show_are_frozen_and_fit(meshwright, golden):
    result = meshwright(*ASK)
    assert result.code == 0
    assert result.err == "Saved the plan to: `plan.json`\n"
    golden("plan.txt", result.out)
    shown = meshwright("show", "plan.json")
    golden("show.txt", shown.out)
    assert max(map(len, (result.out + shown.out).splitlines())) <= 80


def test_json_is_one_document_and_the_saved_bytes(meshwright, planned):
    result = meshwright(*ASK, "--json")
    assert result.out == planned.read_text()
    assert json.loads(result.out)["kind"] == "plan"
    assert json.loads(meshwright("show", planned, "--json").out) == json.loads(result.out)


def test_list(meshwright, golden):
    result = meshwright("list")
    assert max(map(len, result.out.splitlines())) <= 80
    golden("list.txt", result.out)
    names = {i["name"] for i in json.loads(meshwright("list", "devices", "--json").out)["devices"]}
    assert {"h100", "a100-80", "cpu"} <= names


def test_diff(meshwright, planned):
    other = planned.with_name("other.json")
    assert meshwright(*ASK, "--pin", "tp=4,8,pp=2", "-o", other).code == 0
    same = meshwright("diff", planned, planned, "--exit-code")
    assert (same.code, "equal" in same.out) == (0, True)
    differs = meshwright("diff", planned, other)
    assert differs.code == 0
    assert "chosen.config.tp" in differs.out
    assert meshwright("diff", planned, other, "--exit-code").code == 4
    document = json.loads(meshwright("diff", planned, other, "--json").out)
    assert document["costs"]["step_s"][0] < document["costs"]["step_s"][1]


def test_analytic_profile_gives_the_plan_of_the_cluster_alone(meshwright, tmp_path):
    made = meshwright(
        "profile", "-m", "llama3-8b", "--analytic", "-c", "h100-2x8", "--seq-len", 8192
    )
    assert made.code == 0
    with_profile = meshwright(
        "plan", "-m", "llama3-8b", "--profile", "profile.json", "--global-batch", 256, "--json"
    )
    without = meshwright(*ASK, "--json")
    chosen = [json.loads(r.out)["chosen"] for r in (with_profile, without)]
    assert chosen[0] == chosen[1]


WRONG = [
    ((), 2, "Usage: meshwright", None),
    (("plam",), 2, "error: no such command 'plam'", None),
    (("plan",), 2, "error: missing option '-m' / '--model'", "`meshwright plan --help`"),
    (("plan", "-m", "llama3-8b"), 1, "error: no cluster was given", "`-c h100-2x8`"),
    (("plan", "-m", "llama3-8c", "-c", "h100-1x8"), 1, "error: no model `llama3-8c`", "`llama3-8b`"),
    (("plan", "-m", "llama3-8b", "-c", "h10-1x8"), 1, "error: ", "h100"),
    (("plan", "-m", "llama3-8b", "-c", "h100-0x8"), 1, "error: cluster `h100-0x8` has no devices", None),
    (("plan", "-m", "llama3-70b", "-c", "h100-1x1"), 3, "error: no layout of `llama3-70b` fits on 1 x h100", "closest: "),
    (("plan", "-m", "llama3-8b", "-c", "t4-1x4", "--precision", "bf16"), 1, "error: device `t4` does not compute in bf16", "fp32"),
    (("plan", "-m", "llama3-8b", "-c", "h100-1x8", "--precision", "int4"), 1, "error: `--precision int4` is not known", "fp32"),
    (("plan", "-m", "llama3-8b", "-c", "h100-1x8", "--pin", "tp"), 1, "error: `--pin tp` is not of the form", None),
    (("plan", "-m", "llama3-8b", "-c", "h100-1x8", "--pin", "tp=3"), 3, "error: no layout of `llama3-8b` on 8 x h100 is possible", "pin"),
    (("plan", "-m", "llama3-8b", "-c", "h100-1x8", "--global-batch", 0), 2, "error: invalid value for '--global-batch'", None),
    (("show", "none.json"), 1, "error: no such file: `none.json`", None),
    (("list", "planets"), 1, "error: nothing of kind `planets`", "models"),
    (("profile", "-m", "llama3-8b", "--analytic"), 1, "error: `--analytic` needs a cluster", None),
    (("profile", "-m", "tiny-llama", "-c", "h100-1x8"), 1, "error: `--cluster` goes with `--analytic`", None),
    (("profile", "-m", "tiny-llama", "--micro-batches", "1,x"), 1, "error: `--micro-batches 1,x`", "1,2,4"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "code", "message", "hint"), WRONG)
def test_wrong_input_is_one_error_and_touches_nothing(
    args, code, message, hint, meshwright, tmp_path
):
    result = meshwright(*args)
    assert result.code == code
    assert result.out == ""
    assert result.err.startswith(message)
    assert "Traceback (most" not in result.err
    assert result.err.count("error:") <= 1
    if hint:
        assert hint in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [w[0] for w in WRONG if w[0]])
def test_wrong_input_with_json_is_one_document(args, meshwright):
    document = json.loads(meshwright(*args, "--json").out)
    assert document["kind"] == "error"
    assert document["message"]


def test_a_cluster_file_names_its_line(meshwright, tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("name: lab\nnodes:\n  - device: h100\n    count: 2\n    devices_per_nod: 8\n")
    result = meshwright("plan", "-m", "llama3-8b", "-c", path)
    assert result.code == 1
    assert f"error: {path}:5: unknown key `devices_per_nod`" in result.err
    assert "hint: did you mean `devices_per_node`?" in result.err


def test_unknown_model_family_is_refused_by_name(meshwright, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    result = meshwright("plan", "-m", tmp_path, "-c", "h100-1x8")
    assert result.code == 1
    assert "`mamba`" in result.err


def test_edited_truncated_and_foreign_plans(meshwright, planned, tmp_path):
    text = planned.read_text()
    cases = {
        "edited.json": (text.replace('"global_batch": 256', '"global_batch": 128'), 5),
        "cut.json": (text[: len(text) // 2], 1),
        "foreign.json": ('{"a": 1}\n', 1),
        "empty.json": ("", 1),
    }
    for name, (content, code) in cases.items():
        (tmp_path / name).write_text(content)
        for command in (("show",), ("launch", "--dry-run")):
            result = meshwright(*command, name)
            assert (result.code, result.out) == (code, ""), name
            assert result.err.startswith("error: "), name
    assert not (tmp_path / "runs").exists()


def test_profile_of_another_cluster_is_stale(meshwright):
    assert meshwright("profile", "-m", "llama3-8b", "--analytic", "-c", "h100-2x8").code == 0
    result = meshwright("plan", "-m", "llama3-8b", "-c", "h100-4x8", "--profile", "profile.json")
    assert result.code == 5
    result = meshwright("plan", "-m", "llama2-7b", "--profile", "profile.json")
    assert result.code == 5


def run_outside(args, cwd, **kwargs):
    return subprocess.run(
        commands.command(*args), capture_output=True, text=True, cwd=cwd, **kwargs
    )


@pytest.mark.parametrize("args", [["--help"], ["plan", "--help"], ["list", "models"]])
def test_help_loads_nothing_heavy(args, tmp_path):
    command = [sys.executable, "-P", "-X", "importtime", "-m", "launch.cli.app", *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert not loaded & {"numpy", "torch", "pulp", "ortools"}


def test_a_module_of_the_user_does_not_shadow_ours(tmp_path):
    (tmp_path / "profiler.py").write_text("raise SystemExit('shadowed')")
    assert run_outside(["list", "models"], tmp_path).returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])  # the parser meets the broken pipe, or we do
def test_a_reader_that_leaves_is_no_error(unbuffered, tmp_path):
    command = f"{sys.executable} -P -m launch.cli.app list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "Models\n", "")


def test_plan_loads_no_torch_and_is_the_same_everywhere(tmp_path):
    first = run_outside(["plan", "-m", "llama3-8b", "-c", "h100-2x8", "--json"], tmp_path)
    environment = os.environ | {"PYTHONHASHSEED": "7", "LC_ALL": "C"}
    other = run_outside(
        ["plan", "-m", "llama3-8b", "-c", "h100-2x8", "--json"], tmp_path, env=environment
    )
    assert first.stdout == other.stdout
    plain = json.loads(first.stdout)
    name = plain.pop("id")
    assert content_id(plain, "p") == name


def test_an_unwritable_place_is_one_error(meshwright, tmp_path):
    (tmp_path / "file").write_text("")
    result = meshwright(*ASK, "-o", "file/plan.json")
    assert result.code == 1
    assert result.err.startswith("error: file/plan.json: cannot write the file")


def test_what_explains_an_error_fits_80_columns(meshwright):
    result = meshwright("plan", "-m", "llama3-8b", "-c", "h100-1x1")
    assert result.err.count("error:") == 1
    assert max(map(len, result.err.splitlines())) <= 80


def test_a_folder_is_no_place_for_a_plan(meshwright, tmp_path):
    result = meshwright(*ASK, "-o", tmp_path)
    assert result.code == 1
    assert result.err.startswith(f"error: {tmp_path}: it is a folder")


def test_a_bug_says_so(meshwright, monkeypatch, tmp_path):
    def broken(*_args, **_kwargs):
        raise RuntimeError("boom")

    monkeypatch.setattr("planner.search.make_plan", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = meshwright(*ASK)
    assert result.code == 70
    assert "this is a bug in Meshwright: RuntimeError: boom" in result.err
    trace = Path(result.err.split("the traceback is in `")[1].split("`")[0])
    assert "RuntimeError: boom" in trace.read_text()


def test_interrupt(meshwright, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("planner.search.make_plan", interrupted)
    result = meshwright(*ASK)
    assert (result.code, result.err) == (130, "error: interrupted\n")
