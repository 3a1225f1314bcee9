"""What is exported comes back by our own readers as the same targets, and real datasets come in and go out."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.aligned import FaceAlignment
from data.checks import check
from data.dataset import CROWD, FAMILY_NAMES, SPLITS, Dataset
from data.export import EXPORTS, export
from data.formats.yolo import read_yolo
from tests.annotated import coco_json, ingest_source, issues_of, pts, rows_of
from tests.datasets import DATASETS
from tests.pictures import class_tree, encode, picture, png
from tests.test_data_decode import with_orientation
from tests.test_data_people import faces


def targets_of(dataset: Dataset) -> dict[str, Any]:
    """Split and targets of each image, by its bytes; classes and points by name."""
    info = dataset.info
    found = {}
    for row in rows_of(dataset).values():
        targets = {
            name: row[name]
            for name in ("boxes_xyxy", "box_flags", "box_areas", "points_xy", "visible")
            if name in row
        }
        labels = row.get("box_labels", [row["label"]] if "label" in row else [])
        targets["classes"] = [info.classes[label] for label in labels]
        assert hashlib.sha256(row["image"]).hexdigest() == row["sha256"]
        assert row["sha256"] not in found
        found[row["sha256"]] = (row["split"], targets)
    return found


def pairs_of(dataset: Dataset) -> list[tuple[str, str, bool, int]]:
    sha256 = {name: row["sha256"] for name, row in rows_of(dataset).items()}
    rows = pq.read_table(dataset.path / "pairs.parquet").to_pylist()
    return [(sha256[row["id_a"]], sha256[row["id_b"]], row["same"], row["fold"]) for row in rows]


def round_trip(tmp_path: Path, dataset: Dataset, format: str) -> Dataset:
    out = tmp_path / f"out-{format}"
    report = export(dataset, format, out)
    assert report.images == {split: dataset.info.num_images(split) for split in SPLITS}
    stored = {hashlib.sha256(file.read_bytes()).hexdigest() for file in out.rglob("*") if file.is_file()}
    assert stored >= {row["sha256"] for row in rows_of(dataset).values()}  # byte for byte
    _, again = ingest_source(tmp_path, dataset.info.family, out, f"again-{format}")
    assert check(again).problems == ()
    return again


def boxed(tmp_path: Path) -> Dataset:
    """Random boxes with all flags, half of them with areas of their own, on pictures of all orientations; names that
    collide or have no ending.
    """
    generator = np.random.default_rng(0)
    names = [
        "a/1.png",
        "b/1.png",
        "c/1.PNG",
        "c/1.jpg",
        "a__1.png",
        *(f"x{i}.png" for i in range(19)),
        "x/readme.png",
    ]
    files, images, annotations = {}, [], []
    for i, name in enumerate(names):
        files[name] = with_orientation(picture(i, 48, 40), 1 + i % 8, "PNG")
        images.append({"file_name": name, "width": 48, "height": 40})
        for _ in range(i % 5):
            x, y = generator.uniform(0, 40, 2)
            w, h = generator.uniform(0.5, 60, 2)  # many reach over the edge, which is where zeros come from
            keys = {key: int(generator.integers(2)) for key in ("iscrowd", "difficult", "truncated")}
            box = {"image_id": i, "category_id": int(generator.integers(1, 4)), "bbox": [x, y, w, h], **keys}
            annotations.append(box | ({"area": w * h / 3} if len(annotations) % 2 else {}))
    files["instances.json"] = coco_json(images, annotations, ("a name", "ünïcode: #1", "no"))
    _, dataset = ingest_source(tmp_path, "detection", files)
    assert all(dataset.info.num_images(split) for split in SPLITS)
    assert dataset.info.box_areas
    return dataset


def test_coco_comes_back_as_it_was(tmp_path: Path) -> None:
    dataset = boxed(tmp_path)
    again = round_trip(tmp_path, dataset, "coco")
    assert again.info.classes == dataset.info.classes
    assert targets_of(again) == targets_of(dataset)
    assert again.info.num_boxes == dataset.info.num_boxes


def test_yolo_comes_back_as_it_was_but_for_flags_and_crowds(tmp_path: Path) -> None:
    dataset = boxed(tmp_path)
    again = round_trip(tmp_path, dataset, "yolo")
    expected = targets_of(dataset)
    num_crowds = 0
    for _, targets in expected.values():
        keep = [not flags & CROWD for flags in targets["box_flags"]]
        num_crowds += keep.count(False)
        boxes = np.array(targets["boxes_xyxy"]).reshape(-1, 4)[np.array(keep, bool)]
        targets["boxes_xyxy"] = boxes.ravel().tolist()
        targets["classes"] = [name for name, kept in zip(targets["classes"], keep, strict=True) if kept]
        targets["box_flags"] = [0] * sum(keep)
        del targets["box_areas"]
    assert targets_of(again) == expected
    assert again.info.classes == dataset.info.classes
    report = json.loads((again.path / "report.json").read_text())
    assert {issue["what"] for issue in report["issues"]} == {"images without boxes, kept as background"}
    notes = export(dataset, "yolo", tmp_path / "other").notes
    assert f"{num_crowds} boxes of crowds were left out" in notes
    assert "boxes lost their own areas: YOLO has none" in notes


def test_yolo_text_is_what_its_tools_expect(tmp_path: Path) -> None:
    images = [{"file_name": f"{i}.png"} for i in range(6)]
    box = {"category_id": 2, "bbox": [12, 10, 24, 20]}
    files = {f"{i}.png": png(i) for i in range(6)}
    files["a.json"] = coco_json(images, [{**box, "image_id": i} for i in range(6)])
    _, dataset = ingest_source(tmp_path, "detection", files)
    export(dataset, "yolo", tmp_path / "out")
    (file,) = (tmp_path / "out/labels").glob("*/0.txt")
    assert file.read_text() == "1 0.5 0.5 0.5 0.5\n"
    assert read_yolo(file.read_text()) == [(1, 0.25, 0.25, 0.75, 0.75)]
    assert (tmp_path / f"out/images/{file.parent.name}/0.png").read_bytes() == files["0.png"]


@pytest.mark.parametrize("family", ["classification", "faces", "style"])
def test_folders_come_back_as_they_were(tmp_path: Path, family: str) -> None:
    files = class_tree("abcdefghijkl" if family == "faces" else "ab", 12)
    files |= {"a/deep/1.png": png(77_000), "a/1.jpg": encode(picture(78_000), "JPEG"), "b/none": png(79_000)}
    _, dataset = ingest_source(tmp_path, family, files)
    again = round_trip(tmp_path, dataset, "folders")
    assert targets_of(again) == targets_of(dataset)
    assert again.info.classes == dataset.info.classes


def test_lone_pictures_of_style_come_back(tmp_path: Path) -> None:
    _, dataset = ingest_source(tmp_path, "style", {f"{i}.png": png(i) for i in range(30)})
    assert targets_of(round_trip(tmp_path, dataset, "folders")) == targets_of(dataset)


def test_pairs_and_the_alignment_come_back(tmp_path: Path) -> None:
    pairs = b"2 1\nAnn_Lee 1 2\nAnn_Lee 1 Bob 1\nBob 1 2\nBob 3 Ann_Lee 1\n"
    alignment = FaceAlignment(method="crop", side_px=112, crop_xyxy=(3, 11, 118, 126))
    files = {"pairs.txt": pairs, "alignment.json": alignment.model_dump_json().encode()}
    _, dataset = ingest_source(tmp_path, "faces", faces() | files)
    again = round_trip(tmp_path, dataset, "folders")
    assert pairs_of(again) == pairs_of(dataset)
    assert len(pairs_of(again)) == 4
    assert again.info.alignment == dataset.info.alignment == alignment


@pytest.mark.parametrize("names", ["numbers", "words"])
def test_landmarks_come_back(tmp_path: Path, names: str) -> None:
    files = {f"x/{i}.png": with_orientation(picture(i, 48, 40), 1 + i % 8, "PNG") for i in range(30)}
    if names == "numbers":
        files |= {f"x/{i}.pts": pts((1.5 + i, 2), (48, 40 - i / 7)) for i in range(30)}
    else:
        rows = "".join(f"x/{i}.png,{i / 3},{i},1,,,0,3,4,{i % 2}\n" for i in range(30))
        files["t.csv"] = ("path,nose_x,nose_y,nose_v,a_x,a_y,a_v,b_x,b_y,b_v\n" + rows).encode()
    _, dataset = ingest_source(tmp_path, "landmarks", files)
    again = round_trip(tmp_path, dataset, "folders")
    assert targets_of(again) == targets_of(dataset)
    assert (
        again.info.points == dataset.info.points == (("0", "1") if names == "numbers" else ("nose", "a", "b"))
    )


def test_what_cannot_be_exported_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    _, dataset = ingest_source(tmp_path, "classification", class_tree("ab", 10))
    with pytest.raises(
        ValueError, match=r"format \(='coco'\) cannot hold .*classification goes into folders"
    ):
        export(dataset, "coco", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    with pytest.raises(ValueError, match="is there and not empty"):
        export(dataset, "folders", tmp_path / "full")
    slashed = Dataset(dataset.path, dataset.info.model_copy(update={"classes": ("a", "b/c")}))
    with pytest.raises(ValueError, match="class 'b/c' cannot be the name of a folder"):
        export(slashed, "folders", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "source-set", "store"]
    (tmp_path / "empty").mkdir()
    export(dataset, "folders", tmp_path / "empty")
    assert (tmp_path / "empty" / "train").is_dir()


def test_every_family_has_a_format_to_go_out_in() -> None:
    assert {family for form in EXPORTS.values() for family in form.families} == set(FAMILY_NAMES)


# ----------------------------------------------------------------------------------------- real data


def real(tmp_path: Path, archive: str, family: str) -> tuple[Any, Dataset]:
    path = DATASETS / archive
    if not path.is_file():
        pytest.skip(f"{path} is not there; set CONVOY_DATASETS")
    report, dataset = ingest_source(tmp_path, family, path)
    assert report.set_aside == ()
    assert check(dataset).problems == ()
    return report, dataset


BOXED = {  # boxes, those left out, classes, images of train + val and of test as the source has them
    "bccd.tar": (4886, {"boxes without area, left out": 2}, 3, {"train": 205, "val": 87, "test": 72}),
    "street_voc5.tar": (1320, {}, 5, {"val": 96}),
    "coco128_yolo.tar": (929, {"images without annotation, kept as background": 2}, 80, {}),
    "voc40.tar": (87, {}, 18, {}),
}


@pytest.mark.data
@pytest.mark.parametrize("archive", BOXED)
def test_real_boxes_come_in_and_go_out_and_come_back(tmp_path: Path, archive: str) -> None:
    num_boxes, issues, num_classes, splits = BOXED[archive]
    report, dataset = real(tmp_path, archive, "detection")
    assert sum(sum(boxes.values()) for boxes in report.num_boxes.values()) == num_boxes
    assert issues_of(report) == issues
    assert len(dataset.info.classes) == num_classes
    for split, number in splits.items():
        assert dataset.info.num_images(split) == number  # type: ignore[arg-type]
    expected = targets_of(dataset)
    assert targets_of(round_trip(tmp_path, dataset, "coco")) == expected
    for _, targets in expected.values():
        targets["box_flags"] = [0] * len(targets["box_flags"])
    assert targets_of(round_trip(tmp_path, dataset, "yolo")) == expected


@pytest.mark.data
def test_real_landmarks_come_in_and_go_out_and_come_back(tmp_path: Path) -> None:
    report, dataset = real(tmp_path, "facial_keypoints_112.tar", "landmarks")
    assert (report.num_images, dataset.info.num_images("test"), len(dataset.info.points)) == (1619, 174, 68)
    row = rows_of(dataset)["train/Abdel_Aziz_Al-Hakim_a00.jpg"]
    assert row["points_xy"][:4] == pytest.approx([18.91, 47.03, 20.85, 57.70])
    assert targets_of(round_trip(tmp_path, dataset, "folders")) == targets_of(dataset)


@pytest.mark.slow
@pytest.mark.data
def test_real_faces_come_in_with_lists_and_pairs(tmp_path: Path) -> None:
    report, dataset = real(tmp_path, "lfw_deepfunneled_c128.tar.xz", "faces")
    rows = rows_of(dataset)
    people = {split: {row["label"] for row in rows.values() if row["split"] == split} for split in SPLITS}
    assert len(people["train"]) + len(people["val"]) == 1062
    assert len(people["test"]) == 963
    assert not (people["train"] | people["val"]) & people["test"]
    pairs = pq.read_table(dataset.path / "pairs.parquet").to_pylist()
    assert [sum(pair["same"] is same for pair in pairs) for same in (True, False)] == [500, 500]
    assert issues_of(report) == {"identities with one image": 602}
    again = round_trip(tmp_path, dataset, "folders")
    assert pairs_of(again) == pairs_of(dataset)
    assert targets_of(again) == targets_of(dataset)


@pytest.mark.data
def test_real_faces_without_lists_come_in(tmp_path: Path) -> None:
    report, dataset = real(tmp_path, "orl_faces.tar.xz", "faces")
    assert (report.num_images, len(dataset.info.classes), dataset.info.channels) == (400, 40, 1)
    assert report.formats == {"PPM": 400}


@pytest.mark.data
def test_real_pictures_for_style_come_in(tmp_path: Path) -> None:
    _, dataset = real(tmp_path, "style_transfer.tar", "style")
    counts = {name: sum(c[name] for c in dataset.info.counts.values()) for name in dataset.info.classes}
    assert counts == {"content": 13, "style": 12}


@pytest.mark.data
@pytest.mark.parametrize(
    ("archive", "counts"),
    [
        ("caltech101_20.tar", (20, 800, 400)),
        ("hymenoptera_240.tar", (2, 398, 0)),
        ("trashnet_150.tar.xz", (6, 2527, 0)),
    ],
)
def test_real_folders_of_classes_come_in(tmp_path: Path, archive: str, counts: tuple[int, int, int]) -> None:
    report, dataset = real(tmp_path, archive, "classification")
    num_classes, num_rest, num_test = counts
    assert len(dataset.info.classes) == num_classes
    assert report.num_images == num_rest + num_test
    if archive.startswith("trashnet"):  # by its lists
        assert [dataset.info.num_images(split) for split in SPLITS] == [1768, 328, 431]
    if num_test:
        assert dataset.info.num_images("test") == num_test
