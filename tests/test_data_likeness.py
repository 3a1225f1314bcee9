"""A source that is given to the wrong family is refused with the family that it looks made for."""

from pathlib import Path

import numpy as np
import pytest

from data.archive import memory_tree
from data.formats.likeness import likeness
from data.ingest import IngestConfig, ingest
from data.npy import write_npy
from tests.annotated import coco_json, pts, voc_xml
from tests.pictures import class_tree, png, write_tree
from tests.waves import blob, nifti, tone, wav

CONFIG = IngestConfig(val_fraction=0.2, test_fraction=0.2, near_duplicate_distance=3, max_source_gb=1)
PICTURES = {f"images/{i}.png": png(i) for i in range(6)}
BOXES = [{"image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9]}]
COCO = coco_json([{"file_name": f"{i}.png"} for i in range(6)], BOXES)
SOURCES: dict[str, tuple[tuple[str, ...], dict[str, bytes]]] = {
    "coco": (("detection",), PICTURES | {"boxes.json": COCO}),
    "voc": (("detection",), PICTURES | {f"Annotations/{i}.xml": voc_xml() for i in range(6)}),
    "yolo": (("detection",), PICTURES | {f"labels/{i}.txt": b"0 .5 .5 .1 .1\n" for i in range(6)}),
    "pts": (("landmarks",), PICTURES | {f"images/{i}.pts": pts((1, 1), (2, 2)) for i in range(6)}),
    "points": (("landmarks",), PICTURES | {"points.csv": b"path,x0,y0\nimages/0.png,1,2\n"}),
    "people": (("faces",), class_tree("abc", 3) | {"pairs.csv": b"path_a,path_b,same\na/1.png,a/2.png,1\n"}),
    "ids": (("faces",), class_tree("abc", 3) | {"train_ids.txt": b"a\nb\n", "test_ids.txt": b"c\n"}),
    "folders": (("classification", "faces"), class_tree("abc", 3)),
    "lists": (("classification", "faces"), class_tree("abc", 3) | {"train.txt": b"a/0.png\n"}),
    "wav": (("signals",), {f"{c}/{i}.wav": wav(tone(i, 3)) for c in "ab" for i in range(3)}),
    "ts": (("signals",), {"A_TRAIN.ts": b"@classLabel true a b\n@data\n1,2:a\n3,4:b\n"}),
    "nifti": (("volumes",), {f"{c}/{i}.nii": nifti(blob(i, 0)) for c in "ab" for i in range(3)}),
    "npy": (("signals", "volumes"), {f"{c}/{i}.npy": write_npy(np.ones(4)) for c in "ab" for i in range(3)}),
    "one folder": ((), PICTURES),
    "nothing": ((), {}),
}
MISTAKES = [  # (source, family that was asked for): it cannot be read as that
    ("coco", "classification"),
    ("voc", "classification"),
    ("pts", "detection"),
    ("folders", "detection"),
    ("folders", "landmarks"),
    ("folders", "signals"),
    ("wav", "classification"),
    ("wav", "volumes"),
    ("ts", "classification"),
    ("nifti", "signals"),
    ("npy", "classification"),
    ("people", "detection"),
]


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_looks_made_for_its_families(name: str) -> None:
    families, files = SOURCES[name]
    assert likeness(memory_tree(name, files))[1] == families


@pytest.mark.parametrize(("name", "family"), MISTAKES)
def test_the_wrong_family_is_refused_in_one_line_that_names_the_right_one(
    tmp_path: Path, name: str, family: str
) -> None:
    families, files = SOURCES[name]
    source = write_tree(tmp_path / "source", files)
    with pytest.raises(ValueError, match="it looks like a source for") as raised:
        ingest(source, name="set", family=family, store=tmp_path / "store", config=CONFIG, workers=1)
    said = str(raised.value)
    assert said.endswith(" or ".join(f"--family {name}" for name in families)) and "\n" not in said


def test_a_fault_of_a_source_of_the_right_family_gets_no_hint(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", class_tree("ab", 3) | {"c/bad.png": b"no"})
    with pytest.raises(ValueError, match="no usable picture in the classes c") as raised:
        ingest(
            source, name="set", family="classification", store=tmp_path / "store", config=CONFIG, workers=1
        )
    assert "looks like" not in str(raised.value)


def test_split_folders_with_pictures_in_them_are_no_classes(tmp_path: Path) -> None:
    """As YOLO has them: taken for classes, a model would learn to tell train from val."""
    files = {f"images/{split}/{i}.png": png(i) for split in ("train", "val") for i in range(3)}
    labels = {f"labels/{split}/{i}.txt": b"0 .5 .5 .1 .1\n" for split in ("train", "val") for i in range(3)}
    source = write_tree(tmp_path / "source", files | labels)
    with pytest.raises(ValueError, match=r"its folders are splits \(train, val\).*--family detection"):
        ingest(
            source, name="set", family="classification", store=tmp_path / "store", config=CONFIG, workers=1
        )
