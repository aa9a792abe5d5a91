"""`python -m tests.frameworks.torchtitan_fields`: list the fields of the installed torchtitan's
configuration, 0.2 or 0.3, which unit tests check emitted files against without it."""

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent


def path_of(release: str) -> Path:
    """List of a release, `torchtitan 0.2.2`."""
    return FOLDER / f"{release.replace(' ', '-')}-fields.json"


def fields() -> dict[str, dict[str, str]]:
    """Table of the TOML, or class of the recipe, -> field -> type."""
    if version("torchtitan").startswith("0.2."):
        from torchtitan.config import JobConfig

        sections = {f.name: f.type for f in dataclasses.fields(JobConfig)}
        return {name: _types(kind) for name, kind in sections.items()}
    from torchtitan.components.checkpoint import CheckpointManager
    from torchtitan.components.metrics import MetricsProcessor
    from torchtitan.components.optimizer import LRSchedulersContainer
    from torchtitan.config import DebugConfig, ParallelismConfig, TrainingConfig
    from torchtitan.trainer import Trainer

    owners = (CheckpointManager, MetricsProcessor, LRSchedulersContainer, Trainer)
    kinds = {f"{owner.__name__}.Config": owner.Config for owner in owners}
    kinds |= {kind.__name__: kind for kind in (DebugConfig, ParallelismConfig, TrainingConfig)}
    return {name: _types(kind) for name, kind in kinds.items()}


def _types(kind: type) -> dict[str, str]:
    return {f.name: str(getattr(f.type, "__name__", f.type)) for f in dataclasses.fields(kind)}


def main() -> None:
    """Write it."""
    text = json.dumps(fields(), indent=1, sort_keys=True)
    path_of(f"torchtitan {version('torchtitan')}").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    from tests.frameworks.titan_on_cpu import on_cpu

    on_cpu()
    main()
