"""Training samples from a text or a token file (`launch.tokens` lists the formats).

Sample i of step t starts at a position drawn from a generator seeded by (seed, t, i) alone, so
that the global batch of a step is the same in every layout; replica d takes the contiguous slice
d of it.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from launch.tokens import Ids, open_tokens
from profiler.job import JobSpec
from profiler.model import ModelSpec


class TokenData:
    """Batches of one replica from a memory-mapped file.

    Raises `UserError` where `launch.tokens.open_tokens` refuses the file, and from `batch` where a
    long file turns out to hold tokens that the model has not.
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
        self._file = open_tokens(path, model, job)
        self._seq_len, self._seed = job.seq_len, seed
        per_replica = job.global_batch // num_replicas
        self._samples = range(replica * per_replica, (replica + 1) * per_replica)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (the next token) of a step, int64 [samples of the replica, s] each."""
        rows = np.stack([self._sample(step, i) for i in self._samples]).astype(np.int64)
        tokens = torch.from_numpy(rows)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _sample(self, step: int, index: int) -> Ids:
        generator = np.random.default_rng((self._seed, step, index))
        start = int(generator.integers(len(self._file.ids) - self._seq_len))
        return self._file.read(start, self._seq_len + 1)
