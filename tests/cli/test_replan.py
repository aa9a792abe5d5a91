"""`meshwright plan --from`: what is said, what is saved, with which exit code."""

import json
import re
import shlex
from pathlib import Path

import pytest

from launch.artifact import read_plan
from launch.checkpoints import checkpoint_root, complete_folder
from launch.collect import collect
from launch.expert_looks import ExpertLook, append
from launch.recipe import recipe_of
from planner.config import ExpertSlots
from planner.expert_moves import expert_transfers, placed_experts, state_bytes
from planner.holdings import contiguous_slots
from profiler.codec import encode, replace
from tests.unit.records import step

ROOT = Path(__file__).resolve().parents[2]
ASK = ("plan", "-m", "llama3-8b", "-c", "h100-4x8", "--global-batch", 384)
PIN = ("--pin", "zero=0")
AGAIN = ("plan", "--from", "plan.json")


_TEXT: list[str] = []


@pytest.fixture
def planned(meshwright, tmp_path):
    """The plan that ran; searched once."""
    path = tmp_path / "plan.json"
    if _TEXT:
        path.write_text(_TEXT[0])
    else:
        assert meshwright(*ASK, *PIN).code == 0
        _TEXT.append(path.read_text())
    return path


def test_a_lost_node_is_frozen_and_fits(meshwright, planned, golden):
    result = meshwright(*AGAIN, "--lost", 1, "--checkpoint-every", 100, "--read-rate", 5)
    assert (result.code, result.err) == (4, "Saved the plan to: `new-plan.json`\n")
    assert max(map(len, result.out.splitlines())) <= 80
    golden("replan.txt", result.out)
    new = json.loads(Path("new-plan.json").read_text())
    old = json.loads(planned.read_text())
    assert [new[name] for name in ("model", "job")] == [old[name] for name in ("model", "job")]
    assert new["options"] == old["options"]
    assert new["cluster"]["groups"][0]["num_nodes"] == 3
    fresh = meshwright("plan", "-m", "llama3-8b", "-c", "h100-3x8", *ASK[-2:], *PIN, "--json")
    assert fresh.out == Path("new-plan.json").read_text()


def test_the_same_cluster_says_to_go_on(meshwright, planned):
    result = meshwright(*AGAIN, "-c", "h100-4x8", "-o", "other.json")
    assert result.code == 0
    assert "go on with the old plan" in result.out
    assert Path("other.json").read_text() == planned.read_text()
    assert not Path("new-plan.json").exists()


def test_more_nodes_say_when_the_restart_has_paid(meshwright, planned):
    result = meshwright(*AGAIN, "-c", "h100-6x8", "--restart-s", 90)
    assert result.code == 4
    assert "New: 2 nodes" in result.out
    assert re.search(r"The restart has paid after \d+ steps", result.out)


@pytest.mark.usefixtures("planned")
def test_json_is_one_document_that_says_what_moves(meshwright):
    result = meshwright(*AGAIN, "--lost", "1,3", "--json")
    assert result.code == 4
    document = json.loads(result.out)
    assert (document["kind"], document["verdict"]) == ("replan", "restart")
    assert document["nodes"] == [0, 2]
    moves = document["moves"]
    total = sum(moves[name] for name in ("held_bytes", "fetched_bytes", "from_checkpoint_bytes"))
    assert moves["need_bytes"] == total
    assert document["new_plan"] == json.loads(Path("new-plan.json").read_text())["id"]
    assert result.out == meshwright(*AGAIN, "--lost", "3,1", "--json").out


@pytest.mark.usefixtures("planned")
def test_where_nothing_fits_the_code_is_3_and_nothing_is_saved(meshwright):
    ask = ("plan", "-m", "llama3-70b", "-c", "h100-4x8", "-o", "plan.json")
    assert meshwright(*ask).code == 0
    result = meshwright(*AGAIN, "--lost", "0,1,2", "--json")
    assert result.code == 3
    assert json.loads(result.out)["code"] == "infeasible"
    assert not Path("new-plan.json").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 1, "nothing says what is there now"),
        (("--lost", "4"), 1, "has nodes 0 to 3"),
        (("--lost", "-1"), 1, "`-1` is no node"),
        (("--lost", "1,"), 1, "`` is no node"),
        (("--lost", "one"), 1, "`one` is no node"),
        (("--lost", "0,1,2,3"), 3, "no node is left"),
        (("--lost", "1", "--pin", "tp=3"), 3, "is possible"),
        (("--lost", "1", "--run", "nowhere"), 1, "no such folder"),
        (("--lost", "1", "--global-batch", "0"), 2, "--global-batch"),
        (("-c", "h100-3x8", "--profile", "plan.json"), 1, "not a `profile` file"),
    ],
)
@pytest.mark.usefixtures("planned")
def test_what_cannot_be_is_said(words, code, message, meshwright):
    result = meshwright(*AGAIN, *words)
    assert result.code == code
    assert message in result.err
    assert result.err.startswith("error: ")


