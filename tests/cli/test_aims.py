"""`plan --objective`, `--devices` and clusters of several kinds of node, as a user sees them."""

import json
import re

import pytest

from launch.cli.exit import Exit

SMALL = ("-m", "llama3-8b", "--global-batch", 32, "--pin", "cp=1,schedule=1f1b", "--top", 2)
LAB = """
name: lab
nodes:
  - {device: a100-80, count: 1, devices_per_node: 8, price_per_hour: 1.2}
  - {device: h100, count: 1, devices_per_node: 8, price_per_hour: 2.5}
"""


@pytest.fixture
def lab(tmp_path):
    (tmp_path / "lab.yaml").write_text(LAB)
    return "lab.yaml"


def narrow(text):
    return all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--objective", "fast"), "`--objective fast` is not known"),
        (("--devices", "x"), "`--devices x` is not a list of positive numbers"),
        (("--devices", "0"), "`--devices 0` is not a list of positive numbers"),
        (("--devices", "12"), "no whole number of nodes with 8 devices each"),
        (("--devices", "16,64"), "cluster `h100-2x8` has 16"),
    ],
)
def test_bad_values(meshwright, flags, message):
    result = meshwright("plan", *SMALL, "-c", "h100-2x8", *flags)
    assert result.code == Exit.FAILED
    assert message in result.err
    assert "hint:" in result.err


def test_a_layout_leaves_nothing_to_an_objective(meshwright, tmp_path):
    (tmp_path / "layout.yaml").write_text("tp: 8\n")
    result = meshwright(
        "plan", "-m", "llama3-8b", "-c", "h100-1x8", "--layout", "layout.yaml", "--devices", 4
    )
    assert result.code == Exit.FAILED
    assert "`--layout` leaves nothing to" in result.err


def test_more_devices_are_no_gain_where_the_fewest_are_sought(meshwright, lab):
    result = meshwright("plan", *SMALL, "-c", lab, "--objective", "devices")
    table = result.out.split("vs best")[1].split("Uses")[0]
    numbers = [line.split() for line in table.splitlines() if " GiB " in line]
    used = [sum(map(int, words[words.index("s") - 2].split("+"))) for words in numbers]
    kinds = {words[words.index("s") - 2] for words in numbers}
    assert all("+" in kind for kind in kinds)
    for words, number in zip(numbers[1:], used[1:], strict=True):
        more = number - used[0]
        assert (words[-2:] == [f"+{more}", "dev."]) if more else words[-1].endswith("%")


@pytest.mark.parametrize("objective", ["cost", "devices"])
def test_other_numbers_of_devices_are_compared_by_what_is_sought(meshwright, objective):
    ask = ("plan", *SMALL, "-c", "h100-2x8", "--objective", objective, "--pin", "cp=1", "--json")
    fewest = json.loads(meshwright(*ask).out)["chosen"]["estimate"]
    why = meshwright("why", "plan.json")
    assert narrow(why.out)
    shown = why.out.split("devices 8")[1].split("Limits")[0]
    asked = meshwright("why", "plan.json", "--not", "devices=16")
    assert (asked.code, asked.err) == (0, "")
    assert narrow(asked.out)
    best = json.loads(meshwright("why", "plan.json", "--not", "devices=16", "--json").out)["best"]
    step = best["estimate"]["step_s"] / fewest["step_s"]
    words = " ".join(asked.out.split())
    assert f"On 16 devices, the chosen one on 8: a step takes {step - 1:+.1%}" in words
    assert f"device time per token {2 * step - 1:+.1%}" in words
    assert "did not search" not in words
    if objective == "devices":
        assert "The plan uses the fewest devices on which any layout fits" in words
        assert "instead" not in shown
        assert "16: a step of" in shown
    else:
        assert f"The plan seeks the least cost per token: {2 * step - 1:+.1%}" in words
        assert "instead 16: +" in shown
    wrong = meshwright("why", "plan.json", "--not", "devices=few")
    assert (wrong.code, "`--not devices=few` is no number of devices" in wrong.err) == (1, True)
    many = meshwright("why", "plan.json", "--not", "devices=64")
    assert (many.code, "cluster `h100-2x8` has 16" in many.err) == (1, True)


