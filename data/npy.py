"""NumPy's own files, `.npy` and `.npz`, read from bytes: nothing is unpickled, and no header is believed.

`numpy.load` makes room for what a header claims before it looks at what follows; here the two are compared first.
"""

import io
import math
import warnings
import zipfile
import zlib

import numpy as np

from data.decode import DecodeError

MAX_ARRAY_BYTES = 4 << 30  # of all arrays of an .npz together, unpacked
NPY_MAGIC = b"\x93NUMPY"
NPZ_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_FAILURES = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError)


def read_npy(data: bytes) -> np.ndarray:
    """The array of an `.npy` file, read-only where it can be a view; raises DecodeError."""
    stream = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers written by Python 2
            version = np.lib.format.read_magic(stream)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version} of the format is not read")
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran_order, dtype = read_header(stream)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise DecodeError(f"damaged NPY: {' '.join(str(error).split())[:200]}") from None
    if dtype.hasobject:
        raise DecodeError("NPY holds Python objects, which are not unpickled; save it as numbers")
    if any(side < 0 for side in shape):
        raise DecodeError(f"damaged NPY: shape {shape}")
    wanted, have = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if have < wanted:
        raise DecodeError(f"truncated NPY: {have:,} of {wanted:,} bytes")
    if not wanted:
        return np.empty(shape, dtype)
    flat = np.frombuffer(data, dtype, math.prod(shape), stream.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")


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
    except _FAILURES as error:
        raise DecodeError(f"damaged NPZ: {' '.join(str(error).split())[:200]}") from None
