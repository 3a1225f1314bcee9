"""A split that is read a few rows at a time, however large it is, in an order that mixes it all the same.

Rows are read in blocks, the row groups of the Parquet shards (a few megabytes). An epoch visits the blocks in a random
order; each sample is then moved back by a random share of a window of W samples, and all are taken in order of where
they came to stand. So a sample waits for at most W others, and about W samples lie in memory at any time: there is no
buffer that fills and runs dry. Where W covers the split, the order is a plain permutation. It depends on nothing but
(seed, epoch, blocks, W), so that a split which is resident gives the same samples as one which is streamed.

Blocks alone would mix little if a source's classes stood together; rows are stored in random order for this
(data.storage.stored_order).
"""

import resource
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.dataset import Dataset, Split
from data.people import People
from data.random import SampleGenerator

SPARE_FILES = 256  # that a process may want to open beside its shards


@dataclass(frozen=True)
class Layout:
    """How a split lies on disk: the rows of each block, in order, and the bytes of its encoded pictures.

    With `people`, batches are drawn by person, see data.people.
    """

    rows: tuple[int, ...]
    num_bytes: int
    people: People | None = None

    @property
    def num_rows(self) -> int:
        return sum(self.rows)

    def rows_within(self, num_bytes: float) -> int:
        """How many rows fit into so many bytes, all of them if the split does; at least one."""
        if self.num_bytes <= num_bytes:
            return self.num_rows
        return max(1, int(num_bytes * self.num_rows / self.num_bytes))


def layout_of(dataset: Dataset, split: Split) -> Layout:
    """Read the footers of the split's shards."""
    rows, num_bytes = [], 0
    for shard in dataset.shards(split):
        footer = pq.read_metadata(shard)
        image = footer.schema.to_arrow_schema().get_field_index("image")
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            rows.append(group.num_rows)
            num_bytes += group.column(image).total_uncompressed_size
    return Layout(tuple(rows), num_bytes)


def windowed_order(generator: SampleGenerator, layout: Layout, window: int) -> np.ndarray:
    """An epoch's order: (N,) int64, a permutation in which at most about `window` samples wait at any time."""
    num_samples = layout.num_rows
    if window >= num_samples:
        return generator.permutation(num_samples)
    rows = np.array(layout.rows)
    starts = np.cumsum(rows) - rows
    visited = np.argsort(generator.uniform(np.arange(len(rows)), "blocks")[:, 0], kind="stable")
    samples = np.concatenate([np.arange(starts[b], starts[b] + rows[b]) for b in visited])  # as they are read
    moved = np.arange(num_samples) + window * generator.uniform(samples, "order")[:, 0]
    return samples[np.argsort(moved, kind="stable")]


class RowReader:
    """Gives rows of a split by their indices, and keeps the blocks that it read last.

    Shards are opened at once: a dataset that is replaced while training reads it stays readable. Raises ValueError
    where it was replaced before.
    """

    def __init__(self, dataset: Dataset, split: Split, columns: Sequence[str], cache_bytes: int) -> None:
        _allow_many_files(len(dataset.shards(split)))
        self.columns, self.cache_bytes = list(columns), cache_bytes
        dataset.require_current()
        self.files = [pa.OSFile(str(shard)) for shard in dataset.shards(split)]
        self.footers = [pq.read_metadata(file) for file in self.files]
        dataset.require_current()  # again: it may have happened while they were opened
        self.blocks = [
            (file, number)
            for file, footer in enumerate(self.footers)
            for number in range(footer.num_row_groups)
        ]
        self.ends = np.cumsum([self.footers[file].row_group(number).num_rows for file, number in self.blocks])
        self.cache: OrderedDict[int, pa.Table] = OrderedDict()
        self.cached_bytes = 0
        self.num_reads = 0  # of blocks

    def take(self, indices: np.ndarray) -> pa.Table:
        """The rows at `indices` (B,), in that order."""
        owners = np.searchsorted(self.ends, indices, side="right")
        first = np.concatenate([[0], self.ends])[owners]
        tables = {owner: self._block(owner) for owner in np.unique(owners).tolist()}
        pieces = [
            tables[owner].slice(place, 1)
            for owner, place in zip(owners.tolist(), (indices - first).tolist(), strict=True)
        ]
        return pa.concat_tables(pieces).combine_chunks()  # a copy: a slice would be sent with its whole block

    def pieces(self, indices: np.ndarray, num_rows: int) -> Iterator[pa.Table]:
        """The rows at `indices` (N,), which rise, in pieces of at most `num_rows`; one block is held at a time."""
        for start in range(0, len(indices), num_rows):
            own = indices[start : start + num_rows]
            owners = np.searchsorted(self.ends, own, side="right")
            parts = np.split(own, np.flatnonzero(np.diff(owners)) + 1)
            yield pa.concat_tables([self.take(part) for part in parts])

    def _block(self, number: int) -> pa.Table:
        table = self.cache.pop(number, None)
        if table is None:
            file, group = self.blocks[number]
            self._make_room(self.footers[file].row_group(group).total_byte_size)
            # a reader for each block: one that stays open keeps the block that it read last
            with pq.ParquetFile(self.files[file], metadata=self.footers[file]) as shard:
                table = shard.read_row_group(group, columns=self.columns, use_threads=False)
            self.cached_bytes += table.nbytes
            self.num_reads += 1
        self.cache[number] = table  # as the one used last
        return table

    def _make_room(self, num_bytes: int) -> None:
        """Drop what was used longest ago, so that a block of so many bytes fits beside its pages as they are read."""
        while self.cache and self.cached_bytes + num_bytes > self.cache_bytes:
            self.cached_bytes -= self.cache.popitem(last=False)[1].nbytes
            pa.default_memory_pool().release_unused()  # else it keeps as much again for itself


def _allow_many_files(number: int) -> None:
    """Raise this process's limit of open files where `number` more would not fit below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(list(Path("/dev/fd").iterdir())) + number + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
