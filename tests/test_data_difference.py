"""What differs between two versions: every image once, in all the ways in which it differs."""

import csv
import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.dataset import SPLITS, Dataset
from data.difference import Change, Difference, Seen, Side, changes_csv, compare, compare_groups, match
from data.ingest import IngestConfig, ingest
from tests.annotated import coco_json, ingest_source, pts
from tests.pictures import class_tree, encode, picture, png, write_tree

CONFIG = IngestConfig(val_fraction=0, test_fraction=0, near_duplicate_distance=3, max_source_gb=1)


def version(folder: Path, files: dict[str, bytes], source: str = "") -> Dataset:
    root = write_tree(folder / "source", files)
    ingest(root / source, name="set", family="classification", store=folder, config=CONFIG, workers=1)
    return Dataset.open(folder / "set")


def differ(before: Dataset, after: Dataset) -> tuple[Difference, dict[str, Change]]:
    difference, changes = compare(before, after, ("1", "2"))
    return difference, {change.id: change for change in changes}


def placed(files: dict[str, str]) -> bytes:
    """A table of images, their class being the first letter, and their splits."""
    return (
        "path,label,split\n" + "".join(f"{name},{name[0]},{split}\n" for name, split in files.items())
    ).encode()


def test_each_kind_of_change_is_found_and_counted_where_it_is(tmp_path: Path) -> None:
    files = {f"{name}{i}.png": png(100 * ord(name) + i) for name in "ab" for i in range(8)}
    splits = {name: "test" if name in ("a0.png", "a1.png", "b0.png") else "train" for name in files}
    before = version(tmp_path / "1", files | {"list.csv": placed(splits)}, "list.csv")
    later = dict(files)
    later["a9.png"] = later.pop("a2.png")  # renamed
    later["b9.png"] = later.pop("a3.png")  # renamed and relabelled
    later["a4.png"] = png(7)  # changed pixels
    later["c0.png"] = png(8)  # added, of a new class
    del later["b7.png"]  # removed
    moved = {**{name: splits.get(name, "train") for name in later}, "a0.png": "train", "b1.png": "test"}
    after = version(tmp_path / "2", later | {"list.csv": placed(moved)}, "list.csv")
    difference, changes = differ(before, after)
    assert {id: change.kinds for id, change in changes.items()} == {
        "a9.png": ("renamed",),
        "b9.png": ("relabelled", "renamed"),
        "a4.png": ("changed pixels",),
        "c0.png": ("added",),
        "b7.png": ("removed",),
        "a0.png": ("moved",),
        "b1.png": ("moved",),
    }
    assert difference.counts == {
        "added": 1, "removed": 1, "changed pixels": 1, "relabelled": 1, "renamed": 2, "moved": 2,
    }  # fmt: skip
    assert difference.moves == {"test → train": 1, "train → test": 1}
    assert difference.move_examples["test → train"] == ("a0.png",)
    assert difference.by_class["relabelled"] == {"a → b": 1}
    assert difference.by_class["added"] == {"c": 1}
    assert difference.by_split["removed"] == {"train": 1, "val": 0, "test": 0}
    assert (difference.classes_added, difference.classes_removed) == (("c",), ())
    assert difference.unchanged == 16 - 6
    assert (difference.images_before["test"], difference.images_after["test"]) == (3, 3)


def test_a_version_differs_from_itself_in_nothing(tmp_path: Path) -> None:
    dataset = version(tmp_path, class_tree("ab", 6))
    difference, changes = differ(dataset, dataset)
    assert changes == {}
    assert difference.unchanged == 12
    assert not any(difference.counts.values())
    assert difference.groups == difference.moves == {}


def test_a_new_class_that_shifts_the_numbers_of_others_relabels_nothing(tmp_path: Path) -> None:
    before = version(tmp_path / "1", class_tree("bc", 4))
    after = version(tmp_path / "2", class_tree("bc", 4) | {"a/1.png": png(77)})
    assert before.info.classes != after.info.classes[:2]
    difference, changes = differ(before, after)
    assert {id: change.kinds for id, change in changes.items()} == {"a/1.png": ("added",)}
    assert difference.counts["relabelled"] == 0


def test_images_that_all_got_new_numbers_are_renamed_not_changed(tmp_path: Path) -> None:
    before = version(
        tmp_path / "1", {f"{name}/{i}.png": png(i + 50 * (name == "b")) for name in "ab" for i in range(6)}
    )
    files = {f"{name}/{i + 1}.png": png(i + 50 * (name == "b")) for name in "ab" for i in range(6)}
    difference, _ = differ(before, version(tmp_path / "2", files | {"a/0.png": png(99)}))
    assert difference.counts["renamed"] == 12
    assert difference.counts["added"] == 1
    assert difference.counts["changed pixels"] == difference.counts["removed"] == 0


def test_groups_are_known_by_their_images_not_by_their_names(tmp_path: Path) -> None:
    files = class_tree("ab", 6)
    one = {**files, "a/x.jpg": encode(picture(0), "JPEG", quality=80), "b/lone.png": png(300)}
    two = {
        **one,
        "b/y.jpg": encode(picture(1001), "JPEG", quality=80),
        "b/z.jpg": encode(picture(2), "JPEG", quality=80),
    }
    two["b/new.png"] = png(301)
    del two["a/x.jpg"], two["b/lone.png"]
    difference, _ = differ(version(tmp_path / "1", one), version(tmp_path / "2", two))
    assert difference.groups == {"added": 1, "grown": 2, "removed": 1, "shrunk": 1}
    (shrunk,) = difference.group_examples["shrunk"]
    assert (shrunk.images_before, shrunk.images_after) == (2, 1)


