"""Boxes of tensors in PyTorch's distributed checkpoints (DCP).

DCP asks what it saves for its write items, chunks and shards by name
(`torch.distributed._checkpointable._Checkpointable`); a `Box` answers for a rank that holds some
boxes of a tensor, wherever they lie.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list


class Box:
    """This rank's boxes of one canonical tensor, as DCP wants them (`_Checkpointable`)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = torch.Size(shape)
        self._parts: dict[tuple[int, ...], Tensor] = {}

    def add(self, offset: tuple[int, ...], part: Tensor) -> bool:
        """Add a box; False where there is one at that offset already."""
        return self._parts.setdefault(offset, part) is part

    def size(self) -> torch.Size:
        """Of the whole tensor."""
        return self._shape

    def copy(self) -> "Box":
        """With storage of its own on the CPU."""
        twin = Box(tuple(self._shape))
        for offset, part in self._parts.items():
            twin.add(offset, part.detach().to("cpu", copy=True).contiguous())
        return twin

    def _chunk(self, offset: tuple[int, ...]) -> ChunkStorageMetadata:
        size = self._parts[offset].size()
        return ChunkStorageMetadata(offsets=torch.Size(offset), sizes=size)

    def __create_write_items__(self, fqn: str, _object: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, torch.Size(offset)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=self._chunk(offset),
                    properties=TensorProperties(dtype=part.dtype),
                    size=self._shape,
                ),
            )
            for offset, part in self._parts.items()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk(offset) for offset in self._parts]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return self._parts[tuple(index.offset or ())]


class BoxSavePlanner(DefaultSavePlanner):
    """Finds boxes, which are no tensors."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        box: Box = self.state_dict[index.fqn]
        return box.__get_tensor_shard__(index)


class BoxLoadPlanner(DefaultLoadPlanner):
    """Finds boxes, which are no tensors."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:  # fmt: skip
        self.state_dict, self.original_state_dict = state_dict, state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        if self.metadata is None:
            raise ValueError("the planner was not set up")
        items: list[ReadItem] = []
        for name, box in self.state_dict.items():
            saved = self.metadata.state_dict_metadata[name]
            if not isinstance(saved, TensorStorageMetadata):
                raise ValueError(f"`{name}` is not a tensor in the checkpoint")
            items += create_read_items_for_chunk_list(name, saved, box.__create_chunk_list__())
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        box: Box = self.state_dict[index.fqn]
        return box.__get_tensor_shard__(index)
