"""What `launch` asks of whatever starts the ranks: this machine, ssh, Slurm, Kubernetes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

from launch.framework.native import RankProgram, runtime
from launch.recipe import Recipe
from planner.plan import Plan

SchedulerName = Literal["local", "ssh", "slurm", "kubernetes"]
OnLine = Callable[[str], None]
TAIL_LINES = 10_000
"""Of a host's output, kept for finding what ended it."""
LOG_NAME = "run.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run that is to start, in a folder that all its hosts see."""

    plan: Plan
    recipe: Recipe
    run_dir: Path
    program: RankProgram | None = None
    """What its ranks run; None: the reference runtime."""

    def program_of(self, python: str) -> RankProgram:
        """What its ranks run, the reference runtime with that interpreter."""
        return self.program or runtime(self.run_dir, python)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How it ended: 0 or another status, and what is known of the reason."""

    code: int
    fault: str = ""


class Scheduler(Protocol):
    """Starts a run, waits for it, ends it."""

    @property
    def name(self) -> SchedulerName:
        """As `--on` names it."""

    def ready(self, plan: Plan, runs: Path) -> Self:
        """Itself, with what was found out for the run, which may use no other; `UserError` where
        the plan cannot run there. Starts nothing and leaves no file."""

    def files(self, job: Job) -> dict[str, str]:
        """Name -> text of what `run` starts; also for people to read, and to start by hand."""

    def run(self, job: Job, on_line: OnLine, on_job: OnLine) -> Ended:
        """Run to the end. `on_line` gets each line that the ranks print, `on_job` once the name by
        which the scheduler knows the run.

        KeyboardInterrupt (also from SIGTERM, SIGHUP) ends all processes and is raised again.
        """
