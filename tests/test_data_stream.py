"""A split that is streamed: an order that covers it once, in windows, and rows that are read once an epoch."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import storage
from data.dataset import Dataset
from data.ingest import IngestConfig, ingest
from data.random import SampleGenerator
from data.stream import Layout, RowReader, layout_of, windowed_order
from tests.pictures import class_tree, write_tree
from tests.tiny import INGEST

COLUMNS = ("image", "label")
blocks = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """120 pictures in shards of a few blocks each."""
    folder = tmp_path_factory.mktemp("dataset")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "ROW_GROUP_ROWS", 7)
        patch.setattr(storage, "SHARD_ROWS", 30)
        source = write_tree(folder / "source", class_tree("abc", 40))
        ingest(source, name="letters", family="classification", store=folder, config=IngestConfig(**INGEST))
    return Dataset.open(folder / "letters")


def order(rows: list[int], window: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return windowed_order(SampleGenerator(seed, epoch), Layout(tuple(rows), 0), window)


@given(blocks, st.integers(1, 300), st.integers(0, 3))
def test_an_epoch_takes_every_sample_once(rows: list[int], window: int, epoch: int) -> None:
    assert sorted(order(rows, window, epoch=epoch)) == list(range(sum(rows)))


@given(blocks, st.integers(1, 100))
def test_few_samples_wait_at_any_time(rows: list[int], window: int) -> None:
    """A block is held from its first sample's turn to its last one's: what is held is the window and its two ends."""
    block_of = np.repeat(np.arange(len(rows)), rows)[order(rows, window)]
    first = {block: int(np.flatnonzero(block_of == block)[0]) for block in range(len(rows))}
    last = {block: int(np.flatnonzero(block_of == block)[-1]) for block in range(len(rows))}
    for turn in range(len(block_of)):
        held = sum(rows[b] for b in range(len(rows)) if first[b] <= turn <= last[b])
        assert held <= window + 2 * max(rows)


def test_a_window_over_all_is_a_plain_permutation() -> None:
    generator = SampleGenerator(5, 2)
    assert (windowed_order(generator, Layout((60, 40), 0), 100) == generator.permutation(100)).all()


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [order([10] * 20, 50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(each) for each in orders}) == 4
    assert (order([10] * 20, 50) == orders[0]).all()


def test_the_window_mixes_blocks() -> None:
    """Within a window, neighbours come from blocks all over it: no block comes as a run."""
    block_of = np.repeat(np.arange(100), 10)[order([10] * 100, 300)]
    assert (block_of[1:] == block_of[:-1]).mean() < 0.1


def test_pieces_are_the_rows_in_order_and_no_block_is_read_twice(letters: Dataset) -> None:
    table = letters.table("train", list(COLUMNS))
    reader = RowReader(letters, "train", COLUMNS, cache_bytes=0)
    indices = np.sort(np.random.default_rng(0).permutation(table.num_rows)[: table.num_rows // 2])
    pieces = list(reader.pieces(indices, 7))
    assert [piece.num_rows for piece in pieces[:-1]] == [7] * (len(pieces) - 1)
    rows = [row for piece in pieces for row in piece.to_pylist()]
    assert rows == [table.to_pylist()[i] for i in indices.tolist()]
    assert reader.num_reads == len(np.unique(np.searchsorted(reader.ends, indices, side="right"))) > 1
    assert list(reader.pieces(indices[:0], 7)) == []


def test_rows_come_as_they_are_asked_for(letters: Dataset) -> None:
    table = letters.table("train", list(COLUMNS))
    reader = RowReader(letters, "train", COLUMNS, cache_bytes=0)
    indices = np.random.default_rng(0).permutation(table.num_rows)[:20]
    assert reader.take(indices).to_pylist() == [table.to_pylist()[i] for i in indices.tolist()]
    assert layout_of(letters, "train").num_rows == table.num_rows
    assert layout_of(letters, "train").num_bytes >= sum(map(len, table["image"].to_pylist()))


@pytest.mark.parametrize("window_share", [0.2, 0.5])
def test_a_block_is_read_once_an_epoch(letters: Dataset, window_share: float) -> None:
    layout = layout_of(letters, "train")
    window = int(layout.num_rows * window_share)
    largest = max(layout.rows) / layout.num_rows * layout.num_bytes
    reader = RowReader(letters, "train", COLUMNS, int(layout.num_bytes * window_share + 3 * largest))
    indices = windowed_order(SampleGenerator(0, 0), layout, window)
    for start in range(0, len(indices), 5):
        reader.take(indices[start : start + 5])
        assert reader.cached_bytes <= reader.cache_bytes or len(reader.cache) == 1
    assert reader.num_reads == len(layout.rows)


def test_a_dataset_that_is_replaced_stays_readable_and_is_not_opened_again(
    letters: Dataset, tmp_path: Path
) -> None:
    dataset = Dataset.open(Path(shutil.copytree(letters.path, tmp_path / "letters")))
    reader = RowReader(dataset, "train", COLUMNS, cache_bytes=0)
    last = np.array([layout_of(dataset, "train").num_rows - 1])
    expected = letters.rows("train", last.tolist(), COLUMNS).to_pylist()
    shutil.rmtree(tmp_path / "letters")
    source = write_tree(tmp_path / "source", class_tree("xy", 40))
    ingest(source, name="letters", family="classification", store=tmp_path, config=IngestConfig(**INGEST))
    assert reader.take(last).to_pylist() == expected
    with pytest.raises(ValueError, match=r"'letters' was replaced while it was read; bring that version"):
        RowReader(dataset, "train", COLUMNS, cache_bytes=0)
