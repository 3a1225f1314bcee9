"""NumPy's own files, `.npy` and `.npz`, read from bytes: nothing is unpickled, and no header is believed.

`numpy.load` makes room for what a header claims before it looks at what follows; here the two are compared first.
"""

import ast
import io
import math
import zipfile
from typing import Any

import numpy as np

from data.decode import DecodeError

MAX_ARRAY_BYTES = 4 << 30  # of all arrays of an .npz together, unpacked
MAX_HEADER_BYTES = 1 << 16
NPY_MAGIC = b"\x93NUMPY"
NPZ_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")


def read_npy(data: bytes) -> np.ndarray:
    """The array of an `.npy` file, read-only where it can be a view; raises DecodeError."""
    shape, fortran_order, dtype, start = _read_header(data)
    if dtype.hasobject:
        raise DecodeError("NPY holds Python objects, which are not unpickled; save it as numbers")
    wanted, have = math.prod(shape) * dtype.itemsize, len(data) - start
    if have < wanted:
        raise DecodeError(f"truncated NPY: {have:,} of {wanted:,} bytes")
    if not wanted:
        return np.empty(shape, dtype)
    flat = np.frombuffer(data, dtype, math.prod(shape), start)
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _read_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran's order, data type, and where the values begin."""
    try:
        width = 2 if data[6] == 1 else 4
        start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
        if start > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {start:,} bytes")
        header = ast.literal_eval(data[8 + width : start].decode("latin1" if data[6] < 3 else "utf8").strip())
        shape, dtype = header["shape"], np.lib.format.descr_to_dtype(header["descr"])
        if not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"shape {shape}")
        return tuple(shape), bool(header["fortran_order"]), dtype, start
    except Exception as error:  # a damaged header makes Python's parser and numpy raise nearly anything
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise DecodeError(f"damaged NPY: {text}") from None


def write_npy(array: np.ndarray) -> bytes:
    """An array as the bytes of an `.npy` file; equal arrays give equal bytes."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def read_npz(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by name; raises DecodeError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if sum(info.file_size for info in infos) > MAX_ARRAY_BYTES:
                raise DecodeError(f"decompression bomb: NPZ unpacks to more than {MAX_ARRAY_BYTES >> 30} GiB")
            arrays = {}
            for info in infos:
                with archive.open(info) as file:
                    # a bare read() inflates past the declared size
                    arrays[info.filename.removesuffix(".npy")] = read_npy(file.read(info.file_size))
            return arrays
    except DecodeError:
        raise
    except Exception as error:  # damaged archives make zipfile and its decompressors raise nearly anything
        raise DecodeError(f"damaged NPZ: {' '.join(str(error).split())[:200]}") from None
