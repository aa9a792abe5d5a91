"""`launch --on kubernetes` with a program of the test's in the place of kubectl."""

import json
import stat

import pytest

from launch.scheduler import kubernetes
from profiler.codec import encode
from tests.unit.runs import plan_of, run_of

KUBERNETES = ("--on", "kubernetes", "--image", "i", "--claim", "shared", "--namespace", "team")
KUBECTL = """\
#!/bin/sh
echo "$@" >> {folder}/asked
case $1 in
  create) cat {folder}/created; exit $(cat {folder}/create-status) ;;
  get) cat {folder}/job ;;
esac
"""


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """Its folder: `job` is what `get` prints, `asked` what was asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "kubectl"
    program.write_text(KUBECTL.format(folder=folder))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / "created").write_text("")
    (folder / "create-status").write_text("0")
    (folder / "job").write_text("")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(kubernetes, "POLL_S", 0.05)
    (tmp_path / "plan.json").write_text(encode(plan_of()))
    return folder


def job(folder, *conditions):
    """What `kubectl get` prints from now on."""
    true = [{"type": name, "status": "True", "message": "A pod died."} for name in conditions]
    (folder / "job").write_text(json.dumps({"status": {"conditions": true}}))


def the_run(tmp_path):
    (run,) = (tmp_path / "runs").iterdir()
    return run, json.loads((run / "status.json").read_text())


def test_a_job_that_fails(kubectl, meshwright, tmp_path):
    job(kubectl, "Failed")
    result = meshwright("launch", "plan.json", *KUBERNETES)
    assert result.code == 1
    run, status = the_run(tmp_path)
    assert f"the run failed: job {run.name} failed: A pod died after 0 of" in result.err
    assert (status["state"], status["job"]) == ("failed", f"team/pytorchjob/{run.name}")
    asked = (kubectl / "asked").read_text().splitlines()
    assert asked[0] == f"create -f {run / 'job.yaml'}"
    assert asked[1].startswith(f"get pytorchjob {run.name} --namespace=team")


def test_a_job_that_ends_without_steps_has_failed(kubectl, meshwright):
    job(kubectl, "Succeeded")
    result = meshwright("launch", "plan.json", *KUBERNETES)
    assert (result.code, "ranks ended without all their steps" in result.err) == (1, True)


def test_a_job_that_somebody_deletes_was_stopped(kubectl, meshwright, tmp_path):
    result = meshwright("launch", "plan.json", *KUBERNETES)
    assert result.code == 130
    assert the_run(tmp_path)[1]["state"] == "interrupted"


def test_what_kubectl_refuses_is_one_error(kubectl, meshwright, tmp_path):
    (kubectl / "create-status").write_text("1")
    (kubectl / "kubectl").write_text(
        (kubectl / "kubectl").read_text().replace("exit $(", "echo 'no such kind' >&2; exit $(")
    )
    result = meshwright("launch", "plan.json", *KUBERNETES)
    assert result.code == 1
    assert result.err.startswith("error: kubectl did not create the job: no such kind\n")
    assert the_run(tmp_path)[1]["state"] == "failed"


def test_status_and_stop_ask_kubectl(kubectl, meshwright, tmp_path):
    name = "team/trainjob/p-1"
    run = run_of(plan_of(), tmp_path / "r", 4, scheduler="kubernetes", job=name, started=1)
    job(kubectl, "Running")
    report = json.loads(meshwright("launch", "--status", run, "--json").out)
    assert (report["state"], report["job"], report["steps_done"]) == ("running", name, 4)
    job(kubectl)
    assert json.loads(meshwright("launch", "--status", run, "--json").out)["state"] == "pending"
    stopped = meshwright("launch", "--stop", run)
    assert (stopped.code, stopped.out.splitlines()[0].endswith("interrupted")) == (0, True)
    deleted = [
        line for line in (kubectl / "asked").read_text().splitlines() if line.startswith("delete")
    ]
    assert [line.split()[1:4] for line in deleted] == [
        ["trainjob", "p-1", "--namespace=team"],
        ["trainingruntime", "p-1", "--namespace=team"],
    ]
