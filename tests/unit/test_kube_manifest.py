"""Manifests against the models that Kubeflow publishes of its resources, and states of jobs.

The models are made from the definitions of the resources: missing fields and wrong types are
refused by them, and unknown fields are what they do not give back.
"""

import copy
import json
from pathlib import Path

import kubeflow.training.models as training
import pytest
import yaml
from kubeflow_trainer_api import models as trainer
from kubernetes import client

from launch.framework.native import RankProgram
from launch.scheduler import kubernetes
from launch.scheduler.kube_manifest import MANIFESTS, PodOptions, manifest_text
from profiler.catalog import resolve_cluster
from profiler.codec import replace
from tests.unit.runs import job_of, plan_of

PODS = PodOptions(image="registry/meshwright:1", claim="shared", mount=Path("/shared"))


SCRIPT = ("bash", "/shared/runs/p-1/train.sh")
OF_FRAMEWORK = RankProgram(
    torchrun=(*SCRIPT, "torchrun"), interpreter=SCRIPT, argv=(), env=(), reads_node=True
)


def documents(manifest, cluster="h100-2x2", program=None):
    plan = replace(plan_of(), cluster=resolve_cluster(cluster))
    job = replace(job_of(plan), program=program)
    return list(yaml.safe_load_all(manifest_text(manifest, job, PODS, "p-1")))


def as_published(document):
    """What the published model makes of a document."""
    kind = document["kind"]
    if kind != "PyTorchJob":
        name = "JobsetV1alpha2JobSet" if kind == "JobSet" else f"TrainerV1alpha1{kind}"
        return getattr(trainer, name).from_dict(document).to_dict()
    api = client.ApiClient(client.Configuration())
    types = vars(client.models) | vars(training)
    return api.sanitize_for_serialization(_made(document, "KubeflowOrgV1PyTorchJob", types, api))


def _made(plain, name, types, api):
    """An object of a model of kubeflow-training, which knows core types by name alone."""
    if name.startswith("dict("):
        inner = name.removeprefix("dict(str, ").removesuffix(")")
        return {key: _made(value, inner, types, api) for key, value in plain.items()}
    model = types.get(name)
    if model is None or name.startswith("V1"):
        return api._ApiClient__deserialize(plain, name)
    names = {model.attribute_map[field]: field for field in model.openapi_types}
    return model(
        **{
            names[key]: _made(value, model.openapi_types[names[key]], types, api)
            for key, value in plain.items()
            if key in names
        }
    )


def lost(given, back, path=""):
    """Fields of `given` that did not come back."""
    if isinstance(given, dict):
        return [
            name
            for key, value in given.items()
            for name in (
                lost(value, back[key], f"{path}.{key}")
                if isinstance(back, dict) and key in back
                else [f"{path}.{key}"]
            )
        ]
    if isinstance(given, list):
        return [
            name
            for i, (a, b) in enumerate(zip(given, back, strict=True))
            for name in lost(a, b, f"{path}[{i}]")
        ]
    return [] if str(given) == str(back) else [f"{path}: {given!r} is {back!r}"]


@pytest.mark.parametrize("program", [None, OF_FRAMEWORK], ids=["runtime", "framework"])
@pytest.mark.parametrize("cluster", ["cpu-2x2", "h100-2x2"])
@pytest.mark.parametrize("manifest", MANIFESTS)
def test_the_published_models_know_all_fields(manifest, cluster, program):
    for document in documents(manifest, cluster, program):
        assert lost(document, as_published(document)) == []


PODS_OF = {
    "PyTorchJob": ("spec", "pytorchReplicaSpecs", "Worker", "template", "spec"),
    "JobSet": ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec"),
    "TrainingRuntime": (
        *("spec", "template", "spec", "replicatedJobs", 0, "template", "spec"),
        *("template", "spec"),
    ),
    "TrainJob": ("spec", "trainer"),
}


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_field_that_is_none_is_seen(manifest):
    """The test above can fail: in the pods, and at the top."""
    for document in documents(manifest):
        for path in (PODS_OF[document["kind"]], ("spec",)):
            wrong = copy.deepcopy(document)
            place = wrong
            for key in path:
                place = place[key]
            place["nodeSelektor"] = {"a": "b"}
            assert [name.rpartition(".")[2] for name in lost(wrong, as_published(wrong))] == [
                "nodeSelektor"
            ]


@pytest.mark.parametrize(
    ("manifest", "number", "path", "value"),
    [
        ("jobset", 0, ("spec", "replicatedJobs", 0, "template", "spec", "parallelism"), "two"),
        ("trainjob", 1, ("spec", "trainer", "numNodes"), "two"),
        ("trainjob", 1, ("spec", "runtimeRef"), None),
        ("pytorchjob", 0, ("spec", "pytorchReplicaSpecs"), None),
    ],
)
def test_what_is_wrong_is_refused(manifest, number, path, value):
    document = documents(manifest)[number]
    place = document
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    with pytest.raises(ValueError, match=r"valid|None"):
        as_published(document)


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_one_node_needs_no_meeting(manifest):
    text = json.dumps(documents(manifest, "cpu-1x4"))
    assert "--standalone" in text
    assert "--node-rank" not in text
    assert "Worker" not in text
    assert "nvidia.com/gpu" not in text


def condition(kind, status="True"):
    return {"type": kind, "status": status}


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, "pending"),
        ({"conditions": [condition("Created"), condition("Running")]}, "running"),
        ({"conditions": [condition("Running", "False"), condition("Succeeded")]}, "complete"),
        ({"conditions": [condition("Running", "False"), condition("Failed")]}, "failed"),
        ({"replicatedJobsStatus": [{"name": "node", "active": 2, "ready": 2}]}, "running"),
        ({"replicatedJobsStatus": [{"name": "node", "active": 0}]}, "pending"),
        ({"conditions": [condition("Completed")]}, "complete"),
        ({"jobsStatus": [{"name": "node", "active": 1}]}, "running"),
        ({"conditions": [condition("Complete")]}, "complete"),
        ({"conditions": [condition("Suspended"), condition("Failed", "False")]}, "pending"),
    ],
)
def test_states_of_jobs(status, state):
    assert kubernetes.state_in(json.dumps({"kind": "Job", "status": status})) == state
    assert kubernetes.state_in("") is None
