"""Signals and volumes for tests, drawn on the spot: classes that a small network can tell, and files of each format."""

import io
import struct
import wave
from pathlib import Path

import numpy as np

from data.npy import write_npy
from tests.pictures import write_tree


def tone(seed: int, cycles: float, length: int = 64) -> np.ndarray:
    """A sine of so many cycles at a random phase, with a little noise: (length,) float32 in [-1, 1]."""
    generator = np.random.default_rng(seed)
    phase, level = generator.uniform(0, 2 * np.pi), generator.uniform(0.4, 0.8)
    noise = generator.normal(0, 0.02, length)
    return (level * np.sin(2 * np.pi * cycles * np.arange(length) / length + phase) + noise).astype(
        np.float32
    )


def wav(samples: np.ndarray, rate_hz: int = 8000, width: int = 2) -> bytes:
    """A WAV file of (L,) or (C, L) in [-1, 1), by the standard library: integers of `width` bytes."""
    frames = np.atleast_2d(samples).T
    scaled = np.clip(
        np.rint(frames * 2 ** (8 * width - 1)), -(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1
    )
    if width == 1:
        data = (scaled + 128).astype(np.uint8).tobytes()
    else:
        data = b"".join(int(v).to_bytes(width, "little", signed=True) for v in scaled.ravel())
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(frames.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate_hz)
        file.writeframes(data)
    return stream.getvalue()


def blob(seed: int, long_axis: int, side: int = 10) -> np.ndarray:
    """A box of random place and size, long along one axis: (side, side, side) uint8 of 0 and 1."""
    generator = np.random.default_rng(seed)
    sides = np.full(3, 3)
    sides[long_axis] = generator.integers(7, side)
    starts = [generator.integers(0, side - length + 1) for length in sides]
    volume = np.zeros((side,) * 3, np.uint8)
    volume[tuple(slice(a, a + length) for a, length in zip(starts, sides, strict=True))] = 1
    return volume


def nifti(values: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)) -> bytes:
    """An unpacked NIfTI-1 of (X, Y, Z) float32, by the header's fields alone; its axes point right, forward, up."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *values.shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 16, 32)
    struct.pack_into("<8f", header, 76, 1, *spacing, 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, 352, 0, 0)
    struct.pack_into("<2h", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, spacing[0], 0, 0, 0, 0, spacing[1], 0, 0, 0, 0, spacing[2], 0)
    header[344:348] = b"n+1\0"
    return bytes(header) + values.astype("<f4").tobytes(order="F")


def write_tones(folder: Path, num: int = 140) -> Path:
    """A folder of WAV files for each of three pitches."""
    files = {
        f"{name}/{i}.wav": wav(tone(1000 * number + i, cycles))
        for number, (name, cycles) in enumerate({"low": 2, "middle": 5, "high": 11}.items())
        for i in range(num)
    }
    return write_tree(folder, files)


def write_blobs(folder: Path, num: int = 140) -> Path:
    """A folder of `.npy` files for each axis that a box may be long along."""
    files = {
        f"axis{axis}/{i}.npy": write_npy(blob(1000 * axis + i, axis)) for axis in range(3) for i in range(num)
    }
    return write_tree(folder, files)
