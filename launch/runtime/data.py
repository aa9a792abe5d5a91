"""Training text as a stream of bytes: token = byte, vocabulary of 256.

Sample i of step t starts at a position drawn from a generator seeded by (seed, t, i) alone, so
that the global batch of a step is the same in every layout; replica d takes the contiguous slice
d of it.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec

NUM_BYTES = 256


class TextData:
    """Batches of one replica from a memory-mapped file.

    Raises `UserError` where the file is missing, empty or shorter than a sample, or the
    vocabulary too small.
    """

    def __init__(
        self,
        path: Path,
        model: ModelSpec,
        job: JobSpec,
        *,
        seed: int,
        replica: int,
        num_replicas: int,
    ) -> None:
        if model.vocab_size < NUM_BYTES:
            raise UserError(
                f"model `{model.name}` has {model.vocab_size} vocabulary entries, "
                f"but the text has a token for each of {NUM_BYTES} bytes"
            )
        self._tokens = _map(path)
        if len(self._tokens) < job.seq_len + 1:
            raise UserError(
                f"{len(self._tokens)} bytes are too few for "
                f"a sequence of {job.seq_len} tokens and its target",
                hint="give a longer text, or plan with a shorter sequence",
                place=str(path),
            )
        self._seq_len, self._seed = job.seq_len, seed
        per_replica = job.global_batch // num_replicas
        self._samples = range(replica * per_replica, (replica + 1) * per_replica)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (the next token) of a step, int64 [samples of the replica, s] each."""
        rows = np.stack([self._sample(step, i) for i in self._samples]).astype(np.int64)
        tokens = torch.from_numpy(rows)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _sample(self, step: int, index: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        generator = np.random.default_rng((self._seed, step, index))
        start = int(generator.integers(len(self._tokens) - self._seq_len))
        return self._tokens[start : start + self._seq_len + 1]


def _map(path: Path) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    try:
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            raise UserError("the text is empty", place=str(path))
        return np.memmap(path, dtype=np.uint8, mode="r")
    except FileNotFoundError:
        raise UserError(f"no such file: `{path}`", hint="check the path of the text") from None
    except OSError as e:
        reason = (e.strerror or "it is not a file").lower()
        raise UserError(f"cannot read the text: {reason}", place=str(path)) from None
