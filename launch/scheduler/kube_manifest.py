"""A plan as a manifest of Kubernetes: PyTorchJob, JobSet or TrainJob.

Every pod is a node of the plan and runs one torchrun. Its number and the address of the first pod
come from what each controller puts into the environment:

pytorchjob  kubeflow.org/v1 (Kubeflow training operator): RANK, MASTER_ADDR and MASTER_PORT; RANK
            is the pod's number
jobset      jobset.x-k8s.io/v1alpha2: JOB_COMPLETION_INDEX, and a name for each pod
trainjob    trainer.kubeflow.org/v1alpha1 (Kubeflow Trainer 2) with a runtime of its own:
            PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT

Kubernetes itself fills `$(NAME)` of the environment into a command's words.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from launch.framework.native import DEFAULT_PORT, Meeting, agents_of, check_alike
from launch.scheduler.base import Job
from profiler.errors import UserError

Manifest = Literal["pytorchjob", "jobset", "trainjob"]
MANIFESTS: tuple[Manifest, ...] = get_args(Manifest)
Plain = dict[str, Any]
_VOLUME = "runs"
_JOB = "node"
"""Name of the replicated job of a JobSet, and of its container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodOptions:
    """What the user chooses of the pods."""

    image: str
    """With meshwright and torch installed, or the framework that the job is for."""
    claim: str
    """PersistentVolumeClaim that all pods mount."""
    mount: Path
    """Where; the folder of runs lies in it, here as in the pods."""
    python: str = "python"
    namespace: str = ""
    """Empty: the current one of kubectl."""


def manifest_text(manifest: Manifest, job: Job, how: PodOptions, name: str) -> str:
    """The YAML, of one document or two; `UserError` for a plan that no one pod template fits."""
    agents = agents_of(job.plan)
    if len({agent.num_ranks for agent in agents}) > 1:
        raise UserError(
            f"plan `{job.plan.id}` has nodes with unlike numbers of ranks, and pods are alike",
            hint="plan for whole nodes of one size",
        )
    check_alike(job.plan, "Kubernetes", "launch it with `--on ssh` or `--on slurm`")
    if not job.run_dir.is_relative_to(how.mount):
        of, option = f"of runs `{job.run_dir.parent}`", "--runs"
        if job.program is not None:
            of, option = f"`{job.run_dir}`", "-o"
        raise UserError(
            f"the folder {of} is not in `{how.mount}`, where the claim `{how.claim}` is mounted",
            hint=f"`--claim NAME:PATH` mounts it elsewhere, `{option}` names another folder",
        )
    made = {"pytorchjob": _pytorchjob, "jobset": _jobset, "trainjob": _trainjob}[manifest]
    documents = made(job, how, name, len(agents))
    for document in documents:
        if how.namespace:
            document["metadata"]["namespace"] = how.namespace
    return yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, width=1000)


class _Plain(yaml.SafeDumper):
    """Writes out what two places share."""

    def ignore_aliases(self, data: object) -> bool:
        """None are written."""
        return True


def _pod(job: Job, how: PodOptions, container: str, meeting: Meeting) -> Plain:
    """Pod template."""
    return {"spec": _pod_spec(job, how, container) | {"containers": [
        _container(job, how, container) | {"command": _command(job, how, meeting)}
    ]}}  # fmt: skip


def _pod_spec(job: Job, how: PodOptions, container: str) -> Plain:
    claim = {"claimName": how.claim}
    return {"volumes": [{"name": _VOLUME, "persistentVolumeClaim": claim}]}


def _container(job: Job, how: PodOptions, name: str) -> Plain:
    made: Plain = {
        "name": name,
        "image": how.image,
        "env": [{"name": key, "value": value} for key, value in job.program_of(how.python).env],
        "volumeMounts": [{"name": _VOLUME, "mountPath": str(how.mount)}],
    }
    if not made["env"]:
        del made["env"]
    if limits := _limits(job):
        made["resources"] = {"limits": limits}
    return made


