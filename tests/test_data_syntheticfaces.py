"""Synthetic faces: the same bytes each time, people that keep their features, sides that share nobody."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from data.dataset import Dataset
from data.ingest import ingest
from data.syntheticfaces import SIDE_PX, SIDES, synthetic_faces
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
