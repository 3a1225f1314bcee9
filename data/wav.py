"""WAV: uncompressed sound, as integers of 8 to 32 bits or as floats.

Format: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0", and WAVE_FORMAT_EXTENSIBLE.
Files that end early are refused; a data chunk of unknown length, as streams are written, reaches to the end.
"""

import struct

import numpy as np

from data.decode import DecodeError

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
MAX_RATE_HZ = 10_000_000  # nothing that one hears; a rate beyond it is a damaged header
UNKNOWN_LENGTH = 0xFFFFFFFF
_FLOATS = {32: "<f4", 64: "<f8"}


def is_wav(data: bytes) -> bool:
    """Whether these bytes begin as a WAV file does."""
    return data[:4] in (b"RIFF", b"RIFX", b"RF64") and data[8:12] == b"WAVE"


def read_wav(data: bytes) -> tuple[np.ndarray, int]:
    """Samples (C, L) float32, integers scaled to [-1, 1), and the rate in Hz; raises DecodeError."""
    if data[:4] != b"RIFF":
        raise DecodeError(f"unsupported WAV of kind {data[:4].decode('latin1')} (supported: RIFF)")
    layout: tuple[int, int, int, int] | None = None
    place = 12
    while place + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        place += 8
        if name == b"fmt ":
            layout = _read_layout(data[place : place + size])
        elif name == b"data":
            if layout is None:
                raise DecodeError("damaged WAV: samples come before the chunk that describes them")
            end = len(data) if size == UNKNOWN_LENGTH else place + size
            if end > len(data):
                raise DecodeError(f"truncated WAV: {len(data) - place:,} of {size:,} bytes of samples")
            return _read_samples(data[place:end], *layout[:3]), layout[3]
        place += size + size % 2  # chunks begin at even places
    raise DecodeError("damaged WAV: no samples in it")


def _read_layout(chunk: bytes) -> tuple[int, int, int, int]:
    """Kind, channels, bits and rate."""
    if len(chunk) < 16:
        raise DecodeError("truncated WAV: its header is cut short")
    kind, channels, rate, _per_second, block, bits = struct.unpack_from("<HHIIHH", chunk)
    if kind == EXTENSIBLE and len(chunk) >= 26:
        kind = struct.unpack_from("<H", chunk, 24)[0]
    known = (kind == PCM and bits in (8, 16, 24, 32)) or (kind == FLOAT and bits in _FLOATS)
    if not known:
        raise DecodeError(
            f"unsupported WAV: encoding {kind} of {bits} bits (supported: integers of 8, 16, 24, 32 bits, floats of "
            "32, 64)"
        )
    if not channels or not 0 < rate <= MAX_RATE_HZ or block != channels * bits // 8:
        raise DecodeError(
            f"damaged WAV: {channels} channels, {rate} Hz, {block} bytes a frame of {bits} bits"
        )
    return kind, channels, bits, rate


def _read_samples(data: bytes, kind: int, channels: int, bits: int) -> np.ndarray:
    num_frames, rest = divmod(len(data), channels * bits // 8)
    if rest:
        raise DecodeError("truncated WAV: its last frame is cut short")
    values: np.ndarray
    if kind == FLOAT:
        values = np.frombuffer(data, _FLOATS[bits]).astype(np.float32)
    elif bits == 8:
        values = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    elif bits == 24:
        # as the upper three bytes of four, so that the sign is where it belongs
        whole = np.zeros((num_frames * channels, 4), np.uint8)
        whole[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        values = (whole.view("<i4")[:, 0] / 2**31).astype(np.float32)
    else:
        values = (np.frombuffer(data, f"<i{bits // 8}") / 2 ** (bits - 1)).astype(np.float32)
    return np.ascontiguousarray(values.reshape(num_frames, channels).T)
