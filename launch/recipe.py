"""What to train with, apart from the plan: data, length, optimizer, checkpoints.

`recipe.yaml` is written by hand and strict: unknown keys and values out of bounds name their line.
Whatever is left out has its default, which changes nothing of a plain run. Paths in it start at the
folder of the file. A run's own `recipe.json`, beside its `plan.json`, is all that its workers read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from profiler.codec import build, parse, read_text, record
from profiler.errors import UserError, other_kind
from profiler.yaml_nodes import Lines

FILE_NAME = "recipe.json"
MAX_STEPS = 10**9
COMMAND_LINE = "command line"
"""What errors call the flags."""


@record
class Recipe:
    """Content of `recipe.yaml` and of a run's `recipe.json`."""

    format_version: Literal["1.0"] = "1.0"
    kind: Literal["recipe"] = "recipe"
    data: str = ""
    """Text or token file (`launch.tokens` lists the formats); empty: the bundled sonnets."""
    steps: Annotated[int, Ge(1), Le(10**7)] = 10
    """Timed optimizer steps."""
    warmup: Annotated[int, Ge(2), Le(10**7)] = 2
    """Steps before them, observed but not timed; the second takes the memory."""
    seed: Annotated[int, Ge(0), Le(2**31)] = 0
    """Of weights and data order."""
    learning_rate: Annotated[float, Ge(0)] = 3e-4
    """Of AdamW, at the peak of its schedule."""
    lr_schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """What follows the warm-up of the learning rate: nothing, a cosine, or stable then decay."""
    lr_warmup_steps: Annotated[int, Ge(0), Le(MAX_STEPS)] = 0
    """First steps, in which the learning rate rises linearly."""
    lr_total_steps: Annotated[int, Ge(0), Le(MAX_STEPS)] = 0
    """Steps after which the schedule has ended; 0: the run's own length."""
    wsd_decay_share: Annotated[float, Gt(0), Le(1)] = 0.1
    """Share of the schedule's steps in the final decay of `wsd`. A tenth is enough (Hu et al. 2024,
    MiniCPM, arXiv:2404.06395).
    """
    min_lr_ratio: Annotated[float, Ge(0), Le(1)] = 0.1
    """Last learning rate of `cosine` and `wsd` over the highest. A tenth is that of Llama 2
    (Touvron et al. 2023, arXiv:2307.09288, section 2.2).
    """
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Of matrices; norms and biases do not decay."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.95
    epsilon: Annotated[float, Gt(0)] = 1e-8
    """Added to the root of the second moment (Kingma and Ba 2015, arXiv:1412.6980)."""
    clip_norm: Annotated[float, Ge(0)] = 0.0
    """Norm of the whole gradient above which it is scaled down; 0: never."""
    checkpoint_every: Annotated[int, Ge(0), Le(10**7)] = 0
    """Steps from one checkpoint to the next; 0: none is written."""
    keep_checkpoints: Annotated[int, Ge(1), Le(10**6)] = 2
    """How many of the newest are kept."""
    max_restarts: Annotated[int, Ge(0), Le(1000)] = 0
    """How often torchrun starts all ranks again after one failed."""
    rebalance_experts_every: Annotated[int, Ge(0), Le(10**7)] = 0
    """Steps from one look at the routing to the next, at which experts move to where they are
    level where that pays; 0: they stay where the plan has them."""
    rebalance_experts_gain: Annotated[float, Ge(0)] = 1.0
    """So many times its own predicted seconds a move must save until the next look."""
    weights: str = ""
    """Hugging Face folder of the weights to start from; empty: random ones."""
    resume: str = ""
    """Folder of a run, or of one of its checkpoints, whose state to go on from; empty: none."""
    trace: bool = False
    """Write a Chrome trace of the run."""
    record_routing: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of each step's tokens whose experts are recorded, into the run's `routing.npz`; 0:
    none."""

    def __post_init__(self) -> None:
        if self.resume and self.weights:
            raise UserError(
                "`resume` and `weights` both say where to start from",
                hint="a checkpoint to resume from has its own weights: leave `weights` out",
            )
        if self.lr_warmup_steps > self.lr_steps:
            raise UserError(
                f"`lr_warmup_steps` is {self.lr_warmup_steps}, "
                f"but the schedule has {self.lr_steps} steps",
                hint="lower it, or raise `steps` or `lr_total_steps`",
            )
        if self.lr_schedule == "wsd" and self.lr_warmup_steps > self.decay_start:
            raise UserError(
                f"`lr_warmup_steps` is {self.lr_warmup_steps}, but the decay over "
                f"{self.wsd_decay_share:g} of {self.lr_steps} steps begins before it ends",
                hint="lower it or `wsd_decay_share`, or raise `steps` or `lr_total_steps`",
            )
        if self.checkpoint_every > self.total_steps:
            raise UserError(
                f"`checkpoint_every` is {self.checkpoint_every}, "
                f"but the run ends after {self.total_steps} steps",
                hint="lower it, or raise `steps`",
            )

    @property
    def total_steps(self) -> int:
        """Steps of the run: warm-up and timed."""
        return self.warmup + self.steps

    @property
    def lr_steps(self) -> int:
        """Steps of the learning rate's schedule."""
        return self.lr_total_steps or self.total_steps

    @property
    def decay_start(self) -> float:
        """Step at which the final decay of `wsd` begins; not whole where the share is not."""
        return self.lr_steps * (1.0 - self.wsd_decay_share)

    @property
    def data_file(self) -> Path:
        """The text or token file."""
        return Path(self.data) if self.data else bundled_text()

    @property
    def resume_folder(self) -> Path | None:
        """Run or checkpoint to go on from; None: a fresh start."""
        return Path(self.resume) if self.resume else None

    @property
    def weights_folder(self) -> Path | None:
        """Where to take the first weights from; None: they are random."""
        return Path(self.weights) if self.weights else None


def bundled_text() -> Path:
    """The text that comes with the project: beside the runtime in a wheel, else in `examples/`."""
    root = Path(__file__).resolve().parent
    packed = root / "runtime" / "sonnets.txt"
    return packed if packed.exists() else root.parent / "examples" / "text" / "sonnets.txt"


def read_recipe(path: Path, changes: Mapping[str, object] | None = None) -> Recipe:
    """A recipe file, JSON where its name ends in `.json` and else YAML; `changes` (field -> value)
    win over it, before anything is checked.

    Raises `UserError` with file and line.
    """
    name, changes = str(path), dict(changes or {})
    text = read_text(path)
    tree, lines = parse(text, name)
    if tree is None:  # a YAML file of nothing but comments
        tree = {}
    kind = tree.get("kind", "recipe") if isinstance(tree, dict) else "recipe"
    if isinstance(kind, str) and kind != "recipe":
        raise other_kind(kind, "recipe", name)
    if isinstance(tree, dict):
        tree = _from_folder(tree, path.parent) | changes
    own: Lines = {at: line for at, line in lines.items() if at[:1] not in {(k,) for k in changes}}
    return build(Recipe, tree, name, lines=own, text=text)


def recipe_of(changes: Mapping[str, object]) -> Recipe:
    """The defaults with some fields changed; `UserError` where they are out of bounds."""
    return build(Recipe, dict(changes), COMMAND_LINE)


def _from_folder(tree: dict[str, object], folder: Path) -> dict[str, object]:
    """The tree with its paths made absolute."""
    paths = {k: v for k in ("data", "weights", "resume") if isinstance(v := tree.get(k), str) and v}
    return tree | {k: str((folder / v).absolute()) for k, v in paths.items()}
