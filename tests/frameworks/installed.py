"""Releases of frameworks, each in a folder of its own beside the environment's packages, where
`make` puts what `releases/*.txt` list, without what they depend on: 45 MB instead of 700."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(sys.prefix) / "frameworks"
STAND_INS = Path(__file__).parent / "stand_ins"


def needs(name):
    """Mark of a test that takes one of the folders."""
    missing = not (FOLDER / name).is_dir()
    return pytest.mark.skipif(missing, reason=f"`make frameworks` installs {name}")


def environment(name, *folders, **variables):
    """Of a process in which the release is the one that is imported."""
    own = os.environ.get("PYTHONPATH", "")
    paths = [*map(str, folders), str(FOLDER / name), str(STAND_INS), str(ROOT), *own.split(":")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **variables}


def ask(name, *argv, folders=(), given=None, **variables):
    """What `python ARGV` prints last with the release, as JSON; `given` is JSON on its input."""
    done = subprocess.run(
        [sys.executable, *argv],
        input=None if given is None else json.dumps(given),
        capture_output=True,
        text=True,
        env=environment(name, *folders, **variables),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
