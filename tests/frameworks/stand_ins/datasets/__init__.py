"""What torchtitan asks of Hugging Face datasets, which would bring 200 MB: JSON lines of a folder,
in their order."""

import json
from pathlib import Path


class Dataset(list):
    """Samples."""

    def skip(self, number):
        """Those behind the first ones."""
        return Dataset(self[number:])


def load_dataset(path, *args, **kwargs):
    """All samples of a folder's `.json` files."""
    lines = [
        line for file in sorted(Path(path).glob("*.json")) for line in file.read_text().splitlines()
    ]
    return Dataset(json.loads(line) for line in lines)
