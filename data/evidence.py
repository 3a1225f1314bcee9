"""What the checks of a stored dataset look at: its columns without the pictures, and what ingest reported.

Nothing is decoded and no picture is read, so that 60,000 pictures take a quarter of a second.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from data.dataset import SPLITS, Dataset, DatasetInfo, Split, noun_of, way_back
from data.report import IngestReport, read_report
from data.stream import RowReader


@dataclass(frozen=True)
class StoredBoxes:
    """All M boxes of a dataset, in the order of its pictures."""

    image: np.ndarray  # (M,) int64: place of the picture among all
    boxes_xyxy: np.ndarray  # (M, 4) float32, pixels
    labels: np.ndarray  # (M,) int64


@dataclass(frozen=True)
class Evidence:
    """N pictures: train, then val, then test, each in the order of its indices."""

    info: DatasetInfo
    report: IngestReport
    columns: pa.Table  # all but the pictures, N rows
    split: np.ndarray  # (N,) int64: place in SPLITS

    def __len__(self) -> int:
        return len(self.split)

    @property
    def noun(self) -> str:
        """What its items are called."""
        return noun_of(self.info.family)

    @cached_property
    def ids(self) -> list[str]:
        """(N,)."""
        return list(self.columns["id"].to_pylist())

    @cached_property
    def place_of(self) -> dict[str, int]:
        """The place of each id."""
        return {id: place for place, id in enumerate(self.ids)}

    def ints(self, column: str) -> np.ndarray:
        """(N,) int64."""
        return np.asarray(self.columns[column].to_numpy(), np.int64)

    @cached_property
    def sizes_px(self) -> np.ndarray:
        """(N, 2) int64: width and height."""
        return np.stack([self.ints("width"), self.ints("height")], 1)

    @cached_property
    def labels(self) -> np.ndarray | None:
        """(N,) int64, of a family that has one label a picture."""
        return self.ints("label") if "label" in self.columns.column_names else None

    @cached_property
    def content(self) -> np.ndarray:
        """(N,) int64: pictures of the same bytes have the same number."""
        return codes_of(self.columns["sha256"])

    @cached_property
    def group(self) -> np.ndarray:
        """(N,) int64: pictures of one group have the same number."""
        return codes_of(self.columns["group"])

    @cached_property
    def cluster(self) -> np.ndarray:
        """(N,) int64: pictures that look the same have the same number; -1 for one that is alone."""
        cluster = np.full(len(self), -1, np.int64)
        for number, ids in enumerate(self.report.near_duplicates):
            cluster[[self.place_of[id] for id in ids]] = number
        return cluster

    @cached_property
    def boxes(self) -> StoredBoxes:
        """Of detection."""
        numbers = self.columns["box_labels"].combine_chunks()
        lengths = np.diff(numbers.offsets.to_numpy())
        corners = self.columns["boxes_xyxy"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return StoredBoxes(
            image=np.repeat(np.arange(len(self)), lengths),
            boxes_xyxy=np.asarray(corners, np.float32).reshape(-1, 4),
            labels=np.asarray(numbers.flatten().to_numpy(zero_copy_only=False), np.int64),
        )

    def inside(self, split: Split) -> np.ndarray:
        """(N,) bool: the pictures of a split."""
        return self.split == SPLITS.index(split)

    def targets(self, place: int) -> str:
        """What a picture's targets are, as a text that is the same for the same targets."""
        return str([self.columns[name][place].as_py() for name in self.info.target_names])


def codes_of(column: pa.ChunkedArray) -> np.ndarray:
    """Equal texts as equal numbers: (N,) int64."""
    encoded = column.combine_chunks().dictionary_encode()
    return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int64)


def gather(dataset: Dataset) -> Evidence:
    """Read the columns and the report of a stored dataset; raises FileNotFoundError or ValueError."""
    names = [name for name in dataset.info.columns.names if name != "image"]
    tables = [_read(dataset, split, names) for split in SPLITS]
    return Evidence(
        info=dataset.info,
        report=read_report(dataset.files),
        columns=pa.concat_tables(tables),
        split=np.repeat(np.arange(len(SPLITS)), [len(table) for table in tables]),
    )


def _read(dataset: Dataset, split: Split, names: list[str]) -> pa.Table:
    try:
        return dataset.table(split, names)
    except (OSError, pa.ArrowException) as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"the {split} shards in {dataset.path} cannot be read ({why}); {way_back(dataset.path)}"
        ) from None


def read_pictures(dataset: Dataset, evidence: Evidence, ids: Iterable[str]) -> dict[str, bytes]:
    """The encoded pictures of those ids that the dataset has."""
    places = np.array(sorted({evidence.place_of[id] for id in ids if id in evidence.place_of}), np.int64)
    found: dict[str, bytes] = {}
    for number, split in enumerate(SPLITS):
        first = int(np.searchsorted(evidence.split, number))
        inside = (places[evidence.split[places] == number] - first).tolist()
        found |= {evidence.ids[first + i]: blob for i, blob in pictures_at(dataset, split, inside).items()}
    return found


def pictures_at(dataset: Dataset, split: Split, indices: Sequence[int]) -> dict[int, bytes]:
    """The encoded pictures at `indices` of a split; one block of its rows is in memory at a time."""
    if not indices:
        return {}
    reader = RowReader(dataset, split, ["image"], cache_bytes=0)
    return {index: reader.take(np.array([index]))["image"][0].as_py() for index in sorted(indices)}


def groups_of(numbers: np.ndarray, where: np.ndarray) -> list[np.ndarray]:
    """The places in `where` (bool, N) that share a number with another of them: one array a number."""
    places = np.flatnonzero(where)
    order = places[np.argsort(numbers[places], kind="stable")]
    cuts = np.flatnonzero(np.diff(numbers[order])) + 1
    return [part for part in np.split(order, cuts) if len(part) > 1]


def named(evidence: Evidence, groups: Sequence[np.ndarray], limit: int) -> tuple[tuple[str, ...], ...]:
    """The first groups of places as ids, each group cut to a handful."""
    return tuple(tuple(evidence.ids[place] for place in group[:4]) for group in groups[:limit])