def _limits(job: Job) -> Plain:
    """GPUs of a pod, as NVIDIA's device plugin counts them."""
    if job.plan.cluster.groups[0].device.is_host:
        return {}
    return {"nvidia.com/gpu": str(agents_of(job.plan)[0].num_ranks)}


def _command(job: Job, how: PodOptions, meeting: Meeting) -> list[str]:
    program, num_ranks = job.program_of(how.python), agents_of(job.plan)[0].num_ranks
    return [*program.agent(num_ranks, meeting if meeting.num_nodes > 1 else None)]


def _pytorchjob(job: Job, how: PodOptions, name: str, num_nodes: int) -> list[Plain]:
    meeting = Meeting(
        num_nodes=num_nodes, node_rank="$(RANK)", head="$(MASTER_ADDR)", port="$(MASTER_PORT)"
    )
    pod = _pod(job, how, "pytorch", meeting)
    restart = "OnFailure" if job.recipe.max_restarts else "Never"
    counts = {"Master": 1, "Worker": num_nodes - 1}
    replicas = {
        role: {"replicas": count, "restartPolicy": restart, "template": pod}
        for role, count in counts.items()
        if count
    }
    policy: Plain = {"cleanPodPolicy": "Running", "backoffLimit": job.recipe.max_restarts}
    spec = {"runPolicy": policy, "pytorchReplicaSpecs": replicas}
    return [_document("kubeflow.org/v1", "PyTorchJob", name, spec)]


def _jobset(job: Job, how: PodOptions, name: str, num_nodes: int) -> list[Plain]:
    meeting = Meeting(
        num_nodes=num_nodes,
        node_rank="$(JOB_COMPLETION_INDEX)",
        head=f"{name}-{_JOB}-0-0.{name}",
        port=str(DEFAULT_PORT),
    )
    pod = _pod(job, how, _JOB, meeting)
    pod["spec"]["restartPolicy"] = "Never"
    indexed = _indexed(pod, num_nodes)
    spec: Plain = {
        "replicatedJobs": [{"name": _JOB, "replicas": 1, "template": {"spec": indexed}}],
        "failurePolicy": {"maxRestarts": job.recipe.max_restarts},
    }
    return [_document("jobset.x-k8s.io/v1alpha2", "JobSet", name, spec)]


def _indexed(pod: Plain, num_nodes: int) -> Plain:
    """A Job whose pods have numbers; one that fails ends it, and so the JobSet."""
    count = {"parallelism": num_nodes, "completions": num_nodes}
    return {**count, "completionMode": "Indexed", "backoffLimit": 0, "template": pod}


def _trainjob(job: Job, how: PodOptions, name: str, num_nodes: int) -> list[Plain]:
    meeting = Meeting(
        num_nodes=num_nodes,
        node_rank="$(PET_NODE_RANK)",
        head="$(PET_MASTER_ADDR)",
        port="$(PET_MASTER_PORT)",
    )
    pod = {"spec": _pod_spec(job, how, _JOB) | {
        "restartPolicy": "Never", "containers": [_container(job, how, _JOB)]
    }}  # fmt: skip
    step = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    template = {"metadata": {"labels": step}, "spec": {"backoffLimit": 0, "template": pod}}
    jobs: Plain = {
        "replicatedJobs": [{"name": _JOB, "template": template}],
        "failurePolicy": {"maxRestarts": job.recipe.max_restarts},
    }
    runtime = {
        "mlPolicy": {"numNodes": num_nodes, "torch": {}},
        "template": {"spec": jobs},
    }
    trainer: Plain = {
        "image": how.image,
        "command": _command(job, how, meeting),
        "numNodes": num_nodes,
        "numProcPerNode": agents_of(job.plan)[0].num_ranks,
    }
    if limits := _limits(job):
        trainer["resourcesPerNode"] = {"limits": limits}
    reference = {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": name}
    version = "trainer.kubeflow.org/v1alpha1"
    return [
        _document(version, "TrainingRuntime", name, runtime),
        _document(version, "TrainJob", name, {"runtimeRef": reference, "trainer": trainer}),
    ]


def _document(version: str, kind: str, name: str, spec: Plain) -> Plain:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}
