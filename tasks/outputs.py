"""What networks make of a split, a piece of it at a time: images are decoded once for all views and models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from data.dataset import Dataset, Split
from data.decode import decode_many
from data.fitting import ArrayPreprocessing, decode_all
from tasks.card import Preprocessing
from tasks.inputs import decoded_bytes
from tasks.predict import Predictor
from tasks.settings import ViewName

PIECE_IMAGES, PIECE_MB = 1024, 64  # of decoded images held at a time: the lesser of both


@dataclass(frozen=True)
class Piece:
    """Consecutive images of a split, still encoded."""

    start: int  # place of the first in the split
    blobs: list[bytes]
    labels: np.ndarray  # (B,) int64
    about: pa.Table  # the other columns that were asked for


def piece_size(predictors: Sequence[Predictor]) -> int:
    """Images to decode at a time."""
    layouts = {decode_key(predictor): predictor.card.preprocessing for predictor in predictors}
    image_bytes = sum(decoded_bytes(layout) for layout in layouts.values())
    size = max(1, min(PIECE_IMAGES, PIECE_MB * 2**20 // image_bytes))
    batch_size = predictors[0].batch_size
    return size - size % batch_size if size > batch_size else size  # full passes but for the last


def pieces_of(dataset: Dataset, split: Split, size: int, columns: Sequence[str] = ()) -> Iterator[Piece]:
    """The split in its order, at most `size` images at a time, with these columns of their rows."""
    start = 0
    for shard in dataset.shards(split):
        with pq.ParquetFile(shard) as file:
            for rows in file.iter_batches(batch_size=size, columns=["image", "label", *columns]):
                labels = rows["label"].to_numpy().astype(np.int64)
                about = pa.table({name: rows[name] for name in columns})
                yield Piece(start, rows["image"].to_pylist(), labels, about)
                start += len(labels)
    assert start == dataset.info.num_images(split), (
        f"{dataset.path}: dataset.json and its shards do not have the same number of images"
    )


DecodeKey = tuple[int, int, str] | ArrayPreprocessing


def decode_key(predictor: Predictor) -> DecodeKey:
    """What decoding depends on: models that share it share the decoded images."""
    preprocessing = predictor.card.preprocessing
    if isinstance(preprocessing, ArrayPreprocessing):
        return preprocessing.model_copy(update={"crop": ()})
    return preprocessing.stored_px, preprocessing.channels, preprocessing.resize


def decode_piece(piece: Piece, predictors: Sequence[Predictor]) -> dict[DecodeKey, Tensor]:
    """The images as each model wants them, by layout: (B, C, T, T) uint8, or arrays of float32."""
    layouts = {decode_key(predictor): predictor.card.preprocessing for predictor in predictors}
    return {layout: torch.from_numpy(decode_blobs(piece.blobs, want)) for layout, want in layouts.items()}


def decode_blobs(blobs: list[bytes], want: Preprocessing | ArrayPreprocessing) -> np.ndarray:
    """Decode items of a dataset, all of which can be read."""
    if isinstance(want, ArrayPreprocessing):
        return decode_all(blobs, want)
    return decode_many(blobs, want.stored_px, want.channels, want.resize)


def averaged(predictors: Sequence[Predictor], decoded: dict[DecodeKey, Tensor], view: ViewName) -> Tensor:
    """Uncalibrated probabilities (B, K) of a piece by one view, each network of each model counting the same."""
    num_networks = sum(len(predictor.members) for predictor in predictors)
    num_images = len(decoded[decode_key(predictors[0])])
    total = torch.zeros(num_images, len(predictors[0].card.classes))
    for predictor in predictors:
        share = len(predictor.members) / num_networks
        total += predictor.uncalibrated(decoded[decode_key(predictor)], view) * share
    return total