def image(id: str, group: str, sha256: str = "") -> Seen:
    side = Side(id=id, sha256=sha256 or id, split="train", group=group, classes=("a",))
    return Seen(side, {"a": ()})


def test_groups_that_merge_and_part_are_told() -> None:
    before = [image("1", "A"), image("2", "B"), image("3", "C"), image("4", "C")]
    after = [image("1", "X"), image("2", "X"), image("3", "C"), image("4", "D")]
    found = compare_groups(match(before, after))
    assert [(group.kind, group.group, group.images_before, group.images_after) for group in found] == [
        ("merged", "X", 2, 2), ("parted", "C", 2, 2),
    ]  # fmt: skip


@given(
    *(
        st.lists(
            st.tuples(st.integers(0, 7), st.sampled_from("STUV")), max_size=8, unique_by=lambda row: row[0]
        )
        for _ in range(2)
    )
)
def test_matching_takes_every_image_once_and_the_same_image_with_itself(left: Any, right: Any) -> None:
    before, after = ([image(str(id), "g", sha256) for id, sha256 in rows] for rows in (left, right))
    pairs = list(match(before, after))
    assert Counter(id(old) for old, _ in pairs if old) == Counter(map(id, before))
    assert Counter(id(new) for _, new in pairs if new) == Counter(map(id, after))
    for row in set(left) & set(right):
        assert any(
            old
            and new
            and (old.side.id, old.side.sha256) == (new.side.id, new.side.sha256) == (str(row[0]), row[1])
            for old, new in pairs
        )
    lost = {old.side.sha256 for old, new in pairs if old and not new}
    found = {new.side.sha256 for old, new in pairs if new and not old}
    assert not lost & found  # else it would have been a renamed image
    assert not {old.side.id for old, new in pairs if old and not new} & {
        new.side.id for old, new in pairs if new and not old
    }


def test_boxes_are_compared_by_class_whatever_their_order(tmp_path: Path) -> None:
    pictures = {f"{i}.png": png(i) for i in range(10)}
    images = [{"file_name": name} for name in pictures]
    boxes = [{"image_id": i, "category_id": 1 + i % 2, "bbox": [1, 1, 9, 9]} for i in range(9)]
    boxes.append({"image_id": 0, "category_id": 2, "bbox": [2, 2, 9, 9]})
    _, before = ingest_source(
        tmp_path, "detection", pictures | {"a.json": coco_json(images, boxes)}, "before"
    )
    boxes = list(reversed(boxes))
    boxes[0] = {**boxes[0], "bbox": [2, 2, 9, 8]}  # of image 0, the dog
    boxes.append({"image_id": 9, "category_id": 1, "bbox": [3, 3, 9, 9]})  # image 9 had none
    next(box for box in boxes if box["image_id"] == 3)["area"] = 17.5
    _, after = ingest_source(tmp_path, "detection", pictures | {"a.json": coco_json(images, boxes)}, "after")
    difference, changes = differ(before, after)
    assert {id: change.targets for id, change in changes.items()} == {
        "0.png": ("dog",), "3.png": ("dog",), "9.png": ("cat",),
    }  # fmt: skip
    assert difference.by_class["relabelled"] == {"dog": 2, "without boxes → cat": 1}


def test_landmarks_that_moved_are_named(tmp_path: Path) -> None:
    files = {f"{i}.png": png(i) for i in range(10)}
    marks = {f"{i}.pts": pts((1, 1), (2, 2)) for i in range(10)}
    _, before = ingest_source(tmp_path, "landmarks", files | marks, "before")
    _, after = ingest_source(tmp_path, "landmarks", files | marks | {"3.pts": pts((1, 1), (2, 3))}, "after")
    difference, changes = differ(before, after)
    assert {id: (change.kinds, change.targets) for id, change in changes.items()} == {
        "3.png": (("relabelled",), (before.info.points[1],))
    }
    assert difference.by_class["relabelled"] == {before.info.points[1]: 1}


def test_the_csv_has_a_line_for_each_kind_of_each_change(tmp_path: Path) -> None:
    files = class_tree("ab", 4)
    before = version(tmp_path / "1", files)
    later = {**files, "b/was a.png": files["a/0.png"], 'a/say "x", y.png': png(66)}
    del later["a/0.png"]
    _, changes = compare(before, version(tmp_path / "2", later), ("1", "2"))
    rows = list(csv.DictReader(io.StringIO(changes_csv(changes))))
    columns = ("change", "id", "id_before", "classes_before", "classes_after")
    assert [tuple(row[column] for column in columns) for row in rows] == [
        ("added", 'a/say "x", y.png', "", "", "a"),
        ("relabelled", "b/was a.png", "a/0.png", "a", "b"),
        ("renamed", "b/was a.png", "a/0.png", "a", "b"),
    ]  # fmt: skip
    assert rows[1]["targets"] == "a;b"


@pytest.mark.data
def test_a_real_archive_without_some_of_its_pictures(tmp_path: Path, datasets_folder: Path) -> None:
    with tarfile.open(datasets_folder / "bccd.tar") as archive:
        archive.extractall(tmp_path / "all", filter="data")
    _, before = ingest_source(tmp_path, "detection", tmp_path / "all", "before")
    gone = sorted((tmp_path / "all").rglob("*.jpg"))[:5]
    for file in gone:
        file.unlink()
    _, after = ingest_source(tmp_path, "detection", tmp_path / "all", "after")
    difference, _ = differ(before, after)
    assert difference.counts["removed"] == 5
    assert sum(difference.counts.values()) - difference.counts["moved"] == 5
    assert difference.unchanged + 5 + difference.counts["moved"] == sum(
        before.info.num_images(split) for split in SPLITS
    )
