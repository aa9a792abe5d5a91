"""`python -m tests.frameworks.bridge_fields FOLDER...`: list the fields of Megatron-Bridge's
configuration from unpacked wheels of megatron-bridge and megatron-core.

Both import Transformer Engine, which needs a GPU's libraries, so their sources are read instead:
the annotated names of each class and of its bases, through `import ... as ...`.
"""

import ast
import json
import sys
from pathlib import Path

from launch.framework.megatron_bridge import CLASSES, RELEASE

PATH = Path(__file__).parent / f"{RELEASE.replace(' ', '-')}-fields.json"
FILES = (
    "megatron/bridge/training/config.py",
    "megatron/bridge/data/base.py",
    "megatron/bridge/training/tokenizers/config.py",
    "megatron/bridge/models/gpt_provider.py",
    "megatron/bridge/models/mla_provider.py",
    "megatron/core/transformer/transformer_config.py",
    "megatron/core/model_parallel_config.py",
    "megatron/core/distributed/distributed_data_parallel_config.py",
    "megatron/core/optimizer/optimizer_config.py",
    "megatron/core/datasets/gpt_dataset.py",
    "megatron/core/datasets/blended_megatron_dataset_config.py",
    "megatron/training/config/training_config.py",
    "megatron/training/config/common_config.py",
)
NAMES = (
    *CLASSES.values(), "ConfigContainer", "GPTDatasetConfig", "TokenizerConfig",
    "GPTModelProvider", "MLAModelProvider",
)  # fmt: skip


def classes(folders: list[Path]) -> dict[str, tuple[list[str], list[str]]]:
    """`FILE:CLASS` -> its bases, as `CLASS` of any file, and its own fields."""
    found = {}
    for name in FILES:
        path = next(folder / name for folder in folders if (folder / name).exists())
        tree = ast.parse(path.read_text(encoding="utf-8"))
        real = {
            alias.asname: alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if alias.asname
        }
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                bases = [real.get(base.id, base.id) for base in node.bases if hasattr(base, "id")]
                own = [f.target.id for f in node.body if isinstance(f, ast.AnnAssign)]
                found[f"{name}:{node.name}"] = (bases, own)
    return found


def fields(folders: list[Path]) -> dict[str, list[str]]:
    """Class -> its fields, those of its bases among them."""
    known = classes(folders)

    def of(name: str, seen: frozenset[str]) -> set[str]:
        places = [place for place in known if place.endswith(f":{name}") and place not in seen]
        if not places:
            return set()
        bases, own = known[places[0]]
        rest = [of(base, seen | {places[0]}) for base in bases]
        return set(own).union(*rest)

    return {name: sorted(of(name, frozenset())) for name in NAMES}


if __name__ == "__main__":
    text = json.dumps(fields([Path(folder) for folder in sys.argv[1:]]), indent=1)
    PATH.write_text(f"{text}\n", encoding="utf-8")
