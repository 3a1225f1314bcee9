"""Signals and volumes: from encoded bytes to an array of channels, or the reason why not.

Signals are (C, L), volumes (C, D, H, W): channels first in files of ours and in `.npy`, `.npz`; a CSV has a column for
each channel and a row for each moment; a WAV's integers become [-1, 1); a NIfTI's axes are turned to RAS.

Missing values (NaN) of a signal are filled in on the straight line between their neighbours, at the ends with the
nearest one. A signal without any value in a channel, infinite values, and volumes with missing values are refused.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data.decode import DecodeError
from data.nifti import is_nifti, read_nifti
from data.npy import NPY_MAGIC, NPZ_MAGIC, read_npy, read_npz
from data.wav import is_wav, read_wav

SIGNAL, VOLUME = 1, 3  # axes beside the channels
MAX_VALUES = 1 << 27  # of one item: half a gigabyte as float32
MAX_CHANNELS = 512
EXTENSIONS: dict[str, tuple[str, ...]] = {  # lower-case, of the formats
    "WAV": (".wav", ".wave"),
    "NPY": (".npy",),
    "NPZ": (".npz",),
    "CSV": (".csv", ".tsv"),
    "NIFTI": (".nii", ".nii.gz"),
}
FORMATS: dict[int, tuple[str, ...]] = {SIGNAL: ("WAV", "NPY", "NPZ", "CSV"), VOLUME: ("NPY", "NPZ", "NIFTI")}
WHAT = {SIGNAL: "signal", VOLUME: "volume"}
# What may be odd about an item that is used all the same; `Measured.oddities` has one bit for each.
ODDITIES = ("with missing values, filled in", "of one value throughout")


@dataclass(frozen=True, slots=True)
class Item:
    """One decoded signal or volume."""

    values: np.ndarray  # (C, L) or (C, D, H, W) float32, finite
    format: str  # a key of EXTENSIONS
    rate_hz: float = 0.0  # samples a second, 0 where the file does not say
    spacing_mm: tuple[float, ...] = ()  # sides of a voxel, where the file says
    num_missing: int = 0  # values that were filled in


@dataclass(frozen=True, slots=True)
class Facts:
    """What is kept of an item that has been measured."""

    shape: tuple[int, ...]  # channels first
    rate_hz: float
    spacing_mm: tuple[float, ...]
    sums: tuple[float, ...]  # of each channel's values
    squares: tuple[float, ...]  # and of their squares


def sniff_format(data: bytes, ndim: int) -> str:
    """Name the format by the first bytes: one of FORMATS[ndim]; otherwise a DecodeError says why."""
    if not data:
        raise DecodeError("empty file")
    found = ""
    if data.startswith(NPY_MAGIC):
        found = "NPY"
    elif data.startswith(NPZ_MAGIC):
        found = "NPZ"
    elif is_wav(data):
        found = "WAV"
    elif is_nifti(data):
        found = "NIFTI"
    elif b"\0" not in data[:4096] and ndim == SIGNAL:
        found = "CSV"
    if found not in FORMATS[ndim]:
        raise DecodeError(
            f"{found or 'these bytes'}: not a {WHAT[ndim]} (supported: {', '.join(FORMATS[ndim])})"
        )
    return found


def decode_item(data: bytes, ndim: int) -> Item:
    """Decode one signal (`ndim` 1) or volume (3); raises DecodeError."""
    name = sniff_format(data, ndim)
    rate_hz: float = 0.0
    spacing_mm: tuple[float, ...] = ()
    if name == "WAV":
        values, rate_hz = read_wav(data)
    elif name == "NIFTI":
        values, spacing_mm = read_nifti(data)
        values = values[None] if values.ndim == 3 else np.moveaxis(values, 3, 0)
    elif name == "CSV":
        values = read_columns(data)
    else:
        values = _only_array(read_npz(data)) if name == "NPZ" else read_npy(data)
    values, num_missing = _clean(_with_channels(values, ndim), ndim)
    return Item(values, name, float(rate_hz), spacing_mm, num_missing)


def _only_array(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The array of an `.npz` that holds one item."""
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    named = [name for name in ("x", "X", "data", "arr_0") if name in arrays]
    if len(named) == 1:
        return arrays[named[0]]
    raise DecodeError(
        f"NPZ must hold one array, or one called x or data (it has: {', '.join(arrays) or 'none'})"
    )


