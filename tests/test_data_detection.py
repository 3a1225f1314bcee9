"""Boxes come in from COCO, Pascal VOC and YOLO as the same targets, and what is wrong with them is counted."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.checks import check
from data.dataset import BOX_AREAS, Dataset
from data.decode import decode_image
from data.files import file_sha256
from data.formats import Boxes, RawItem
from data.formats.coco import read_coco
from data.formats.voc import parse_xml, read_voc
from data.formats.yolo import read_yolo
from data.measurement import measure
from data.targets import check_targets
from tests.annotated import coco_json, ingest_source, issues_of, listing_of, rows_of, voc_xml
from tests.pictures import picture, png, write_tree
from tests.test_data_decode import with_orientation

BOX = {"image_id": 0, "category_id": 1, "bbox": [1, 2, 10, 20]}


def pictures(num: int, folder: str = "") -> dict[str, bytes]:
    return {f"{folder}{i}.png": png(i) for i in range(num)}  # 48x40 each


# ---------------------------------------------------------------------------------------------- COCO


def test_coco_boxes_become_corners_with_classes_in_order_of_their_ids(tmp_path: Path) -> None:
    document = {
        "images": [{"id": f"im{i}", "file_name": f"{i}.png", "width": 48, "height": 40} for i in range(8)],
        "annotations": [
            {"id": 1, "image_id": "im0", "category_id": 7, "bbox": [1, 2, 10.5, 20], "iscrowd": 0},
            {"id": 2, "image_id": "im0", "category_id": 3, "bbox": [0, 0, 48, 40], "iscrowd": 1},
            {
                "id": 3,
                "image_id": "im1",
                "category_id": 3,
                "bbox": [5, 5, 1, 1],
                "difficult": 1,
                "truncated": 1,
            },
        ],
        "categories": [{"id": 7, "name": "ant"}, {"id": 3, "name": "zebra"}],
    }
    report, dataset = ingest_source(
        tmp_path, "detection", pictures(8) | {"a.json": json.dumps(document).encode()}
    )
    rows = rows_of(dataset)
    assert dataset.info.classes == ("zebra", "ant")
    assert rows["0.png"]["boxes_xyxy"] == [1, 2, 11.5, 22, 0, 0, 48, 40]
    assert rows["0.png"]["box_labels"] == [1, 0]
    assert rows["0.png"]["box_flags"] == [0, 2]
    assert rows["1.png"]["box_flags"] == [1 | 4]
    assert rows["2.png"]["boxes_xyxy"] == []
    assert issues_of(report) == {"images without boxes, kept as background": 6}
    assert sum(sum(boxes.values()) for boxes in dataset.info.num_boxes.values()) == 3
    assert sum(counts["with boxes"] for counts in report.counts.values()) == 2
    assert sum(counts["without boxes"] for counts in report.counts.values()) == 6
    assert check(dataset).problems == ()


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
        ("train.json", "valid.json"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
    ],
)
def test_coco_files_are_splits_and_find_the_images_that_are_theirs(train: str, val: str) -> None:
    files = {"train/1.jpg": b"", "valid/1.jpg": b"", "valid/2.jpg": b"", "test/3.jpg": b""}
    files[train] = coco_json([{"file_name": "1.jpg"}], [BOX])
    files[val] = coco_json([{"file_name": "1.jpg"}, {"file_name": "2.jpg"}], [])
    found = listing_of("detection", files)
    assert {(item.id, item.split, len(item.targets["boxes"].labels)) for item in found.items} == {
        ("train/1.jpg", "train", 1),
        ("valid/1.jpg", "val", 0),
        ("valid/2.jpg", "val", 0),
    }
    assert found.ignored == {"not listed in the COCO JSON": 1}


def test_coco_captions_beside_boxes_are_left_out() -> None:
    files = {
        "images/1.jpg": b"",
        "annotations/instances_val2017.json": coco_json([{"file_name": "1.jpg"}], [BOX]),
        "annotations/person_keypoints_val2017.json": coco_json([{"file_name": "1.jpg"}], [BOX, BOX]),
        "annotations/captions_val2017.json": b'{"images": [], "annotations": [{"caption": "a cat"}]}',
    }
    (item,) = listing_of("detection", files).items
    assert len(item.targets["boxes"].labels) == 1


def test_what_does_not_fit_together_in_coco_is_counted(tmp_path: Path) -> None:
    annotations = [
        BOX,
        {**BOX, "image_id": 77},
        {**BOX, "category_id": 9},
        {"image_id": 0, "category_id": 1},
        {**BOX, "image_id": 1},
    ]
    images = [{"file_name": f"{i}.png"} for i in range(6)] + [{"file_name": "gone.png"}]
    report, dataset = ingest_source(
        tmp_path, "detection", pictures(7) | {"boxes.json": coco_json(images, annotations)}
    )
    assert issues_of(report) == {
        "annotations whose image is missing": 1,
        "annotations without a box, left out": 1,
        "boxes of an image that is not listed": 1,
        "boxes of no listed class, left out": 1,
        "images without boxes, kept as background": 4,
    }
    assert report.ignored == {"not listed in the COCO JSON": 1}
    assert sum(len(row["box_labels"]) for row in rows_of(dataset).values()) == 2
    stored = json.loads((dataset.path / "report.json").read_text())
    assert {issue["what"]: issue["count"] for issue in stored["issues"]} == issues_of(report)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("[]", "must be an object"),
        ('{"images": 1, "categories": []}', "images must be a list of objects"),
        ('{"images": [1], "categories": []}', "images must be a list of objects"),
        ('{"images": [{"id": 1}], "categories": []}', r"images\[0\]: file_name is missing"),
        ('{"images": [{"id": 1, "file_name": "../x.png"}], "categories": []}', "leads out of its folder"),
        ('{"images": [{"id": [], "file_name": "x"}], "categories": []}', "must be a number or a text"),
        (
            '{"images": [{"id": 1, "file_name": "x"}, {"id": 1, "file_name": "y"}], "categories": []}',
            "two images have the same id",
        ),
        ('{"images": [], "categories": [{"id": 1, "name": " "}]}', "must have a name"),
        (
            '{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "is given to 'a' and to 'b'",
        ),
        (
            '{"images": [], "categories": [], "annotations": [{"image_id": [], "category_id": 1}]}',
            r"annotations\[0\]: image_id .* must be a number or a text",
        ),
    ],
)
def test_a_faulty_coco_file_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_coco("x.json", text)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("x.json")


def test_an_image_with_a_broken_coco_box_is_set_aside_not_background(tmp_path: Path) -> None:
    annotations = [
        {**BOX, "id": 50, "bbox": ["a", 1, 2, 3]},
        BOX,
        {**BOX, "image_id": 1, "bbox": [1, 2]},
        {"image_id": 2, "category_id": 1, "id": "x\ny"},
        {"image_id": 3, "category_id": 1},
        {**BOX, "image_id": 3},
    ]
    images = [{"file_name": f"{i}.png"} for i in range(9)]
    files = pictures(9) | {"a.json": coco_json(images, annotations)}
    report, dataset = ingest_source(tmp_path, "detection", files)
    assert {entry.id: entry.reason for entry in report.set_aside} == {
        "0.png": "a.json: annotation 50: bbox holds 'a'; it must be four numbers",
        "1.png": "a.json: annotation 2: bbox must be four numbers: x, y, width, height in pixels",
        "2.png": "a.json: annotation 'x\\ny' has no bbox, and no other of this image has one",
    }
    assert issues_of(report) == {
        "annotations without a box, left out": 2,
        "images without boxes, kept as background": 5,
    }
    assert rows_of(dataset)["3.png"]["boxes_xyxy"] == [1, 2, 11, 22]


def test_an_image_in_two_coco_files_is_an_error() -> None:
    both = coco_json([{"file_name": "1.jpg"}], [BOX])
    with pytest.raises(ValueError, match=r"is listed in all\.json too"):
        listing_of("detection", {"1.jpg": b"", "all.json": both, "train.json": both})


# ----------------------------------------------------------------------------------------------- VOC


def test_voc_corners_counted_from_1_become_edges_from_0(tmp_path: Path) -> None:
    files = pictures(5, "JPEGImages/") | {
        f"Annotations/{i}.xml": voc_xml(("dog", 1, 1, 48, 40), ("cat", 11, 21, 20, 30)) for i in range(5)
    }
    _, dataset = ingest_source(tmp_path, "detection", files)
    row = rows_of(dataset)["0.png"]
    assert dataset.info.classes == ("cat", "dog")
    assert row["boxes_xyxy"] == [0, 0, 48, 40, 10, 20, 20, 30]
    assert row["box_labels"] == [1, 0]


def test_voc_flags_and_odd_numbers() -> None:
    text = voc_xml(("a  b", 0, 1.5, 3, 4)).decode()
    text = text.replace("<bndbox>", "<difficult>1</difficult><truncated>1</truncated><bndbox>")
    assert read_voc(text) == ((48, 40), [([0, 1.5, 3, 4], "a b", 5)])
    item = listing_of("detection", {"1.png": b"", "1.xml": text.encode()}).items[0]
    assert item.targets["boxes"].boxes_xyxy.tolist() == [[0, 0.5, 3, 4]]  # xmin = 0 is an edge already


def test_voc_image_sets_are_the_splits() -> None:
    top = "VOCdevkit/VOC2007/"
    files = {f"{top}JPEGImages/{i}.jpg": b"" for i in range(5)}
    files |= {f"{top}Annotations/{i}.xml": voc_xml(("cat", 1, 1, 9, 9)) for i in range(4)}
    sets = {"train": "0\n1\n", "val": "2\n", "trainval": "0\n1\n2\n", "test": "4\n9\n", "cat_train": "0 -1\n"}
    files |= {f"{top}ImageSets/Main/{name}.txt": text.encode() for name, text in sets.items()}
    found = listing_of("detection", files)
    assert {item.id: item.split for item in found.items} == {
        "0.jpg": "train", "1.jpg": "train", "2.jpg": "val", "4.jpg": "test",
    }  # fmt: skip
    assert {what: len(where) for what, where in found.issues.items()} == {
        "names in lists of splits without an image": 1,
        "images without annotation, kept as background": 1,
    }
    assert found.ignored == {"not named in ImageSets": 2}  # 3.jpg and cat_train.txt


def test_voc_trainval_alone_is_train() -> None:
    files = {"JPEGImages/0.jpg": b"", "Annotations/0.xml": voc_xml(("cat", 1, 1, 9, 9))}
    (item,) = listing_of("detection", files | {"ImageSets/Main/trainval.txt": b"0\n"}).items
    assert item.split == "train"


@pytest.mark.parametrize(
    "names",
    [("train/1.jpg", "train/1.xml", "val/1.jpg", "val/1.xml"),
     ("train/images/1.jpg", "train/annotations/1.xml", "val/images/1.jpg", "val/annotations/1.xml")],
)  # fmt: skip
def test_voc_files_in_split_folders_belong_to_the_nearest_image(names: tuple[str, ...]) -> None:
    files = {name: b"" if name.endswith("jpg") else voc_xml((name[:3], 1, 1, 9, 9)) for name in names}
    found = listing_of("detection", files)
    assert found.classes == ("tra", "val")
    assert [(i.split, i.targets["boxes"].labels.tolist()) for i in found.items] == [
        ("train", [0]), ("val", [1]),
    ]  # fmt: skip


def test_an_image_with_a_broken_voc_file_is_set_aside_not_background(tmp_path: Path) -> None:
    files = pictures(8) | {f"{i}.xml": voc_xml(("cat", 1, 1, 9, 9)) for i in range(8)}
    files["3.xml"] = b"<annotation><object>"
    files["4.xml"] = voc_xml(("cat", 1, 1, 9, 9)).replace(b"<xmin>1<", b"<xmin>left<")
    files["lost.xml"] = voc_xml(("cat", 1, 1, 9, 9))
    report, dataset = ingest_source(tmp_path, "detection", files)
    assert {entry.id: entry.reason for entry in report.set_aside} == {
        "3.png": "3.xml: not readable as XML (no element found: line 1, column 20)",
        "4.png": "4.xml: object 0: xmin (='left') must be a number of pixels",
    }
    assert issues_of(report) == {"annotations whose image is missing": 1}
    assert len(rows_of(dataset)) == 6


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>',
        '<!DOCTYPE a SYSTEM "http://localhost/a.dtd"><annotation/>',
        '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
    ],
)
def test_xml_with_a_document_type_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="document type"):
        parse_xml(text)


def test_xml_that_nests_too_deep_is_refused() -> None:
    with pytest.raises(ValueError, match="64 deep"):
        parse_xml("<a>" * 100_000)


# ---------------------------------------------------------------------------------------------- YOLO


def test_yolo_shares_become_pixels(tmp_path: Path) -> None:
    files = pictures(6, "images/train/") | {
        "images/val/9.png": png(9),
        "labels/train/0.txt": b"1 0.5 0.5 0.5 0.25\n0 0.25 0.25 0.5 0.5\n\n",
        "labels/train/1.txt": b"0.0 0.1 0.1 0.5 0.1 0.5 0.9\n",  # the corners of a triangle
        "labels/train/2.txt": b"5 0.5 0.5 0.5 0.5\n",
        "labels/train/3.txt": b"",
        "labels/train/gone.txt": b"0 0.5 0.5 0.5 0.5\n",
        "data.yaml": b"path: ../datasets/x\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n",
    }
    report, dataset = ingest_source(tmp_path, "detection", files)
    rows = rows_of(dataset)
    assert rows["train/0.png"]["boxes_xyxy"] == [12, 15, 36, 25, 0, 0, 24, 20]
    assert rows["train/0.png"]["box_labels"] == [1, 0]
    assert rows["train/1.png"]["boxes_xyxy"] == pytest.approx([4.8, 4, 24, 36])
    assert rows["val/9.png"]["split"] == "val"
    assert dataset.info.classes == ("cat", "dog")
    assert issues_of(report) == {
        "boxes of no listed class, left out": 1,
        "images without annotation, kept as background": 3,
        "images without boxes, kept as background": 1,
        "label files whose image is missing": 1,
    }


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data.yaml", "names: {0: cat, 1: dog}"),
        ("sub.yml", "names:\n- cat\n- dog\n"),
        ("classes.txt", "cat\ndog\n"),
        ("labels/classes.txt", "cat\r\ndog\r\n\r\n"),
        ("obj.names", "cat\ndog"),
    ],
)
def test_yolo_class_names_come_from_where_tools_put_them(file: str, text: str) -> None:
    found = listing_of("detection", {"images/1.jpg": b"", "labels/1.txt": b"", file: text.encode()})
    assert found.classes == ("cat", "dog")
    assert found.issues == {"images without boxes, kept as background": ["images/1.jpg"]}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no class names; add a data.yaml"),
        ({"a.yaml": b"names: [a]", "b.yaml": b"names: [b]"}, "have different class names"),
        ({"a.yaml": b"names: {0: a, 2: b}"}, "without gaps"),
        ({"a.yaml": b"names: [a, a]"}, "must be there, and differ"),
        ({"a.yaml": b"names: 3"}, "must be a list"),
        ({"a.yaml": b"names: [a\n"}, "not readable as YAML"),
    ],
)
def test_yolo_without_clear_class_names_is_an_error(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        listing_of("detection", {"images/1.jpg": b"", "labels/1.txt": b""} | files)
    assert "\n" not in str(error.value)


def test_yolo_lists_of_images_are_splits_and_train_comes_before_val() -> None:
    files: dict[str, bytes] = {f"images/{i}.jpg": b"" for i in range(3)} | {
        f"labels/{i}.txt": b"" for i in range(3)
    }
    files["data.yaml"] = b"train: ./train.txt\nval: val.txt\nnames: [a]\n"
    files |= {
        "train.txt": b"./images/0.jpg\n./images/1.jpg\n",
        "val.txt": b"/data/x/images/1.jpg\nimages/2.jpg",
    }
    found = listing_of("detection", files)
    assert {item.id: item.split for item in found.items} == {
        "0.jpg": "train",
        "1.jpg": "train",
        "2.jpg": "val",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "4 fields; a box has 5"),
        ("0 0.5 0.5 0.5 0.5 0.9", "6 fields; a box has 5"),
        ("cat 0.5 0.5 0.5 0.5", "something else than numbers"),
        ("0.5 0.5 0.5 0.5 0.5", "must be a whole number"),
        ("nan 0.5 0.5 0.5 0.5", "must be a whole number"),
        ("0 120 80 30 30", "not pixels"),
    ],
)
def test_a_faulty_yolo_line_is_named(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"line 2: .*{message}"):
        read_yolo(f"0 0.5 0.5 0.5 0.5\n{line}\n")


# ------------------------------------------------------------------------------- boxes and the image


def test_boxes_are_checked_against_the_image(tmp_path: Path) -> None:
    boxes = [
        [-5, -5, 10, 10],  # over the edge: cut
        [40, 30, 100, 100],  # over the edge: cut
        [48, 0, 5, 5],  # outside
        [-9, 3, 5, 5],  # outside
        [5, 5, 0, 5],  # without area
        [5, 5, -2, 5],  # swapped
        [1, 1, 2, 2],
        [1, 1, 2, 2],  # twice
    ]
    annotations = [{**BOX, "bbox": box} for box in boxes]
    annotations.append({**BOX, "category_id": 2, "bbox": [1, 1, 2, 2]})  # the same box of another class
    images = [{"file_name": f"{i}.png"} for i in range(6)]
    document = coco_json(images, annotations).replace(b"[1, 2, 10, 20]", b"[NaN, 2, 10, 20]")
    report, dataset = ingest_source(tmp_path, "detection", pictures(6) | {"a.json": document})
    row = rows_of(dataset)["0.png"]
    assert row["boxes_xyxy"] == [0, 0, 5, 5, 40, 30, 48, 40, 1, 1, 3, 3, 1, 1, 3, 3]
    assert row["box_labels"] == [0, 0, 0, 1]
    assert issues_of(report) == {
        "boxes over the edge, cut there": 2,
        "boxes outside the image, left out": 2,
        "boxes without area, left out": 1,
        "boxes with corners swapped, left out": 1,
        "boxes given twice, one left out": 1,
        "images without boxes, kept as background": 5,
    }
    assert check(dataset).problems == ()


def test_boxes_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    document = coco_json([{"file_name": f"{i}.png"} for i in range(6)], [BOX] * 5)
    huge = b"[1" + b"0" * 400 + b", 2, 3, 4]"
    for number in (b"[NaN, 2, 10, 20]", b"[-Infinity, 2, Infinity, 20]", b"[1.7e308, 2, 1.7e308, 20]", huge):
        document = document.replace(b"[1, 2, 10, 20]", number, 1)
    report, dataset = ingest_source(tmp_path, "detection", pictures(6) | {"a.json": document})
    assert issues_of(report)["boxes that are not numbers, left out"] == 4
    assert rows_of(dataset)["0.png"]["boxes_xyxy"] == [1, 2, 11, 22]


Corners = tuple[float, float, float, float]


def annotations_in(form: str, boxes: dict[int, list[Corners]]) -> dict[str, bytes]:
    """Annotations of pictures by their numbers, corners in pixels, as a format has them."""
    if form == "coco":
        images = [{"file_name": f"{i}.png"} for i in boxes]
        rows = [{**BOX, "image_id": i, "bbox": [x0, y0, x1 - x0, y1 - y0]}
                for i, some in boxes.items() for x0, y0, x1, y1 in some]  # fmt: skip
        return {"a.json": coco_json(images, rows)}
    if form == "voc":
        return {
            f"{i}.xml": voc_xml(*(("cat", x0 + (x1 > x0), y0 + (y1 > y0), x1, y1) for x0, y0, x1, y1 in some))
            for i, some in boxes.items()
        }
    lines = {
        i: "".join(
            f"0 {(x0 + x1) / 96} {(y0 + y1) / 80} {(x1 - x0) / 48} {(y1 - y0) / 40}\n"
            for x0, y0, x1, y1 in some
        )
        for i, some in boxes.items()
    }
    return {f"{i}.txt": text.encode() for i, text in lines.items()} | {"classes.txt": b"cat\n"}


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_a_picture_that_keeps_none_of_its_boxes_is_set_aside_not_background(
    form: str, tmp_path: Path
) -> None:
    sound, outside = (8, 8, 16, 20), (60, 8, 72, 20)
    boxes: dict[int, list[Corners]] = {i: [sound] for i in range(12)}
    boxes |= {
        1: [outside],
        2: [(16, 8, 8, 20)],
        3: [(float("nan"), 8, 16, 20)],
        4: [sound, outside],
        5: [(8, 8, 8, 20), outside, outside],
        6: [],
    }
    report, dataset = ingest_source(tmp_path, "detection", pictures(12) | annotations_in(form, boxes))
    why = "none of its boxes can be used: boxes"
    assert {entry.id: entry.reason for entry in report.set_aside} == {
        "1.png": f"{why} outside the image",
        "2.png": f"{why} with corners swapped",
        "3.png": f"{why} that are not numbers",
        "5.png": f"{why} without area; boxes outside the image",
    }
    assert {entry.fault for entry in report.set_aside} == {"annotation-unreadable"}
    assert issues_of(report) == {
        "boxes outside the image, left out": 4,
        "boxes with corners swapped, left out": 1,
        "boxes that are not numbers, left out": 1,
        "boxes without area, left out": 1,
        "images without boxes, kept as background": 1,
    }
    rows = rows_of(dataset)
    assert rows.keys() == {f"{i}.png" for i in (0, 4, 6, 7, 8, 9, 10, 11)}
    assert rows["6.png"]["boxes_xyxy"] == [] and rows["4.png"]["boxes_xyxy"] == list(sound)
    assert check(dataset).problems == ()


def test_areas_are_kept_as_coco_gives_them_and_of_an_unusable_one_the_boxes_counts(tmp_path: Path) -> None:
    areas = [7.25, 0, 1e-300, None, -1, "12", True, [5], 10**400]
    annotations = [
        {**BOX, "bbox": [0, 0, 2 + i, 4], **({} if area is None else {"area": area})}
        for i, area in enumerate(areas)
    ]
    annotations += [{**BOX, "bbox": [i, 20, 2, 4], "area": 77777} for i in range(3)]
    images = [{"file_name": f"{i}.png"} for i in range(6)]
    document = coco_json(images, annotations)
    for number in (b"NaN", b"Infinity", b"null"):
        document = document.replace(b"77777", number, 1)
    files = pictures(6) | {"0.png": with_orientation(picture(0, 48, 40), 6, "PNG"), "a.json": document}
    report, dataset = ingest_source(tmp_path, "detection", files)
    rows = rows_of(dataset)
    own = [4.0 * (2 + i) for i in range(len(areas))]
    assert rows["0.png"]["box_areas"] == [7.25, 0, 1e-300, *own[3:], 8, 8, 8]
    assert rows["1.png"]["box_areas"] == []
    counts = {"areas that are no numbers, not finite or below 0, the box's own taken": 7}
    assert issues_of(report) == counts | {"images without boxes, kept as background": 5}
    assert dataset.info.box_areas and check(dataset).problems == ()


@pytest.mark.parametrize("area", [10 * 20, 200.1])  # of rounded corners it is not quite that
def test_a_dataset_whose_areas_are_its_boxes_is_the_one_without_areas(area: float, tmp_path: Path) -> None:
    images = [{"file_name": f"{i}.png"} for i in range(6)]
    datasets = []
    for name, extra in (("without", dict[str, float]()), ("with", {"area": area})):
        source = write_tree(
            tmp_path / name / "set", pictures(6) | {"a.json": coco_json(images, [BOX | extra])}
        )
        datasets.append(ingest_source(tmp_path / name, "detection", source)[1])
    one, other = datasets
    assert one.info == other.info and not one.info.box_areas
    assert one.table("train").schema.names == one.info.columns.names
    names = sorted(file.name for file in one.path.iterdir())
    assert [(one.path / name).read_bytes() for name in names] == [
        (other.path / name).read_bytes() for name in names
    ]


def test_areas_that_were_tampered_with_are_found(tmp_path: Path) -> None:
    images = [{"file_name": f"{i}.png"} for i in range(6)]
    _, dataset = ingest_source(
        tmp_path, "detection", pictures(6) | {"a.json": coco_json(images, [BOX | {"area": 7}])}
    )
    shards = []
    for shard in dataset.info.shards:
        table = pq.read_table(dataset.path / shard.file)
        areas = [[-1.0 for _ in own] for own in table["box_areas"].to_pylist()]
        column = table.schema.get_field_index("box_areas")
        pq.write_table(
            table.set_column(column, BOX_AREAS, pa.array(areas, BOX_AREAS.type)), dataset.path / shard.file
        )
        shards.append(shard.model_copy(update={"sha256": file_sha256(dataset.path / shard.file)}))
    damaged = Dataset(dataset.path, dataset.info.model_copy(update={"shards": tuple(shards)}))
    fault = "'0.png' has areas that are not one a box, or not finite, or below 0"
    assert any(fault in problem for problem in check(damaged).problems)
    without = Dataset(dataset.path, damaged.info.model_copy(update={"box_areas": False}))
    assert check(without).problems == ()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("given_as", ["stored", "upright", "no size", "yolo"])
def test_boxes_follow_the_exif_orientation(tmp_path: Path, orientation: int, given_as: str) -> None:
    stored, (width, height) = (4, 6, 14, 28), (48, 32)
    upright = where_it_shows(stored, orientation, width, height)
    upright_size = (height, width) if orientation >= 5 else (width, height)
    files = pictures(5) | {"turned.png": with_orientation(picture(99, width, height), orientation, "PNG")}
    if given_as == "yolo":  # its reference reader turns the image first
        w, h = upright_size
        x0, y0, x1, y1 = upright
        line = f"0 {(x0 + x1) / 2 / w} {(y0 + y1) / 2 / h} {(x1 - x0) / w} {(y1 - y0) / h}"
        files |= {"turned.txt": line.encode(), "classes.txt": b"cat\ndog\n"}
    else:
        # where both sizes are the same, nothing tells them apart: then boxes are of the stored pixels
        as_upright = given_as == "upright" and orientation >= 5
        x0, y0, x1, y1 = upright if as_upright else stored
        w, h = upright_size if as_upright else (width, height)
        size = {} if given_as == "no size" else {"width": w, "height": h}
        images = [{"file_name": "turned.png", **size}, *({"file_name": f"{i}.png"} for i in range(5))]
        files["a.json"] = coco_json(images, [{**BOX, "bbox": [x0, y0, x1 - x0, y1 - y0]}])
    report, dataset = ingest_source(tmp_path, "detection", files)
    assert rows_of(dataset)["turned.png"]["boxes_xyxy"] == pytest.approx(upright)
    assert report.oddities["rotated by EXIF"] == (orientation != 1)


def where_it_shows(
    box: tuple[int, int, int, int], orientation: int, width: int, height: int
) -> tuple[int, ...]:
    """The box in the upright image: it is painted, and the decoded pixels are looked at."""
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    pixels = np.asarray(decode_image(with_orientation(mask, orientation, "PNG"), channels=1))
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_an_annotation_of_another_size_is_counted(tmp_path: Path) -> None:
    images = [{"file_name": f"{i}.png", "width": 96, "height": 80} for i in range(6)]
    report, _ = ingest_source(tmp_path, "detection", pictures(6) | {"a.json": coco_json(images, [BOX])})
    assert issues_of(report)["annotations with another image size than the image"] == 6


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    files = pictures(9, "JPEGImages/") | {
        f"Annotations/{i}.xml": voc_xml(("dog", 1, 1, 48, 40)) for i in range(9)
    }
    _, one = ingest_source(tmp_path, "detection", files, "set")
    (tmp_path / "store" / "set").rename(tmp_path / "first")
    _, two = ingest_source(tmp_path, "detection", tmp_path / "source-set", "set")
    names = sorted(file.name for file in two.path.iterdir())
    assert [(tmp_path / "first" / name).read_bytes() for name in names] == [
        (two.path / name).read_bytes() for name in names
    ]
    assert one.info == two.info


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.jpg": b"x", "2.jpg": b"x"}, "no known layout for detection: give COCO JSON"),
        ({"a.json": coco_json([], [])}, "no pictures found: give COCO JSON"),
        (
            {"1.png": png(1), "a.json": coco_json([{"file_name": "1.png"}], [])[:30]},
            r"no known layout for detection \(a.json: not readable as JSON .*\): give COCO JSON",
        ),
        (
            {"1.png": png(1), "a.json": b'{"images": [], "annotations": []}'},
            r"no known layout for detection \(a.json: categories must be a list of objects",
        ),
        ({"1.xml": voc_xml()}, "no pictures found"),
        ({"1.png": png(1), "1.xml": voc_xml()}, "no box of any class"),
        (
            {"1.png": b"no", "1.xml": voc_xml(("a", 1, 1, 2, 2))},
            "no usable picture; for instance 1.png: not an image",
        ),
        (
            {"1.png": png(1), "1.xml": voc_xml(("a", 60, 1, 70, 2))},
            "no usable picture; for instance 1.png: none of its boxes can be used: boxes outside the image",
        ),
    ],
)
def test_a_source_without_boxes_is_one_clear_line(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        ingest_source(tmp_path, "detection", files)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("num_classes", "note"),
    [
        (2, "no train pictures of 1 class: c1"),
        (11, "no train pictures of 10 classes: c1, c2, c3, c4, c5, c6, c7, c8, c9, c10"),
        (13, "no train pictures of 12 classes: c1, c2, c3, c4, c5, c6, c7, c8, c9, c10 and 2 more"),
    ],
)
def test_classes_that_a_note_does_not_name_are_counted(tmp_path: Path, num_classes: int, note: str) -> None:
    images = [{"file_name": f"{i}.png"} for i in range(9)]
    boxes = [{"image_id": i, "category_id": 1, "bbox": [1, 1, 20, 20]} for i in range(9)]
    document = coco_json(images, boxes, tuple(f"c{i}" for i in range(num_classes)))
    report, _ = ingest_source(tmp_path, "detection", pictures(9) | {"a.json": document})
    assert note in report.notes


def test_categories_of_one_name_are_one_class_and_told(tmp_path: Path) -> None:
    boxes = [{"image_id": i, "category_id": 1 + i % 3, "bbox": [1, 1, 20, 20]} for i in range(9)]
    document = coco_json([{"file_name": f"{i}.png"} for i in range(9)], boxes, ("cat", "dog", "cat"))
    report, dataset = ingest_source(tmp_path, "detection", pictures(9) | {"a.json": document})
    assert dataset.info.classes == ("cat", "dog")
    assert "a.json: categories 1, 3 are all called 'cat', and taken as one class" in report.notes


# -------------------------------------------------------------------------------------------- any bytes

junk = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(
            st.sampled_from(
                ["id", "name", "file_name", "image_id", "category_id", "bbox", "width", "iscrowd", "area"]
            ),
            inner,
            max_size=6,
        ),
    ),
    max_leaves=20,
)
fields = {"images": values, "annotations": values, "categories": values}


@given(st.one_of(junk, st.fixed_dictionaries({}, optional=fields).map(lambda d: json.dumps(d).encode())))
def test_any_json_is_read_or_one_value_error(data: bytes) -> None:
    files = {"1.jpg": b"", "a.json": data + b' "images" "categories"', "b.json": data}
    for chosen in (files, {"1.jpg": b"", "b.json": data}):
        one_value_error("detection", chosen)


tags = st.sampled_from(
    ["annotation", "object", "name", "bndbox", "xmin", "ymin", "xmax", "ymax", "size", "width"]
)
pieces = st.one_of(
    tags.map(lambda tag: f"<{tag}>"), tags.map(lambda tag: f"</{tag}>"), st.text(max_size=4),
    st.sampled_from(["&lt;", "&x;", "<![CDATA[", "]]>", "<!--", "-->", "<?xml version='1.0' encoding='utf-16'?>",
                     "<!DOCTYPE a>", "1e999", "nan"]),
)  # fmt: skip


@given(st.one_of(junk, st.lists(pieces, max_size=30).map(lambda p: "".join(p).encode("utf-8", "replace"))))
def test_any_xml_is_read_or_one_value_error(data: bytes) -> None:
    one_value_error("detection", {"1.jpg": b"", "1.xml": data})


yaml_pieces = st.sampled_from(
    ["names", ":", " ", "\n", "- ", "[", "]", "{", "}", "&a ", "*a", "!!python/object:os.system ", "0", "a", "<<", "? ",
     "%", "@", '"', "'", "|", "2001-99-99", "train", "val"]
)  # fmt: skip


@given(
    st.one_of(junk, st.lists(yaml_pieces, max_size=20).map(lambda p: "".join(p).encode())),
    st.one_of(junk, st.lists(st.floats(), max_size=12).map(lambda v: " ".join(map(str, v)).encode())),
)
def test_any_yolo_files_are_read_or_one_value_error(settings: bytes, labels: bytes) -> None:
    files = {"images/1.jpg": b"", "labels/1.txt": labels}
    one_value_error("detection", {**files, "data.yaml": settings})
    one_value_error("detection", {**files, "classes.txt": settings})


def one_value_error(family: str, files: dict[str, bytes]) -> None:
    """The files are listed, or refused by one line."""
    try:
        found = listing_of(family, files)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert len(found.items) + sum(found.ignored.values()) <= len(files)
        assert all("\n" not in item.fault for item in found.items)


numbers = st.one_of(
    st.floats(), st.integers(-5, 60).map(float), st.sampled_from([0.0, 40.0, 48.0, 1e-9, 39.9999999])
)
boxes = st.lists(st.tuples(numbers, numbers, numbers, numbers, st.integers(-1, 2)), max_size=12)
MEASURED = measure([png(1), with_orientation(picture(2, 48, 40), 6, "PNG")])


@given(boxes, boxes, st.booleans())
def test_whatever_the_boxes_those_kept_lie_inside_and_the_others_are_counted(
    first: list[tuple[float, ...]], second: list[tuple[float, ...]], relative: bool
) -> None:
    items = [
        RawItem(str(i), str(i), {"boxes": Boxes(
            boxes_xyxy=np.array([row[:4] for row in rows], np.float64).reshape(-1, 4),
            labels=np.array([row[4] for row in rows], np.int64),
            flags=np.zeros(len(rows), np.uint8),
            relative=relative,
        )})
        for i, rows in enumerate((first, second))
    ]  # fmt: skip
    targets = check_targets("detection", items, MEASURED, ("a", "b", "c"))
    num_kept = 0
    for i, (width, height) in enumerate(((48, 40), (40, 48))):
        found = np.array(targets.columns["boxes_xyxy"][i]).reshape(-1, 4)
        num_kept += len(found)
        assert len(targets.columns["box_labels"][i]) == len(targets.columns["box_flags"][i]) == len(found)
        assert (found >= 0).all()
        assert (found <= [width, height, width, height]).all()
        assert (found[:, 2:] > found[:, :2]).all()
    num_out = sum(len(where) for what, where in targets.issues.items() if "left out" in what)
    assert num_kept + num_out == len(first) + len(second)
