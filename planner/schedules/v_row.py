"""A row of a V-shaped schedule, built action by action; a chunk runs its micro-batches in order."""

from planner.schedules.action import Action, Op


class VRow:
    """The row of one rank as it grows; chunk 0 is on the way down the V, chunk 1 on the way up.

    Micro-batches from `num_microbatches` on are counted but left out: a schedule may need more of
    them than there are, and an order without deadlock has none after whole micro-batches go.
    """

    def __init__(self, rank: int, pp: int, num_microbatches: int) -> None:
        self.actions: list[Action] = []
        self._stages = (rank, 2 * pp - 1 - rank)
        self._num_microbatches = num_microbatches
        self._forwards, self._backwards = [0, 0], [0, 0]
        self._waiting: list[tuple[int, int]] = []  # (chunk, micro-batch) with I done and W not

    def forward(self, chunk: int) -> None:
        """F of the chunk's next micro-batch."""
        self._add(chunk, "F", self._forwards[chunk])
        self._forwards[chunk] += 1

    def backward(self, chunk: int) -> None:
        """B of the chunk's next micro-batch."""
        self._add(chunk, "B", self._backwards[chunk])
        self._backwards[chunk] += 1

    def input_gradient(self, chunk: int) -> None:
        """I of the chunk's next micro-batch; its W waits."""
        self._add(chunk, "I", self._backwards[chunk])
        self._waiting.append((chunk, self._backwards[chunk]))
        self._backwards[chunk] += 1

    def weight_gradient(self, chunk: int | None = None) -> None:
        """The W that has waited longest, of one chunk or of both; nothing where none waits."""
        for at, (of, k) in enumerate(self._waiting):
            if chunk in (None, of):
                del self._waiting[at]
                self._add(of, "W", k)
                return

    def _add(self, chunk: int, op: Op, k: int) -> None:
        if k < self._num_microbatches:
            self.actions.append(Action(self._stages[chunk], op, k))
