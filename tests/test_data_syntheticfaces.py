"""Synthetic faces: the same bytes each time, people that keep their features, sides that share nobody."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from data.dataset import Dataset
from data.ingest import ingest
from data.syntheticfaces import LANDMARKS, SIDE_PX, SIDES, draw_pictures, face_points, synthetic_faces
from tests.tiny import ingest_config, write_people


def test_the_same_bytes_each_time_and_nobody_changes_beside_others() -> None:
    few, more = synthetic_faces(2, 2), synthetic_faces(3, 2)
    pictures = {name for name in few if name.endswith(".jpg")}
    assert len(pictures) == 4 and all(few[name] == more[name] for name in pictures)
    assert len(set(more.values())) == len(more)  # no picture twice
    assert Image.open(io.BytesIO(few["person_000/0.jpg"])).size == (SIDE_PX, SIDE_PX)


def test_pictures_of_a_person_are_more_alike_than_those_of_two() -> None:
    files = synthetic_faces(8, 6)
    middle = slice(SIDE_PX // 4, -SIDE_PX // 4)
    colours = np.array([
        [np.asarray(Image.open(io.BytesIO(files[f"person_{who:03d}/{i}.jpg"])), float)[middle, middle].mean((0, 1))
         for i in range(6)]
        for who in range(8)
    ])  # fmt: skip
    within = colours.std(1).mean()
    # light moves colours much, but not more than people differ
    assert within < colours.mean(1).std(0).mean() * 2
    assert within > 5  # and no picture is a copy


def test_points_are_where_the_pictures_have_them() -> None:
    """Pupils are nearly black, and all points keep to the side of the face that their names say."""
    pictures = list(draw_pictures(8, 4))
    names = {name: place for place, name in enumerate(LANDMARKS)}
    dark = []
    for picture in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(picture.data)).convert("L"), float)
        for name in ("left_eye", "right_eye"):
            x, y = picture.points_xy[names[name]].round().astype(int)
            around = pixels[y - 5 : y + 6, x - 5 : x + 6]
            dark.append(pixels[y - 1 : y + 2, x - 1 : x + 2].min() < np.quantile(around, 0.1))
    assert np.mean(dark) > 0.9
    across = np.mean([picture.points_xy[:, 0] for picture in pictures], 0)
    order = ("left_eye_corner", "left_eye", "nose", "right_eye", "right_eye_corner")
    assert (np.diff([across[names[name]] for name in order]) > 1).all()
    assert across[names["left_mouth"]] < across[names["nose"]] < across[names["right_mouth"]]
    down = np.mean([picture.points_xy[:, 1] for picture in pictures], 0)
    assert down[names["left_eye"]] < down[names["nose"]] < down[names["left_mouth"]]


def test_faces_with_points_are_the_same_pictures_and_a_dataset_of_landmarks(tmp_path: Path) -> None:
    files, faces = face_points(8, 2), synthetic_faces(8, 2)
    assert {name: data for name, data in files.items() if name.endswith(".jpg")} == {
        name: data for name, data in faces.items() if name.endswith(".jpg")
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    store = tmp_path / "store"
    ingest(tmp_path, name="points", family="landmarks", store=store, config=ingest_config())
    info = Dataset.open(store / "points").info
    assert info.points == LANDMARKS and info.mirror_pairs == ((0, 3), (1, 2), (5, 6))
    assert {side: info.num_images(side) for side in ("train", "val", "test")} == {
        "train": 10, "val": 2, "test": 4,
    }  # fmt: skip
    rows = Dataset.open(store / "points").table("train", ["points_xy", "visible"])
    [first] = (picture for picture in draw_pictures(1, 1))
    found = np.array(rows["points_xy"].to_pylist()).reshape(-1, len(LANDMARKS), 2)
    assert np.abs(found - first.points_xy).max((1, 2)).min() < 0.006
    assert np.array(rows["visible"].to_pylist()).all()


def test_nobody_stands_on_two_sides(tmp_path: Path) -> None:
    source = write_people(tmp_path / "drawn")
    report = ingest(source, name="drawn", family="faces", store=tmp_path / "store", config=ingest_config())
    info = Dataset.open(tmp_path / "store" / "drawn").info
    people = {side: {name for name, num in counts.items() if num} for side, counts in info.counts.items()}
    assert sum(map(len, people.values())) == len(set().union(*people.values())) == len(info.classes) == 40
    assert {side: len(who) for side, who in people.items()} == {
        side: 5 * num for side, num in Counter(SIDES).items()
    }
    assert report.num_images == 240 and not report.set_aside
