"""Samples of a split that another version had on another side, and the split without them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.dataset import SPLITS, Dataset, Split
from data.files import file_sha256
from data.ingest import IngestConfig, ingest
from data.seen import seen_samples, write_kept
from tests.annotated import coco_json
from tests.pictures import class_tree, encode, picture, write_tree

FIRST = IngestConfig(val_fraction=0.2, test_fraction=0.3, near_duplicate_distance=3, max_source_gb=1)
LARGER = FIRST.model_copy(update={"test_fraction": 0.6})
ALL_TEST = FIRST.model_copy(update={"val_fraction": 0.0, "test_fraction": 0.9})


def make(
    folder: Path,
    files: dict[str, bytes],
    config: IngestConfig,
    family: str = "classification",
    name: str = "set",
) -> Dataset:
    write_tree(folder / "source", files)
    ingest(folder / "source", name=name, family=family, store=folder, config=config, workers=1)
    return Dataset.open(folder / name)


def column(dataset: Dataset, split: Split, name: str) -> list[str]:
    return [str(value) for value in dataset.table(split, [name])[name].to_pylist()]


def test_a_sample_is_seen_where_its_bytes_stood_on_another_side(tmp_path: Path) -> None:
    files = class_tree("ab", 20)
    then, now = make(tmp_path / "then", files, FIRST), make(tmp_path / "now", files, LARGER)
    fitted = {*column(then, "train", "sha256"), *column(then, "val", "sha256")}
    expected = [key in fitted for key in column(now, "test", "sha256")]
    assert 0 < sum(expected) < len(expected)
    assert seen_samples(now, "test", then).tolist() == expected
    assert not seen_samples(then, "test", then).any()


def test_a_person_is_seen_by_other_pictures_too_but_not_a_namesake_of_another_dataset(tmp_path: Path) -> None:
    people = class_tree("abgkmoqt", 4)
    others = {
        name.replace(".png", "-new.png"): encode(picture(5000 + place)) for place, name in enumerate(people)
    }
    then = make(tmp_path / "then", people, FIRST, "faces")
    now = make(tmp_path / "now", others, LARGER, "faces")
    trained = {
        then.info.classes[int(label)] for side in ("train", "val") for label in column(then, side, "label")
    }
    expected = [now.info.classes[int(label)] in trained for label in column(now, "test", "label")]
    assert 0 < sum(expected) < len(expected)
    assert seen_samples(now, "test", then).tolist() == expected
    stranger = make(tmp_path / "stranger", people, FIRST, "faces", "others")
    assert not seen_samples(now, "test", stranger).any()


def test_another_file_of_a_training_picture_that_is_gone_is_seen(tmp_path: Path) -> None:
    then = make(tmp_path / "then", class_tree("ab", 12), FIRST)
    trained = {id for side in ("train", "val") for id in column(then, side, "id")}
    again = {}
    for id in class_tree("ab", 12):
        seed = 1000 * "ab".index(id[0]) + int(id[2:-4])
        again[id.replace(".png", ".jpg")] = encode(picture(seed), "JPEG", quality=90)
    now = make(tmp_path / "now", again, ALL_TEST)
    ids = [id.replace(".jpg", ".png") for id in column(now, "test", "id")]
    expected = [id in trained for id in ids]
    assert 0 < sum(expected) < len(expected)
    assert seen_samples(now, "test", then).tolist() == expected


@pytest.mark.parametrize("family", ["classification", "detection"])
def test_what_is_kept_is_those_rows_of_that_split_and_counted_again(family: str, tmp_path: Path) -> None:
    files = class_tree("ab", 20)
    if family == "detection":
        images = [{"file_name": name, "width": 48, "height": 40} for name in files]
        boxes = [
            {"image_id": i, "category_id": 1, "bbox": [2, 3, 18, 20]} for i in range(len(files)) if i % 3
        ]
        files["boxes.json"] = coco_json(images, boxes)
    whole = make(tmp_path / "whole", files, LARGER, family)
    kept = np.arange(whole.info.num_images("test")) % 3 != 0
    (tmp_path / "rest").mkdir()
    rest = write_kept(whole, "test", kept, tmp_path / "rest")
    assert rest.table("test").equals(whole.table("test").filter(kept))
    assert [rest.info.num_images(split) for split in SPLITS] == [0, 0, int(kept.sum())]
    if family == "detection":
        labels = rest.table("test", ["box_labels"])["box_labels"].to_pylist()
        assert rest.info.num_boxes["test"]["cat"] == sum(map(len, labels)) > 0
    for shard in rest.info.shards:
        assert file_sha256(rest.path / shard.file) == shard.sha256
        assert pq.read_metadata(rest.path / shard.file).num_rows == shard.rows
    (tmp_path / "none").mkdir()
    assert write_kept(whole, "test", kept & False, tmp_path / "none").info.num_images("test") == 0
