"""`meshwright schema`: the schemas hold for what the commands write and for the examples, and a
changed form of a file shows in the diff of tests/golden/schemas."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from launch.cli.schema import KINDS

ROOT = Path(__file__).resolve().parents[2]
ASK = ("plan", "-m", "llama3-8b", "-c", "h100-2x8", "--global-batch", 256, "--seq-len", 8192)


@pytest.fixture
def schema(meshwright):
    def of(kind: str):
        return json.loads(meshwright("schema", kind).out)

    return of


def allows(schema, document) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(document)


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_frozen(kind, meshwright, golden):
    result = meshwright("schema", kind)
    assert result.code == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(result.out))
    golden(f"schemas/{kind}.json", result.out)


def test_a_plan_is_as_its_schema_says(meshwright, schema, tmp_path):
    assert meshwright(*ASK).code == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert allows(schema("plan"), plan)
    assert allows(schema("profile"), plan["profile"])
    assert not allows(schema("plan"), plan | {"unknown": 1})
    plan["chosen"]["config"]["tp"] = 0
    assert not allows(schema("plan"), plan)


def test_files_written_by_hand(schema):
    clusters = schema("cluster")
    assert allows(
        clusters,
        yaml.safe_load("{name: lab, nodes: [{device: h100, count: 2, devices_per_node: 8}]}"),
    )
    assert allows(clusters, yaml.safe_load("{name: lab, nodes: [{node: aws-p5, count: 2}]}"))
    assert not allows(clusters, yaml.safe_load("{name: lab, nodes: [{device: h100, count: 2}]}"))
    recipe = next(ROOT.glob("examples/*/recipe.yaml"))
    assert allows(schema("recipe"), yaml.safe_load(recipe.read_text()))
    assert not allows(schema("recipe"), {"steps": 0})


def test_the_list_and_an_unknown_kind(meshwright):
    listed = meshwright("schema").out.splitlines()
    assert [line.split()[0] for line in listed] == list(KINDS)
    assert max(map(len, listed)) <= 80
    result = meshwright("schema", "plans")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: there is no schema of `plans`")
