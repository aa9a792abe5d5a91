"""A tokenizer with a token per byte, and a data set of sonnets, as torchtitan reads them."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from launch.recipe import bundled_text


def write_tokenizer(folder: Path) -> Path:
    """256 tokens, none of them added: a tiny model has no more."""
    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: k for k, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = {"bos_token": "A", "eos_token": "B", "add_bos_token": True, "add_eos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(ends))
    return folder


def write_data(folder: Path) -> Path:
    """Pieces of 500 characters, a JSON object a line."""
    folder.mkdir()
    text = bundled_text().read_text(encoding="utf-8")
    lines = [json.dumps({"text": text[k : k + 500]}) for k in range(0, 20_000, 500)]
    (folder / "data.json").write_text("".join(f"{line}\n" for line in lines))
    return folder
