"""A stored dataset is read as it was written, and what is wrong with it is said in one line."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.dataset import SCHEMA, SCHEMA_VERSION, Dataset, DatasetInfo, list_names, write_info
from data.ingest import IngestConfig, ingest
from tests.handmade import write_dataset
from tests.pictures import class_tree, write_tree

CONFIG = IngestConfig(val_fraction=0.2, test_fraction=0.2, near_duplicate_distance=0, max_source_gb=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    source = write_tree(folder / "source", class_tree("abc", 8))
    ingest(source, name="letters", family="classification", store=folder / "store", config=CONFIG)
    return folder / "store"


def test_the_table_of_a_split_has_the_schema_and_an_order_that_mixes_the_classes(store: Path) -> None:
    dataset = Dataset.open(store / "letters")
    total = 0
    for split in ("train", "val", "test"):
        table = dataset.table(split)
        assert table.schema.equals(SCHEMA)
        ids = table["id"].to_pylist()
        assert ids == sorted(ids, key=lambda id: hashlib.sha256(id.encode()).hexdigest())
        assert table.num_rows == dataset.info.num_images(split)
        assert set(table["label"].to_pylist()) <= set(range(len(dataset.info.classes)))
        total += table.num_rows
    assert total == 24
    labels = dataset.table("train")["label"].to_pylist()
    assert labels != sorted(labels)


def test_columns_can_be_chosen_and_an_empty_split_keeps_them(store: Path) -> None:
    dataset = Dataset.open(store / "letters")
    assert dataset.table("train", ["label", "id"]).column_names == ["label", "id"]
    empty = Dataset(dataset.path, dataset.info.model_copy(update={"shards": ()}))
    assert empty.table("train").schema.equals(SCHEMA)
    assert empty.table("val", ["sha256"]).schema == pa.schema([SCHEMA.field("sha256")])
    assert empty.table("val").num_rows == 0


def test_rows_are_those_of_the_table_in_the_order_asked_for(tmp_path: Path) -> None:
    pictures = [np.full((4, 4, 3), level, np.uint8) for level in range(9)]
    dataset = write_dataset(tmp_path / "x", pictures, [0, 1, 0] * 3, ["a", "b"], num_shards=3)
    table = dataset.table("test", ["id", "label"])
    order = [5, 0, 8, 5]
    assert dataset.rows("test", order, ["id", "label"]).to_pylist() == [table.to_pylist()[i] for i in order]


def test_a_dataset_that_is_not_there_names_those_that_are(store: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no dataset named 'words' in .* \(there: letters\)"):
        Dataset.open(store / "words")
    assert list_names(store) == ["letters"]
    assert list_names(store / "nowhere") == []


def test_half_written_datasets_are_not_listed(store: Path) -> None:
    partial = store / ".other.partial-1-x"
    partial.mkdir(exist_ok=True)
    (partial / "dataset.json").write_text("{}")
    assert list_names(store) == ["letters"]


def test_an_older_schema_and_a_damaged_description_are_errors(store: Path, tmp_path: Path) -> None:
    values = json.loads((store / "letters" / "dataset.json").read_text())
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "dataset.json").write_text(
        json.dumps(values | {"schema_version": SCHEMA_VERSION - 1})
    )
    with pytest.raises(ValueError, match="ingest the source again"):
        Dataset.open(tmp_path / "old")
    (tmp_path / "old" / "dataset.json").write_text(json.dumps(values | {"colour": "red"}))
    with pytest.raises(ValueError, match="colour is not a parameter"):
        Dataset.open(tmp_path / "old")


def test_the_description_comes_back_as_it_was_written(store: Path, tmp_path: Path) -> None:
    info = Dataset.open(store / "letters").info
    write_info(tmp_path, info)
    assert Dataset.open(tmp_path).info == info
    assert (tmp_path / "dataset.json").read_bytes() == (store / "letters" / "dataset.json").read_bytes()
    assert isinstance(info, DatasetInfo)


def test_a_split_without_images_is_asked_for_by_name(store: Path) -> None:
    dataset = Dataset.open(store / "letters")
    dataset.require("train")
    bare = Dataset(dataset.path, dataset.info.model_copy(update={"counts": {"train": {"a": 3}}}))
    with pytest.raises(ValueError, match=r"'letters' has no val pictures \(it has: train 3, val 0, test 0\)"):
        bare.require("val")
