"""Recipes: defaults, strict reading, and what goes over what."""
# ruff: noqa: E501  (tables of inputs and messages)

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.recipe import Recipe, bundled_text, read_recipe, recipe_of
from profiler.codec import decode, encode, to_plain
from profiler.errors import UserError
from tests.fuzz import fuzz


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_defaults_are_a_plain_run() -> None:
    recipe = Recipe()
    assert (recipe.learning_rate, recipe.lr_schedule, recipe.clip_norm) == (3e-4, "constant", 0.0)
    assert (recipe.beta1, recipe.beta2, recipe.weight_decay) == (0.9, 0.95, 0.01)
    assert (recipe.checkpoint_every, recipe.max_restarts, recipe.trace) == (0, 0, False)
    assert recipe.record_routing == 0.0
    assert recipe.total_steps == recipe.lr_steps == recipe.warmup + recipe.steps == 12
    assert recipe.data_file == bundled_text()
    assert recipe.data_file.is_file()
    assert recipe.weights_folder is None


def test_a_run_reads_what_was_written_and_paths_stay(tmp_path: Path) -> None:
    recipe = recipe_of({"data": "/data/c4.bin", "weights": "/w", "lr_schedule": "wsd", "steps": 50})
    path = write(tmp_path, encode(recipe), "recipe.json")
    assert read_recipe(path) == recipe
    assert recipe.data_file == Path("/data/c4.bin")
    assert recipe.weights_folder == Path("/w")


def test_paths_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    text = "data: corpus.npy\nweights: ../base   # beside it\nlearning_rate: 1e-4\n"
    recipe = read_recipe(write(tmp_path / "sub", text))
    assert recipe.data_file == tmp_path / "sub" / "corpus.npy"
    assert recipe.weights_folder == tmp_path / "sub" / ".." / "base"
    assert recipe.learning_rate == 1e-4


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}"])
def test_a_file_without_keys_is_the_defaults(tmp_path: Path, text: str) -> None:
    assert read_recipe(write(tmp_path, text)) == Recipe()


def test_changes_win_before_anything_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path, "steps: 10\ncheckpoint_every: 100\nclip_norm: 1\n")
    with pytest.raises(UserError, match="`checkpoint_every` is 100, but the run ends after 12"):
        read_recipe(path)
    recipe = read_recipe(path, {"steps": 1000, "data": "/text"})
    assert (recipe.steps, recipe.checkpoint_every, recipe.clip_norm) == (1000, 100, 1.0)
    assert recipe.data == "/text"
    with pytest.raises(UserError) as caught:  # the line is of the file, the value is not
        read_recipe(path, {"steps": 0})
    assert "`steps`" in caught.value.message


WRONG = [
    ("steps: 5\nlerning_rate: 1e-3\n", "recipe.yaml:2: unknown key `lerning_rate`", "`learning_rate`"),
    ("seed: 1\nlearning_rate: -1e-3\n", "recipe.yaml:2: `learning_rate`: input should be greater than or equal to 0", None),
    ("learning_rate: '1e-3'\n", "recipe.yaml:1: `learning_rate`: input should be a valid number", None),
    ("warmup: 1\n", "recipe.yaml:1: `warmup`: input should be greater than or equal to 2", None),
    ("steps: 1.5\n", "recipe.yaml:1: `steps`: input should be a valid integer", None),
    ("lr_schedule: linear\n", "recipe.yaml:1: `lr_schedule`: input should be 'constant', 'cosine' or 'wsd'", None),
    ("beta2: 1.0\n", "recipe.yaml:1: `beta2`: input should be less than 1", None),
    ("epsilon: 0\n", "recipe.yaml:1: `epsilon`: input should be greater than 0", None),
    ("keep_checkpoints: 0\n", "recipe.yaml:1: `keep_checkpoints`: input should be greater than or equal to 1", None),
    ("record_routing: 2\n", "recipe.yaml:1: `record_routing`: input should be less than or equal to 1, not `2`", None),
    ("trace: 1\n", "recipe.yaml:1: `trace`: input should be a valid boolean", None),
    ("data: 7\n", "recipe.yaml:1: `data`: input should be a valid string", None),
    ("- steps\n", "recipe.yaml:1: ", None),
    ("steps: 1\nsteps: 2\n", "recipe.yaml:2: key `steps` is given twice", None),
    ("kind: plan\nid: p-1\n", "recipe.yaml: this is a `plan` file, not a `recipe` file", None),
    ('format_version: "2.0"\n', "recipe.yaml:1: `format_version`: input should be '1.0'", None),
    ("lr_warmup_steps: 13\n", "recipe.yaml: `lr_warmup_steps` is 13, but the schedule has 12 steps", "`lr_total_steps`"),
    ("lr_schedule: wsd\nlr_warmup_steps: 11\n", "recipe.yaml: `lr_warmup_steps` is 11, but the decay over 0.1 of 12 steps begins before", None),
    ("checkpoint_every: 13\n", "recipe.yaml: `checkpoint_every` is 13, but the run ends after 12 steps", "raise `steps`"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message", "hint"), WRONG)
def test_a_fault_names_its_line(
    text: str, message: str, hint: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_recipe(Path("recipe.yaml"))
    assert str(caught.value).startswith(message)
    assert hint is None or hint in (caught.value.hint or "")


def test_values_of_the_command_line_have_the_same_bounds() -> None:
    with pytest.raises(UserError) as caught:
        recipe_of({"learning_rate": float("nan")})
    assert str(caught.value).startswith("command line: `learning_rate`: ")
    with pytest.raises(UserError, match="command line: `checkpoint_every` is 50"):
        recipe_of({"checkpoint_every": 50})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot read the file"):
        read_recipe(tmp_path)


def test_warm_up_and_decay_may_meet() -> None:
    changes = {"lr_schedule": "wsd", "wsd_decay_share": 0.5, "lr_total_steps": 20}
    assert recipe_of(changes | {"lr_warmup_steps": 10}).decay_start == 10
    with pytest.raises(UserError):
        recipe_of(changes | {"lr_warmup_steps": 11})


KEYS = sorted(to_plain(Recipe()))
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@fuzz
@given(st.dictionaries(st.sampled_from([*KEYS, "stepz"]), VALUES | st.lists(VALUES, max_size=2)))
def test_whatever_a_file_holds_it_is_read_or_a_user_error(tree: dict[str, object]) -> None:
    with contextlib.suppress(UserError):
        recipe = recipe_of(json.loads(json.dumps(tree)))
        assert recipe.total_steps >= 3
        assert decode(Recipe, encode(recipe), "recipe.json") == recipe