@pytest.mark.parametrize("objective", ["cost", "devices"])
def test_an_objective_is_shown(meshwright, objective):
    result = meshwright("plan", *SMALL, "-c", "h100-2x8", "--objective", objective)
    assert result.code == Exit.OK
    assert narrow(result.out)
    assert "devices" in result.out.split("vs best")[0]
    assert ("device-hours per million tokens" in result.out) == (objective == "cost")


def test_idle_devices_are_named(meshwright):
    result = meshwright("plan", *SMALL, "-c", "h100-2x8", "--devices", 8)
    assert "Uses 8 of 16 devices; 8 stay idle" in result.out
    why = meshwright("why", "plan.json")
    assert "8 of 16 stay idle" in why.out
    assert meshwright("why", "plan.json", "--not", "tp=8").code == Exit.OK


def test_several_kinds_of_node(meshwright, lab):
    result = meshwright("plan", *SMALL, "-c", lab)
    assert result.code == Exit.OK, result.err
    assert narrow(result.out)
    assert "1 x 8 a100-80, 1 x 8 h100" in result.out
    assert "Uses 8 of 8 a100-80, 8 of 8 h100" in result.out
    assert "per million tokens at the cluster's prices" in result.out
    assert "on a100-80" in result.out
    assert "on h100" in result.out
    assert "meshwright launch" in result.out
    bars = [line for line in result.out.splitlines() if line.startswith("stage ")]
    assert {line.split()[-1] for line in bars} == {"a100-80", "h100"}


def test_all_views_of_a_mixed_plan(meshwright, lab, tmp_path):
    assert meshwright("plan", *SMALL, "-c", lab, "-o", "a.json").code == Exit.OK
    assert meshwright("plan", *SMALL, "-c", lab, "--pin", "tp=2", "-o", "b.json").code == Exit.OK
    for command in (
        ("show", "a.json"),
        ("show", "a.json", "--memory"),
        ("show", "a.json", "--timeline"),
        ("show", "a.json", "--pareto"),
        ("why", "a.json"),
        ("why", "a.json", "--not", "tp=8"),
        ("why", "a.json", "--not", "tp=3"),
        ("diff", "a.json", "b.json"),
    ):
        result = meshwright(*command)
        assert result.code == Exit.OK, (command, result.err)
        assert narrow(result.out), command
    assert meshwright("show", "a.json", "--report", "a.html").code == Exit.OK
    page = (tmp_path / "a.html").read_text()
    assert "a100-80, h100 devices" in page
    assert "0 on " in page
    assert page.count("74.4 GiB or 74.4 GiB") == 0
    assert "e-1" not in re.sub(r'"[^"]*"', "", page).split("Where the step goes")[1]
    shown = json.loads(meshwright("why", "a.json", "--json").out)
    assert shown["kind"] == "why"


def test_no_launch_of_several_nodes_here(meshwright, lab):
    assert meshwright("plan", *SMALL, "-c", lab).code == Exit.OK
    result = meshwright("launch", "plan.json")
    assert result.code == Exit.STALE
    assert "is for 2 nodes; `launch` runs on one" in result.err


def test_no_layout_can_be_given_for_several_kinds(meshwright, lab, tmp_path):
    (tmp_path / "layout.yaml").write_text("tp: 8\npp: 2\n")
    result = meshwright("plan", "-m", "llama3-8b", "-c", lab, "--layout", "layout.yaml")
    assert result.code == Exit.FAILED
    assert "mixes 2 kinds of node" in result.err


def narrow_columns(text, head):
    """Lines of a table up to the end of a column, where the column holds a number."""
    lines = text.splitlines()
    first = next(k for k, line in enumerate(lines) if head in line)
    end = lines[first].index(head) + len(head)
    rows = lines[first + 1 : lines.index("", first)]
    return [line[:end] for line in rows if line[end - 1 : end].isdigit()]


def test_the_page_counts_devices_where_they_differ(meshwright, lab, tmp_path):
    ask = ("plan", *SMALL, "-c", lab, "--objective", "devices")
    words = {line.split()[-1] for line in narrow_columns(meshwright(*ask).out, "devices")}
    assert meshwright("show", "plan.json", "--report", "a.html").code == Exit.OK
    table = (tmp_path / "a.html").read_text().split('id="alternatives"')[1].split("</table>")[0]
    assert words
    assert all(f">{word}</td>" in table for word in words)
    assert "dev." in table or len({sum(map(int, w.split("+"))) for w in words}) == 1
