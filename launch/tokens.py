"""Files of training tokens, memory-mapped and checked without torch.

The ending of its name says what a file is:

    NAME.bin   raw little-endian integers; NAME.bin.json says {"dtype": "uint16", "vocab_size": N}
    NAME.npy   a one-dimensional NumPy array of uint16, uint32 or int32
    others     text: a token per byte, a vocabulary of 256

Two lines of numpy make a token file from the ids that a tokenizer gives:

    ids = np.array(tokenizer.encode(text), dtype=np.uint16)   # uint32 from 65,536 entries on
    np.save("corpus.npy", ids)       # or ids.tofile("corpus.bin"), and its .json by hand
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt, Le
from numpy.typing import NDArray

from profiler.codec import decode, read_text, record
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec

Ids = NDArray[np.unsignedinteger | np.signedinteger]

NUM_BYTES = 256
NPY_DTYPES = ("uint16", "uint32", "int32")
CHECKED_TOKENS = 2**24
"""A file of at most so many tokens is checked whole when it is opened: some 10 ms. Of a longer one
each sample is checked when it is read."""

_HINT = "give text or tokens with `--data FILE`"


@record
class TokenHeader:
    """Content of `NAME.bin.json`."""

    dtype: Literal["uint16", "uint32"]
    vocab_size: Annotated[int, Gt(0), Le(2**32)]
    """Entries of the tokenizer: every token is smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFile:
    """A mapped file that fits a model and a job."""

    path: Path
    ids: Ids
    vocab_size: int
    """Of the model."""
    is_checked: bool
    """No token is outside the vocabulary."""

    def read(self, start: int, num: int) -> Ids:
        """`num` tokens from `start` on; `UserError` naming the first outside the vocabulary."""
        found = self.ids[start : start + num]
        if not self.is_checked:
            _check_ids(found, self.vocab_size, self.path, start)
        return found


def open_tokens(path: Path, model: ModelSpec, job: JobSpec) -> TokenFile:
    """Map a text or token file.

    Raises `UserError` where it is missing or broken, does not fill one sequence and its target, or
    has tokens that the model's vocabulary has not.
    """
    ids = _FORMATS.get(path.suffix, _text)(path, model)
    if len(ids) <= job.seq_len:
        unit = "tokens" if path.suffix in _FORMATS else "bytes of text"
        raise UserError(
            f"{len(ids)} {unit} do not fill one sequence of {job.seq_len} + 1 tokens",
            hint="give a longer file with `--data FILE`, or plan with a shorter sequence",
            place=str(path),
        )
    is_text, is_short = ids.dtype == np.uint8, len(ids) <= CHECKED_TOKENS
    if is_short and not is_text:
        _check_ids(ids, model.vocab_size, path, 0)
    return TokenFile(
        path=path, ids=ids, vocab_size=model.vocab_size, is_checked=is_text or is_short
    )


def _text(path: Path, model: ModelSpec) -> Ids:
    _check_vocabulary(NUM_BYTES, "bytes", path, model)
    return _map_raw(path, np.dtype(np.uint8))


def _bin(path: Path, model: ModelSpec) -> Ids:
    sidecar = path.with_name(f"{path.name}.json")
    if path.is_file() and not sidecar.is_file():
        raise UserError(
            f"there is no `{sidecar.name}` beside it to say what its numbers are",
            hint='write {"dtype": "uint16", "vocab_size": N} there; text has another ending',
            place=str(path),
        )
    _size(path)
    header = decode(TokenHeader, read_text(sidecar), str(sidecar))
    _check_vocabulary(header.vocab_size, "entries of a tokenizer", path, model)
    return _map_raw(path, np.dtype(header.dtype).newbyteorder("<"))


def _npy(path: Path, model: ModelSpec) -> Ids:
    _size(path)
    try:
        ids = np.lib.format.open_memmap(path, mode="r")
    except OSError as e:
        raise _unreadable(path, e) from None
    except Exception:  # numpy's reader raises whatever a broken header makes of it
        raise UserError(
            "not a NumPy array file, or cut off", hint="`numpy.save` writes one", place=str(path)
        ) from None
    if ids.ndim != 1 or ids.dtype.name not in NPY_DTYPES:
        raise UserError(
            f"an array of {ids.ndim} dimensions of {ids.dtype.name[:40]} is not a list of tokens",
            hint=f"save one dimension of {', '.join(NPY_DTYPES)}",
            place=str(path),
        )
    return ids


_FORMATS: dict[str, Callable[[Path, ModelSpec], Ids]] = {".bin": _bin, ".npy": _npy}


def _map_raw(path: Path, dtype: "np.dtype[np.unsignedinteger]") -> Ids:
    size = _size(path)
    if size % dtype.itemsize:
        raise UserError(
            f"{size} bytes are not a whole number of {dtype.name} tokens",
            hint=f"the file is cut off, or `{path.name}.json` names another dtype",
            place=str(path),
        )
    try:
        return np.memmap(path, dtype=dtype, mode="r")
    except OSError as e:
        raise _unreadable(path, e) from None


def _size(path: Path) -> int:
    """Bytes of a file that can be mapped: there, regular and not empty."""
    try:
        size = path.stat().st_size
    except (FileNotFoundError, ValueError):
        raise UserError(f"no such file: `{path}`", hint=_HINT) from None
    except OSError as e:
        raise _unreadable(path, e) from None
    if not path.is_file():
        raise UserError("cannot read the tokens: it is not a file", hint=_HINT, place=str(path))
    if size == 0:
        raise UserError("the file is empty", hint=_HINT, place=str(path))
    return size


def _unreadable(path: Path, e: OSError) -> UserError:
    return UserError(f"cannot read the tokens: {(e.strerror or str(e)).lower()}", place=str(path))


def _check_vocabulary(found: int, what: str, path: Path, model: ModelSpec) -> None:
    if found > model.vocab_size:
        raise UserError(
            f"the file has a token for each of {found} {what}, "
            f"but model `{model.name}` has {model.vocab_size} vocabulary entries",
            place=str(path),
        )


def _check_ids(ids: Ids, vocab_size: int, path: Path, offset: int) -> None:
    """Raise `UserError` for the first token outside the vocabulary; `offset` is where `ids` lie."""
    if int(ids.max()) < vocab_size and int(ids.min()) >= 0:
        return
    at = int(np.argmax((ids < 0) | (ids >= vocab_size)))
    raise UserError(
        f"token {int(ids[at])} at position {offset + at} is outside the model's vocabulary "
        f"of {vocab_size}",
        hint="is the file of the model's own tokenizer?",
        place=str(path),
    )