def test_options_of_a_replan_need_a_plan(meshwright):
    result = meshwright(*ASK, "--lost", 1)
    assert result.code == 1
    assert "`--lost` goes with `--from`" in result.err
    assert meshwright("plan", "--from", "nowhere.json", "--lost", 1).code == 1


def test_a_changed_plan_is_stale(meshwright, planned):
    planned.write_text(planned.read_text().replace('"seq_len": 4096', '"seq_len": 2048'))
    assert meshwright(*AGAIN, "--lost", 1).code == 5


def run_of(plan: Path, folder: Path, num_ranks: int) -> Path:
    """A run that was cut off after 7 steps of 2 s, with a checkpoint of 5."""
    (folder / "ranks").mkdir(parents=True)
    (folder / "plan.json").write_text(plan.read_text())
    recipe = recipe_of({"steps": 98, "warmup": 2, "checkpoint_every": 5})
    (folder / "recipe.json").write_text(encode(recipe))
    complete_folder(checkpoint_root(folder), 5).mkdir(parents=True)
    for rank in range(num_ranks):
        header = {"rank": rank, "coordinate": {}, "host": f"h{rank}", "device": "cpu", "torch": "2",
                  "memory": None, "startup_s": 11.0 + rank}  # fmt: skip
        rows = [step(i, 2.0 * i, 2.0 * (i + 1), [], loss=1.0) for i in range(7 + (rank == 0))]
        text = "".join(json.dumps(row) + "\n" for row in (header, *rows))
        (folder / "ranks" / f"rank-{rank:05d}.jsonl").write_text(text)
    return folder


def test_a_run_says_what_was_measured(meshwright, tmp_path):
    ask = ("-m", "tiny-llama", "-c", "cpu-2x1", "--global-batch", 8, "--seq-len", 64)
    assert meshwright("plan", *ask, "--pin", "pp=2").code == 0
    run = run_of(Path("plan.json"), tmp_path / "run", 2)
    words = ("--lost", 1, "--run", run, "--pin", "pp=1", "--json")
    document = json.loads(meshwright(*AGAIN, *words).out)
    facts = document["facts"]
    assert (document["old_step_s"], document["steps_left"]) == (2.0, 93)
    assert (facts["again"]["value"], facts["again"]["source"]) == (2, "measured")
    assert (facts["restart"]["value"], facts["restart"]["source"]) == (12.0, "measured")
    predicted = [json.loads(Path(name).read_text())["chosen"]["estimate"]["step_s"]
                 for name in ("plan.json", "new-plan.json")]  # fmt: skip
    assert document["new_step_s"] == pytest.approx(2.0 * predicted[1] / predicted[0])
    by_name = ("--lost", "h1", "--run", run, "--pin", "pp=1", "--json")
    assert json.loads(meshwright(*AGAIN, *by_name).out) == document
    unknown = meshwright(*AGAIN, "--lost", "h7", "--run", run)
    assert (unknown.code, "the hosts are h0, h1" in unknown.err) == (1, True)
    other = meshwright("plan", "--from", "new-plan.json", "-c", "cpu-1x1", "--run", run)
    assert (other.code, "the run is of plan" in other.err) == (5, True)


def test_the_page_shows_what_its_commands_print(meshwright):
    text = (ROOT / "docs" / "replan.md").read_text(encoding="utf-8")
    (first, _), (second, out) = re.findall(r"```\n\$ meshwright (.*?)\n(.*?)```", text, re.DOTALL)
    assert meshwright(*shlex.split(first)).code == 0
    result = meshwright(*shlex.split(second))
    assert (result.code, result.out) == (4, out)


def test_every_option_that_the_page_names_exists(meshwright):
    text = (ROOT / "docs" / "replan.md").read_text(encoding="utf-8")
    helps = meshwright("plan", "--help").out + meshwright("launch", "--help").out
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)):
        assert option in helps, option


def test_diff_tells_what_moves_between_two_layouts(meshwright, planned):
    assert meshwright(*ASK, "--pin", "zero=1", "-o", "other.json").code == 0
    moves = json.loads(meshwright("diff", planned, "other.json", "--json").out)["moves"]
    same = json.loads(meshwright("plan", "--from", planned, "-c", "h100-4x8", "--pin", "zero=1",
                                 "--json").out)["moves"]  # fmt: skip
    assert moves == {name: same[name] for name in moves}
    assert moves["from_checkpoint_bytes"] == 0 < moves["fetched_bytes"]
    assert "held by other ranks" in meshwright("diff", planned, "other.json").out
    assert json.loads(meshwright("diff", planned, planned, "--json").out)["moves"] is None


MOE = ("-m", ROOT / "examples" / "tiny-moe" / "config.json", "-c", "cpu-2x1",
       "--global-batch", 8, "--seq-len", 64)  # fmt: skip


