"""Arrays of an npz or npy file, read without trust in it.

numpy's own reader allocates what a header claims; here the size that the archive really holds is
compared first, and nothing is ever unpickled.
"""

import io
import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from profiler.errors import UserError

Array = NDArray[Any]
MAX_BYTES = 8 * 2**30
"""Of all arrays of a file together, unpacked."""
_DAMAGES = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError,
    OSError, ValueError, OverflowError,
)  # fmt: skip
"""What zipfile raises on archives that are none, found by fuzzing."""
ZIP, NPY = b"PK\x03\x04", b"\x93NUMPY"


def is_arrays(head: bytes) -> bool:
    """Whether a file that begins so is npz or npy."""
    return head.startswith((ZIP, NPY))


def read_arrays(data: bytes, place: str) -> dict[str, Array]:
    """Arrays by name; the one of an npy file has the name `array`."""
    try:
        if data.startswith(NPY):
            return {"array": _array(io.BytesIO(data), len(data), place, "array")}
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = [i for i in archive.infolist() if i.filename.endswith(".npy")]
            if sum(i.file_size for i in infos) > MAX_BYTES:
                raise UserError(f"its arrays are larger than {MAX_BYTES >> 30} GiB", place=place)
            found: dict[str, Array] = {}
            for info in infos:
                name = info.filename.removesuffix(".npy")
                if name in found:
                    raise UserError(f"array `{name[:40]}` is there twice", place=place)
                with archive.open(info) as f:
                    found[name] = _array(f, info.file_size, place, name)
    except _DAMAGES:
        raise UserError("the file is cut off or damaged", place=place) from None
    except RuntimeError:  # zipfile's word for a password
        raise UserError("the file is encrypted", place=place) from None
    if not found:
        raise UserError("it holds no arrays", place=place)
    return found


def _array(f: Any, size: int, place: str, name: str) -> Array:
    """One array of `size` bytes with its header, which must be no more and no less."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(f)
        shape, fortran, dtype = readers[version](f)
        if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None:
            raise UserError(f"array `{name[:40]}` holds objects, not numbers", place=place)
        count = 1
        for length in shape:
            count *= length
        body = f.read(count * dtype.itemsize) if count * dtype.itemsize <= size else b""
        flat = np.frombuffer(body, dtype, count)
        return flat.reshape(shape, order="F" if fortran else "C")
    except (ValueError, KeyError, TypeError, OverflowError, SyntaxError):
        raise UserError(f"array `{name[:40]}` is cut off or damaged", place=place) from None


def npz_bytes(arrays: dict[str, Array]) -> bytes:
    """An npz file, deflated; same arrays, same bytes."""
    out: BinaryIO = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    out.seek(0)
    return out.read()


def smallest(values: Array) -> Array:
    """The same whole numbers in the smallest integer type that holds them."""
    if not values.size:
        return values.astype(np.uint8)
    low, high = int(values.min()), int(values.max())
    kinds = (np.uint8, np.uint16, np.uint32, np.uint64) if low >= 0 else (
        np.int8, np.int16, np.int32, np.int64)  # fmt: skip
    kind = next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    return values.astype(kind)


def read_bytes(path: Path) -> bytes:
    """Content of a user's file; `UserError` where it cannot be read."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"file is larger than {MAX_BYTES >> 30} GiB", place=str(path))
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no such file: `{path}`", hint="check the path") from None
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else "not a path"
        raise UserError(f"cannot read the file: {reason.lower()}", place=str(path)[:200]) from None
