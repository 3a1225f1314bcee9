"""Faces with their pairs, landmarks and pictures for style come in as their families need them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.checks import check
from data.dataset import PAIR_SCHEMA, Dataset
from data.decode import decode_image
from data.formats.identities import read_lfw_pairs
from data.formats.landmarks import read_columns, read_pts
from tests.annotated import ingest_source, issues_of, listing_of, pts, rows_of
from tests.pictures import png, write_tree
from tests.test_data_decode import with_orientation

PEOPLE = ("Ann_Lee", "Bob", "Cy", "Dee", "Eve", "Flo")


def faces(top: str = "lfw/", each: int = 3) -> dict[str, bytes]:
    return {
        f"{top}{name}/{name}_{i:04d}.png": png(100 * number + i)
        for number, name in enumerate(PEOPLE)
        for i in range(1, each + 1)
    }


def pairs_of(dataset: Dataset) -> list[tuple[str, str, bool, int]]:
    table = pq.read_table(dataset.path / "pairs.parquet")
    assert table.schema.equals(PAIR_SCHEMA)
    return [(row["id_a"], row["id_b"], row["same"], row["fold"]) for row in table.to_pylist()]


# --------------------------------------------------------------------------------------------- faces


def test_an_identity_is_a_class_and_never_crosses_a_split(tmp_path: Path) -> None:
    files = {f"p{i}/{j}.png": png(10 * i + j) for i in range(30) for j in range(1 + i % 3)}
    report, dataset = ingest_source(tmp_path, "faces", files)
    rows = rows_of(dataset)
    sides: dict[str, set[str]] = {}
    for name, row in rows.items():
        person = name.split("/")[0]
        assert dataset.info.classes[row["label"]] == row["group"] == person
        sides.setdefault(person, set()).add(row["split"])
    assert len(sides) == 30
    assert all(len(side) == 1 for side in sides.values())
    assert issues_of(report) == {"identities with one image": 10}
    assert set().union(*sides.values()) == {"train", "val", "test"}
    assert check(dataset).problems == ()


def test_lfw_pairs_are_kept_with_their_folds_and_their_people_are_tested(tmp_path: Path) -> None:
    text = "2\t1\nAnn_Lee\t1\t3\nAnn_Lee\t2\tBob\t1\nBob\t1\t2\nBob\t3\tAnn_Lee\t1\n"
    report, dataset = ingest_source(tmp_path, "faces", faces() | {"pairs.txt": text.encode()})
    assert pairs_of(dataset) == [
        ("Ann_Lee/Ann_Lee_0001.png", "Ann_Lee/Ann_Lee_0003.png", True, 0),
        ("Ann_Lee/Ann_Lee_0002.png", "Bob/Bob_0001.png", False, 0),
        ("Bob/Bob_0001.png", "Bob/Bob_0002.png", True, 1),
        ("Bob/Bob_0003.png", "Ann_Lee/Ann_Lee_0001.png", False, 1),
    ]
    for name, row in rows_of(dataset).items():
        assert (row["split"] == "test") == (name.split("/")[0] in ("Ann_Lee", "Bob"))
    assert "4 pairs from pairs.txt" in report.notes
    assert "pairs with an image of the train split" not in issues_of(report)
    assert check(dataset).problems == ()


def test_lists_of_people_are_the_splits(tmp_path: Path) -> None:
    lists = {
        "train_ids.txt": b"Ann_Lee\nBob\nNobody\n",
        "peopleDevTest.txt": b"2\nCy\t3\nDee\t3\n",
        "pairsDevTest.txt": b"Cy\t1\t2\nCy\t1\tAnn_Lee\t2\nCy\t1\tDee\t9\n",
        "pairsDevTrain.txt": b"Bob\t1\t2\n",
    }
    report, dataset = ingest_source(tmp_path, "faces", faces() | lists)
    splits = {name.split("/")[0]: row["split"] for name, row in rows_of(dataset).items()}
    assert splits["Cy"] == splits["Dee"] == "test"
    assert {splits["Ann_Lee"], splits["Bob"]} <= {"train", "val"}
    assert len(pairs_of(dataset)) == 2
    issues = issues_of(report)
    assert issues["names in lists without a folder"] == 1
    assert issues["pairs that name a missing image, left out"] == 1
    assert issues.get("pairs with an image of the train split", 0) == (splits["Ann_Lee"] == "train")
    assert "pairs in pairsDevTrain.txt were left out" in report.notes
    assert report.ignored == {"not in a class folder": 1}


def test_people_and_pairs_without_usable_images_are_left_out(tmp_path: Path) -> None:
    files = faces() | {"lfw/Gus/Gus_0001.png": b"no image", "lfw/Bob/Bob_0002.png": b""}
    files["pairs.txt"] = b"Bob 1 2\nBob 1 3\nBob 1 Cy 1\nGus 1 Cy 1\n"
    report, dataset = ingest_source(tmp_path, "faces", files)
    assert dataset.info.classes == PEOPLE
    assert [entry.id for entry in report.set_aside] == ["Bob/Bob_0002.png", "Gus/Gus_0001.png"]
    assert len(pairs_of(dataset)) == 2
    assert issues_of(report)["pairs with an image that was set aside, left out"] == 2


def test_the_check_covers_the_pairs(tmp_path: Path) -> None:
    _, dataset = ingest_source(tmp_path, "faces", faces() | {"pairs.txt": b"Bob 1 2\nBob 1 Cy 1\n"})
    file = dataset.path / "pairs.parquet"
    table = pq.read_table(file)
    file.write_bytes(file.read_bytes() + b" ")
    assert check(dataset).problems == (
        "pairs.parquet: its bytes have changed (SHA-256 differs from dataset.json)",
    )
    file.unlink()
    assert check(dataset).problems == ("pairs.parquet: is missing",)
    rows = table.to_pylist()
    rows[1]["same"] = True
    pq.write_table(table.from_pylist(rows, PAIR_SCHEMA), file)
    values = json.loads((dataset.path / "dataset.json").read_text())
    values["files_sha256"]["pairs.parquet"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (dataset.path / "dataset.json").write_text(json.dumps(values))
    (problem,) = check(Dataset.open(dataset.path)).problems
    assert "are not the pair it says" in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10\t300\nAnn\t1\t2\n", r"first line promises 10 x 2 x 300 pairs, but 1 follow"),
        ("Ann\t1\n", r"line 1: a pair must be `name i j` or `name1 i name2 j`"),
        ("Ann one two\n", "line 1: a pair must be"),
        ("Ann 1 Bob two\n", "line 1: a pair must be"),
        ("Ann 1 2 Bob 3\n", "line 1: a pair must be"),
    ],
)
def test_a_faulty_list_of_pairs_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_lfw_pairs("pairs.txt", text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "columns must be path_a,path_b,same"),
        ("path_a,path_b,same\nx,y,yes\n", "line 2: it must have 3 fields"),
        ("path_a,path_b,same\nBob/Bob_0001.png,Cy/Cy_0001.png,1\n", "are not in the folder of one person"),
    ],
)
def test_a_faulty_table_of_pairs_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        listing_of("faces", faces() | {"pairs.csv": text.encode()})


def test_one_person_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"only one person \('ann'\)"):
        ingest_source(tmp_path, "faces", {"ann/1.png": png(1), "ann/2.png": png(2)})


@pytest.mark.parametrize(
    "files",
    [
        {
            "train/ann/1.png": png(1),
            "test/ann/2.png": png(2),
            "train/bob/3.png": png(3),
            "test/cy/4.png": png(4),
        },
        {"train/ann/1.png": png(1), "test/cy/4.png": png(4), "test_ids.txt": b"ann\n"},
    ],
    ids=["folders", "a list against a folder"],
)
def test_a_source_that_puts_a_person_on_two_sides_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(
        ValueError, match=r"1 of \d people stand in two splits, as 'ann' in train and test"
    ) as error:
        ingest_source(tmp_path, "faces", files)
    assert "\n" not in str(error.value)


words = st.sampled_from(["Bob", "Cy", "1", "2", "9", "\t", " ", "\n", "10", "\r", "x", "-1", "٣", "²"])


@given(st.one_of(st.binary(max_size=60), st.lists(words, max_size=30).map(lambda w: "".join(w).encode())))
def test_any_lists_are_read_or_one_value_error(data: bytes) -> None:
    for name in ("pairs.txt", "pairs.csv", "train_ids.txt"):
        try:
            found = listing_of("faces", {"Bob/Bob_1.jpg": b"", "Cy/Cy_2.jpg": b"", name: data})
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert len(found.items) == 2


# ----------------------------------------------------------------------------------------- landmarks


def test_pts_points_are_counted_from_1_and_become_0(tmp_path: Path) -> None:
    files = {f"{i}.png": png(i) for i in range(8)} | {f"{i}.pts": pts((1, 1), (48, 40)) for i in range(7)}
    files["5.pts"] = pts((1, 1), (2, 2), (3, 3))
    files["6.pts"] = b"version: 1\nn_points: 2\n{\n1 1\n}\n"
    files["gone.pts"] = pts((1, 1), (2, 2))
    report, dataset = ingest_source(tmp_path, "landmarks", files)
    rows = rows_of(dataset)
    assert dataset.info.points == ("0", "1")
    assert sorted(rows) == [f"{i}.png" for i in range(5)]
    assert rows["0.png"]["points_xy"] == [0, 0, 47, 39]
    assert rows["0.png"]["visible"] == [True, True]
    assert {entry.id: entry.reason for entry in report.set_aside} == {
        "5.png": "5.pts: 3 points, where most have 2",
        "6.png": "6.pts: 1 points between the braces, where n_points says 2",
    }
    assert issues_of(report) == {"annotations whose image is missing": 1, "images without landmarks": 1}
    assert report.counts["train"].keys() == {"pictures"}
    assert check(dataset).problems == ()


HEADERS = {
    "path,x0,y0,x1,y1": ("0", "1"),
    "file,x_0,y_0,x_1,y_1": ("0", "1"),
    ",0,1,2,3": ("0", "1"),
    "image_name,nose_x,nose_y,chin_x,chin_y": ("nose", "chin"),
    "Path,y1,x1,x0,y0,v0,split,group": ("1", "0"),
}


@pytest.mark.parametrize("header", HEADERS)
def test_tables_of_landmarks_come_with_several_headers(header: str) -> None:
    columns = read_columns(header.split(","))
    assert columns is not None
    assert columns.names == HEADERS[header]


@pytest.mark.parametrize(
    "header",
    ["path,label", "x0,y0", "path,x0,y0,x1", "path,x0,y0,age", "path,x0,x_0,y0", "path,x0,y0,v1", "path,0,1,2", ""],
)  # fmt: skip
def test_other_tables_are_none_of_landmarks(header: str) -> None:
    assert read_columns(header.split(",")) is None


def test_a_table_gives_points_splits_groups_and_what_is_hidden(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,train,p{i // 2},{i},2,1,47.5,39,0\n" for i in range(8))
    rows += "8.png,test,q,,NaN,1,60,-3,1\n"
    table = "path,split,group,eye_x,eye_y,eye_v,chin_x,chin_y,chin_v\n" + rows
    source = write_tree(
        tmp_path / "source", {f"{i}.png": png(i) for i in range(9)} | {"a.csv": table.encode()}
    )
    report, dataset = ingest_source(tmp_path, "landmarks", source / "a.csv")  # the table alone
    found = rows_of(dataset)
    assert dataset.info.points == ("eye", "chin")
    assert found["3.png"]["points_xy"] == [3, 2, 47.5, 39]
    assert found["3.png"]["visible"] == [True, False]
    assert found["3.png"]["group"] == "p1"
    assert found["8.png"]["points_xy"] == [0, 0, 60, -3]
    assert found["8.png"]["visible"] == [False, True]
    assert found["8.png"]["split"] == "test"
    assert issues_of(report) == {"images with points outside": 1, "images with points that are not given": 1}
    _, again = ingest_source(tmp_path, "landmarks", source, "folder")  # the folder with the table in it
    assert rows_of(again) == found


def test_tables_named_like_splits_find_their_images() -> None:
    head = b"file,x0,y0\n"
    files = {"train/1.jpg": b"", "test/1.jpg": b"", "test/2.jpg": b""}
    files |= {
        "train_keypoints.csv": head + b"1.jpg,1,1\n",
        "test_keypoints.csv": head + b"1.jpg,2,2\n9.jpg,1,1\n",
    }
    found = listing_of("landmarks", files)
    assert {(item.id, item.split, item.targets["points"].points_xy[0, 0]) for item in found.items} == {
        ("train/1.jpg", "train", 1), ("test/1.jpg", "test", 2),
    }  # fmt: skip
    assert {what: len(where) for what, where in found.issues.items()} == {
        "annotations whose image is missing": 1,
        "images without landmarks": 1,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,x0,y0\n1.jpg,1\n", "line 2: 2 fields, where the first line has 3"),
        ("path,x0,y0\n1.jpg,1,left\n", "line 2: 'left' is no number"),
        ("path,x0,y0\n,1,1\n", "line 2: the image's name is empty"),
        ("path,x0,y0\n1.jpg,1,1\n1.jpg,2,2\n", "line 3: image '1.jpg' has landmarks already"),
        ("path,x0,y0,split\n1.jpg,1,1,holdout\n", r"split \(='holdout'\) must be one of train"),
        ("path,x0,y0\n../1.jpg,1,1\n", "leads out of its folder"),
        ("path,label\n1.jpg,1\n", "no known layout for landmarks: give a .pts file"),
    ],
)
def test_a_faulty_table_of_landmarks_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        listing_of("landmarks", {"1.jpg": b"", "a.csv": text.encode()})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_follow_the_exif_orientation(tmp_path: Path, orientation: int) -> None:
    stored = Image.new("L", (48, 32))
    stored.putpixel((5, 3), 255)
    blob = with_orientation(stored, orientation, "PNG")
    y, x = np.argwhere(np.asarray(decode_image(blob, channels=1)))[0].tolist()
    files = {f"{i}.png": png(i) for i in range(6)} | {f"{i}.pts": pts((1, 1)) for i in range(6)}
    _, dataset = ingest_source(tmp_path, "landmarks", files | {"turned.png": blob, "turned.pts": pts((6, 4))})
    assert rows_of(dataset)["turned.png"]["points_xy"] == [x, y]


@given(
    st.one_of(
        st.binary(max_size=100), st.text("version:n_points {}\n0123456789.- eE", max_size=100).map(str.encode)
    )
)
def test_any_pts_or_table_is_read_or_one_value_error(data: bytes) -> None:
    for files in ({"1.pts": data}, {"a.csv": b"path,x0,y0\n" + data}, {"a.csv": data}):
        try:
            listing_of("landmarks", {"1.jpg": b""} | files)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_points_beyond_all_pictures_are_not_given() -> None:
    found = read_pts(pts((1e300, 1), (-1e300, 2), (3, 3)).decode())
    assert found.visible.tolist() == [False, False, True]
    assert found.points_xy.tolist() == [[0, 0], [0, 0], [2, 2]]


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=9))
def test_pts_files_give_their_points_less_one(points: list[tuple[float, float]]) -> None:
    found = read_pts(pts(*points).decode())
    assert np.array_equal(found.visible, [True] * len(points))
    assert np.allclose(found.points_xy, np.array(points) - 1)


# --------------------------------------------------------------------------------------------- style


def test_content_and_style_are_classes_and_lone_pictures_are_one(tmp_path: Path) -> None:
    both = {f"x/content/{i}.png": png(i) for i in range(9)} | {
        f"x/style/{i}.png": png(50 + i) for i in range(6)
    }
    _, dataset = ingest_source(tmp_path, "style", both)
    assert dataset.info.classes == ("content", "style")
    for layout in ("", "photos/", "photos/2024/"):
        name = f"n{len(layout)}"
        _, dataset = ingest_source(tmp_path, "style", {f"{layout}{i}.png": png(i) for i in range(9)}, name)
        assert dataset.info.classes == ("pictures",)
        assert sorted(rows_of(dataset)) == [f"{i}.png" for i in range(9)]
        assert check(dataset).problems == ()