def read_columns(data: bytes) -> np.ndarray:
    """A CSV of numbers, with or without a line of names: (columns, rows) float64; empty cells and `?` are NaN."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DecodeError("not a signal: neither WAV, NPY nor NPZ, nor UTF-8 text") from None
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    mark = next((mark for mark in (",", ";", "\t") if mark in first), None)
    try:
        if mark is None:
            rows = [line.split() for line in lines]
        else:
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True))
    except csv.Error as error:
        raise DecodeError(f"damaged CSV: {error}") from None
    rows = [row for row in rows if row]
    if rows and not all(_is_number(cell) for cell in rows[0]):
        rows = rows[1:]
    if not rows:
        raise DecodeError("no numbers in it: neither WAV, NPY nor NPZ, nor a CSV of numbers")
    if any(len(row) != len(rows[0]) for row in rows):
        raise DecodeError("CSV has rows of different length")
    try:
        return np.array([[_number(cell) for cell in row] for row in rows], np.float64).T
    except ValueError as error:
        raise DecodeError(f"CSV has a cell that is no number: {str(error)[-60:]}") from None


def _number(cell: str) -> float:
    text = cell.strip()
    return math.nan if text in ("", "?") else float(text)


def _is_number(cell: str) -> bool:
    try:
        _number(cell)
    except ValueError:
        return False
    return True


def _with_channels(values: np.ndarray, ndim: int) -> np.ndarray:
    """(L,), (C, L), (D, H, W) or (C, D, H, W) → channels first."""
    if values.dtype.kind not in "biuf":
        raise DecodeError(f"not numbers: data type {values.dtype}")
    if values.ndim == ndim:
        values = values[None]
    if values.ndim != ndim + 1:
        wanted = "(L,) or (C, L)" if ndim == SIGNAL else "(D, H, W) or (C, D, H, W)"
        raise DecodeError(f"not a {WHAT[ndim]}: shape {values.shape}, not {wanted}")
    if not values.size:
        raise DecodeError(f"no values: shape {values.shape}")
    if len(values) > MAX_CHANNELS:
        raise DecodeError(
            f"{len(values):,} channels, more than {MAX_CHANNELS}: channels come first in an array"
        )
    if values.size > MAX_VALUES:
        raise DecodeError(f"too large: {values.size:,} values, more than {MAX_VALUES:,}")
    return values


def _clean(values: np.ndarray, ndim: int) -> tuple[np.ndarray, int]:
    """Finite float32 values, and how many of them were filled in."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.ascontiguousarray(values, np.float32)
    finite = np.isfinite(values)
    if finite.all():
        return values, 0
    num_missing = int(np.isnan(values).sum())
    num_infinite = values.size - int(finite.sum()) - num_missing
    if num_infinite:
        raise DecodeError(f"{num_infinite:,} of {values.size:,} values are infinite")
    if ndim != SIGNAL:
        raise DecodeError(f"{num_missing:,} of {values.size:,} values are missing (NaN)")
    if not finite.any(1).all():
        raise DecodeError(f"channel {int(finite.any(1).argmin())} has no value (NaN throughout)")
    filled = values.copy()
    places = np.arange(values.shape[1])
    for channel, there in zip(filled, finite, strict=True):
        channel[~there] = np.interp(places[~there], places[there], channel[there])
    return filled, num_missing


def measure_item(item: Item) -> Facts:
    """Shape and sums of one item."""
    flat = item.values.reshape(len(item.values), -1).astype(np.float64)
    return Facts(
        shape=item.values.shape,
        rate_hz=item.rate_hz,
        spacing_mm=item.spacing_mm,
        sums=tuple(flat.sum(1).tolist()),
        squares=tuple(np.square(flat).sum(1).tolist()),
    )


