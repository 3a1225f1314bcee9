"""NIfTI-1 (`.nii`, `.nii.gz`): volumes of medical imaging, turned so that their axes point right, forward and up.

Header: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h. The affine is the sform where there is one, else
the qform; the axes are swapped and turned to the nearest orientation of RAS+, without resampling, as nibabel's
`as_closest_canonical` does. A file that says nothing of its orientation stays as it is.
"""

import struct
import zlib

import numpy as np

from data.decode import DecodeError

HEADER_BYTES = 348
MAX_UNPACKED_BYTES = 1 << 30
_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_GZIP = b"\x1f\x8b"


def is_nifti(data: bytes) -> bool:
    """Whether these bytes begin as a NIfTI-1 file does, packed or not."""
    if data.startswith(_GZIP):
        try:
            data = _unpack(data, HEADER_BYTES, whole=False)
        except DecodeError:
            return False
    return len(data) >= HEADER_BYTES and data[344:348] in (b"n+1\0", b"ni1\0")


def read_nifti(data: bytes) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Values (X, Y, Z) or (X, Y, Z, N) float32, scaled as the header says, and the voxels' sides in mm.

    X runs to the right, Y forward, Z up, as far as the file tells. Raises DecodeError.
    """
    if data.startswith(_GZIP):
        data = _unpack(data, MAX_UNPACKED_BYTES, whole=True)
    if data[344:348] == b"ni1\0":
        raise DecodeError("NIfTI header without its voxels; save header and image as one .nii file")
    order = "<" if struct.unpack_from("<i", data)[0] == HEADER_BYTES else ">"
    dims = struct.unpack_from(f"{order}8h", data, 40)
    code = struct.unpack_from(f"{order}h", data, 70)[0]
    offset, slope, intercept = struct.unpack_from(f"{order}3f", data, 108)
    if code not in _TYPES:
        raise DecodeError(f"unsupported NIfTI: data type {code} (supported: {', '.join(map(str, _TYPES))})")
    shape = dims[1 : 1 + dims[0]] if 1 <= dims[0] <= 7 else ()
    if len(shape) < 3 or min(shape) < 1:
        raise DecodeError(f"not a volume: NIfTI of {len(shape)} axes {shape}")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 4:
        raise DecodeError(f"not a volume: NIfTI of {len(shape)} axes {shape}")
    dtype = np.dtype(f"{order}{_TYPES[code]}")
    start = int(offset) if np.isfinite(offset) and offset >= HEADER_BYTES else HEADER_BYTES + 4
    wanted = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(data) - start < wanted:
        raise DecodeError(f"truncated NIfTI: {max(0, len(data) - start):,} of {wanted:,} bytes")
    values = np.frombuffer(data, dtype, wanted // dtype.itemsize, start).reshape(shape, order="F")
    if slope and np.isfinite(slope) and np.isfinite(intercept) and (slope, intercept) != (1, 0):
        values = values * np.float64(slope) + np.float64(intercept)
    return _to_canonical(values, _read_affine(data, order), struct.unpack_from(f"{order}3f", data, 80))


def _unpack(data: bytes, max_bytes: int, whole: bool) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        unpacked = inflater.decompress(data, max_bytes)
    except zlib.error as error:
        raise DecodeError(f"damaged gzip: {error}") from None
    if whole and inflater.unconsumed_tail:
        raise DecodeError(f"decompression bomb: it unpacks to more than {max_bytes >> 20} MiB")
    if whole and not inflater.eof:
        raise DecodeError("truncated gzip: its end is missing")
    return unpacked


def _read_affine(data: bytes, order: str) -> np.ndarray | None:
    """The rotation and scaling (3, 3) from voxels to millimetres; None where the file does not say."""
    qform, sform = struct.unpack_from(f"{order}2h", data, 252)
    if sform > 0:
        return np.array(struct.unpack_from(f"{order}12f", data, 280)).reshape(3, 4)[:, :3]
    if qform > 0:
        fac, *sides = struct.unpack_from(f"{order}4f", data, 76)
        b, c, d = struct.unpack_from(f"{order}3f", data, 256)
        a = max(0.0, 1 - b * b - c * c - d * d) ** 0.5
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        return rotation * np.array([sides[0], sides[1], sides[2] * (-1 if fac < 0 else 1)])
    return None


def _to_canonical(
    values: np.ndarray, affine: np.ndarray | None, pixdim: tuple[float, ...]
) -> tuple[np.ndarray, tuple[float, float, float]]:
    sides = np.abs(np.array(pixdim, np.float64))
    if affine is not None and np.isfinite(affine).all() and (affine != 0).any(0).all():
        sides = np.sqrt((affine**2).sum(0))
        axes, signs = _nearest_axes(affine / sides)
        for axis in range(3):
            if signs[axis] < 0:
                values = np.flip(values, axis)
        back = np.argsort(axes).tolist()
        values = values.transpose(*back, *range(3, values.ndim))
        sides = sides[back]
    sides = np.where(np.isfinite(sides) & (sides > 0), sides, 1.0)
    # float64 beyond float32 becomes infinite, which the caller looks for
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, np.float32)
    x, y, z = sides.round(6).tolist()
    return stored, (x, y, z)


def _nearest_axes(directions: np.ndarray) -> tuple[list[int], list[int]]:
    """For each axis of the array the axis of space it runs along, and whether forwards (1) or back (-1)."""
    left, _, right = np.linalg.svd(directions)
    rotation = left @ right  # the nearest rotation, so that shears do not mislead
    axes, signs = [0, 0, 0], [1, 1, 1]
    for axis in np.argsort(-np.abs(rotation).max(0), kind="stable").tolist():
        to = int(np.abs(rotation[:, axis]).argmax())
        axes[axis], signs[axis] = to, -1 if rotation[to, axis] < 0 else 1
        rotation[to] = 0  # nothing else may run along it
    return axes, signs