@pytest.fixture
def moved_run(meshwright, tmp_path):
    """A run of two ranks of experts that have traded the first two of each layer."""
    assert meshwright("plan", *MOE, "--pin", "ep=2", "--pin", "pp=1").code == 0
    plan = read_plan(Path("plan.json"))
    run = run_of(Path("plan.json"), tmp_path / "run", 2)
    layers, num = plan.model.num_moe_layers, plan.model.num_experts
    even = contiguous_slots(num, 2).slots
    slots = ((*even[1][:2], *even[0][2:]), (*even[0][:2], *even[1][2:]))
    counts = tuple(100 + 2000 * (e in slots[0]) for e in range(num))
    places = (ExpertSlots(slots=slots),) * layers
    append(run, ExpertLook(step=5, layers=places, counts=(counts,) * layers))
    return run, places


def test_after_moves_the_places_and_the_load_are_those_of_the_run(meshwright, moved_run):
    run, places = moved_run
    old = read_plan(Path("plan.json"))
    assert (old.chosen.placement.experts, old.profile.expert_loads) == ((), ())
    result = meshwright(*AGAIN, "-c", "cpu-2x1", "--pin", "ep=2", "--run", run, "--json")
    assert "planning on from where they are now" in result.err
    found = json.loads(result.out)
    assert found["verdict"] == "keep"
    assert found["new_step_s"] == pytest.approx(found["old_step_s"]) == 2.0  # as observed
    new = read_plan(Path("new-plan.json"))
    assert new.chosen.placement.experts == places
    (load,) = new.profile.expert_loads
    assert load.imbalance == pytest.approx(2 * 2100 / 2200, rel=0.05)  # all on the first rank
    assert new.chosen.cost.step_s > old.chosen.cost.step_s
    apart = json.loads(meshwright(*AGAIN, "-c", "cpu-2x1", "--pin", "ep=2", "--json").out)
    assert (apart["verdict"], apart["old_plan"]) == ("keep", old.id)
    assert read_plan(Path("new-plan.json")).chosen == old.chosen


def test_what_moves_is_counted_from_where_the_run_has_it(meshwright, moved_run):
    """Back to where the plan had them: both ranks fetch two experts of each layer."""
    run, places = moved_run
    old = read_plan(Path("plan.json"))
    config = old.chosen.config
    Path("layout.yaml").write_text(
        f"{{dp_replicate: {config.dp_replicate}, dp_shard: {config.dp_shard}, zero: {config.zero}, "
        f"ep: 2, micro_batch: {config.micro_batch}, recompute: {config.recompute}}}"
    )
    words = ("-c", "cpu-2x1", "--layout", "layout.yaml", "--json")
    found = json.loads(meshwright(*AGAIN, *words, "--run", run).out)
    chosen = old.chosen
    back = placed_experts(old.model, config, chosen.placement)
    sent = expert_transfers(
        old.model, config, replace(chosen.placement, experts=places), back, (0, 1)
    )
    assert found["moves"]["fetched_bytes"] == state_bytes(sent) > 0
    assert json.loads(meshwright(*AGAIN, *words).out)["moves"]["fetched_bytes"] == 0


def test_experts_of_another_degree_are_placed_by_what_was_routed(meshwright, moved_run):
    run, _ = moved_run
    words = ("-c", "cpu-4x1", "--pin", "ep=4", "--pin", "pp=1", "--run", run)
    assert meshwright(*AGAIN, *words).code == 4
    new = read_plan(Path("new-plan.json"))
    assert new.chosen.config.ep == 4
    assert len(new.chosen.placement.experts[0].slots) == 4
    loads = {load.ep: load.imbalance for load in new.profile.expert_loads}
    assert loads[2] > 1.5 > loads[4]


@pytest.mark.parametrize("command", ["show", "why"])
def test_a_plan_says_that_its_run_has_moved_experts(command, meshwright, moved_run):
    run, _ = moved_run
    assert "has moved its experts" in meshwright(command, run / "plan.json").err
    alone = meshwright(command, "plan.json")
    assert (alone.code, alone.err) == (0, "")
    assert alone.out == meshwright(command, run / "plan.json").out


def test_verify_predicts_for_where_experts_were(meshwright, moved_run):
    run, _ = moved_run
    plan = read_plan(Path("plan.json"))
    observed = collect(plan, run, "complete")
    (run / "observed.json").write_text(encode(observed))
    result = meshwright("verify", run / "plan.json", run / "observed.json", "--json")
    verdict = json.loads(result.out)
    assert (verdict["experts"], verdict["moves"]) == ("run", [])
    assert verdict["rows"][0]["predicted"] > plan.chosen.cost.step_s
    shown = meshwright("verify", run / "plan.json", run / "observed.json").out
    assert "predicted for where they were, and what was routed there" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80
    (run / "experts.jsonl").unlink()
    verdict = json.loads(meshwright("verify", run / "plan.json", run / "observed.json",
                                    "--json").out)  # fmt: skip
    assert (verdict["experts"], verdict["rows"][0]["predicted"]) == (
        "planned", plan.chosen.cost.step_s,
    )  # fmt: skip