def oddities_of(item: Item) -> int:
    """One bit for each of ODDITIES."""
    flat = item.values.reshape(len(item.values), -1)
    constant = bool((flat == flat[:, :1]).all())
    return int(item.num_missing > 0) | constant << 1


def other_channels(facts: Sequence[Facts | None]) -> dict[int, str]:
    """Items whose number of channels is not that of most: place and why; of equals the smaller number counts."""
    counts = Counter(len(fact.sums) for fact in facts if fact is not None)
    if len(counts) < 2:
        return {}
    usual = min(counts, key=lambda number: (-counts[number], number))
    return {
        i: f"{len(fact.sums)} channels, where most have {usual}"
        for i, fact in enumerate(facts)
        if fact is not None and len(fact.sums) != usual
    }


def channel_statistics(facts: Sequence[Facts]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all values; a deviation of 0 is given as 1, to divide by."""
    num = sum(math.prod(fact.shape[1:]) for fact in facts)
    means, deviations = [], []
    for channel in range(len(facts[0].sums)):
        mean = math.fsum(fact.sums[channel] for fact in facts) / num
        square = math.fsum(fact.squares[channel] for fact in facts) / num
        deviation = math.sqrt(max(0.0, square - mean * mean))
        means.append(float(f"{mean:.8g}"))
        deviations.append(float(f"{deviation:.8g}") if deviation > 1e-6 * abs(mean) else 1.0)
    return tuple(means), tuple(deviations)


def usual_rate(facts: Sequence[Facts]) -> float:
    """The most common rate of those that have one, 0 if none; of equals the lower."""
    counts = Counter(fact.rate_hz for fact in facts if fact.rate_hz)
    return min(counts, key=lambda rate: (-counts[rate], rate)) if counts else 0.0


def usual_spacing(facts: Sequence[Facts]) -> tuple[float, ...]:
    """The median side of a voxel along each axis, () where no file says."""
    known = [fact.spacing_mm for fact in facts if fact.spacing_mm]
    return tuple(np.median(np.array(known), 0).round(6).tolist()) if known else ()


def spreads(facts: Sequence[Facts]) -> tuple[tuple[int, int, int], ...]:
    """Least, median and greatest length of each axis beside the channels."""
    sides = np.sort(np.array([fact.shape[1:] for fact in facts]), 0)
    middle = len(facts) // 2
    return tuple(zip(sides[0].tolist(), sides[middle].tolist(), sides[-1].tolist(), strict=True))


def resample(values: np.ndarray, rate_hz: float, wanted_hz: float) -> np.ndarray:
    """Signals (C, L) at another rate: (C, L · wanted / rate), by a windowed sinc that lets no frequency fold over.

    A Hann window over 16 zero crossings to either side (Smith, https://ccrma.stanford.edu/~jos/resample/). Beyond
    its ends the signal is taken to go on with its first and last value.
    """
    if rate_hz == wanted_hz:
        return values
    L = values.shape[1]
    num = max(1, round(L * wanted_hz / rate_hz))
    cutoff = min(1.0, wanted_hz / rate_hz)  # of the old rate's band
    reach = math.ceil(16 / cutoff)
    result = np.empty((len(values), num), np.float32)
    # so many outputs that their taps stay small
    bounds = [*range(0, num, max(1, (1 << 21) // (2 * reach))), num]
    for start, stop in pairwise(bounds):
        centres = np.arange(start, stop) * (rate_hz / wanted_hz)  # in samples of the old rate
        taps = np.floor(centres).astype(np.int64)[:, None] + np.arange(1 - reach, reach + 1)
        away = taps - centres[:, None]
        weights = np.sinc(away * cutoff) * (0.5 + 0.5 * np.cos(np.pi * np.clip(away / reach, -1, 1)))
        weights /= weights.sum(1, keepdims=True)
        result[:, start:stop] = np.einsum("cnt,nt->cn", values[:, np.clip(taps, 0, L - 1)], weights)
    return result
