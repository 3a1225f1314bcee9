"""What a model is given, by the preprocessing in its card: pictures as uint8, signals and volumes as float32."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from data.decode import DecodeError, decode_image
from data.fitting import ArrayPreprocessing, decode_fitted
from data.squares import to_square
from tasks.arrays import draw_all
from tasks.card import Preprocessing

Item = TypeVar("Item")
AnyPreprocessing = Preprocessing | ArrayPreprocessing


def decoded_shape(preprocessing: AnyPreprocessing) -> tuple[int, ...]:
    """Of one decoded item, channels first."""
    if isinstance(preprocessing, ArrayPreprocessing):
        return preprocessing.shape
    return (preprocessing.channels, preprocessing.stored_px, preprocessing.stored_px)


def decoded_type(preprocessing: AnyPreprocessing) -> torch.dtype:
    """Of decoded items."""
    return torch.float32 if isinstance(preprocessing, ArrayPreprocessing) else torch.uint8


def type_name(dtype: torch.dtype) -> str:
    """`uint8`, `float32`."""
    return str(dtype).removeprefix("torch.")


def decoded_bytes(preprocessing: AnyPreprocessing) -> int:
    """Memory of one decoded item."""
    return math.prod(decoded_shape(preprocessing)) * decoded_type(preprocessing).itemsize


def crop_values(preprocessing: AnyPreprocessing) -> int:
    """Numbers of one crop, as a network is given it."""
    if isinstance(preprocessing, ArrayPreprocessing):
        return math.prod((preprocessing.channels, *preprocessing.crop))
    return preprocessing.channels * preprocessing.crop_px**2


def readable(blobs: Sequence[bytes], decode: Callable[[bytes], Item]) -> tuple[list[Item], list[str | None]]:
    """What `decode` makes of the M items that can be read, and for each of the N None, or why it is not among them."""
    items: list[Item] = []
    errors: list[str | None] = []
    for blob in blobs:
        try:
            items.append(decode(blob))
            errors.append(None)
        except DecodeError as error:
            errors.append(str(error))
    return items, errors


def decode_readable(
    blobs: Sequence[bytes], preprocessing: AnyPreprocessing
) -> tuple[np.ndarray, list[str | None]]:
    """Decode as the training data was: arrays (M, *decoded_shape) of the M readable items, and for each of the N
    items None, or why it is not among them."""
    arrays, errors = readable(blobs, lambda blob: _decode(blob, preprocessing))
    dtype = np.float32 if isinstance(preprocessing, ArrayPreprocessing) else np.uint8
    return np.array(arrays, dtype).reshape(-1, *decoded_shape(preprocessing)), errors


def _decode(blob: bytes, preprocessing: AnyPreprocessing) -> np.ndarray:
    if isinstance(preprocessing, ArrayPreprocessing):
        return decode_fitted(blob, preprocessing)
    side = preprocessing.stored_px
    image = decode_image(blob, channels=preprocessing.channels, draft_px=side)
    return to_square(image, side, preprocessing.resize)


def as_pictures(arrays: np.ndarray) -> np.ndarray:
    """What a model is given, to look at: (N, C, S, S) uint8, curves and slices where it is no picture."""
    return arrays if arrays.dtype == np.uint8 else draw_all(arrays)
