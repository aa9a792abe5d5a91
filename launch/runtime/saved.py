"""What `torch.save` wrote, as plain values: tensors become numpy arrays.

Loaded with `weights_only=True`, so that a file can run nothing.
"""

import io
import pickle
from typing import Any

import torch

from profiler.errors import UserError


def plain_values(data: bytes, place: str) -> Any:
    """Dicts, lists, numbers, texts and numpy arrays; `UserError` for anything else in it."""
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError,
            AttributeError, IndexError, OSError, AssertionError) as e:  # fmt: skip
        reason = str(e).splitlines()[0][:120] if str(e) else type(e).__name__
        raise UserError(f"torch cannot load the file: {reason}", place=place) from None
    return _plain(found)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        tensor = value.detach()
        return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
