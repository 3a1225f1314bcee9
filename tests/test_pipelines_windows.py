"""`./convoy detect-windows`, as a person types it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.ingest import ingest
from tasks.modelfile import save_model
from tasks.paths import store
from tests.annotated import CONFIG, coco_json
from tests.conftest import Run
from tests.handmade import png, write_model
from tests.pictures import write_tree
from tests.test_tasks_slidingwindow import scene, square_finder

CLASSES = ("background", "square")


@pytest.fixture
def model(tmp_path: Path) -> str:
    made = write_model(
        tmp_path / "model", CLASSES, architecture="overfeat_course", stored_px=14, crop_px=14, pad_px=0
    )
    return str(made)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(file)
    return file


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


def test_what_is_found_is_printed_drawn_and_cut_out(
    run: Run, model: str, photo: Path, tmp_path: Path
) -> None:
    words = ("detect-windows", str(photo), "--model", model, "--class", *CLASSES, "--windows", "14", "28")
    code, out, err = run(
        *words, "--score", "0.5", "--most", "7", "--out", str(tmp_path / "a.png"),
        "--crops", str(tmp_path / "crops"), "--json",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    (scan,) = document["pictures"]
    assert (scan["size"], scan["windows_px"], scan["stride_px"]) == ([64, 48], [14, 28], 2)
    assert scan["num_windows"] == 18 * 26 + 6 * 10
    assert len(scan["found"]) == 7
    assert [found["score"] for found in scan["found"]] == sorted(
        (f["score"] for f in scan["found"]), reverse=True
    )
    assert size_of(tmp_path / "a.png") == (64, 48)
    crops = sorted((tmp_path / "crops").iterdir())
    assert {size_of(file) for file in crops} == {(14, 14)}
    assert {str(tmp_path / "a.png"), *map(str, crops)} == set(document["files"])


def test_the_most_probable_of_many_are_printed_and_how_many_more_there_are(
    run: Run, model: str, photo: Path
) -> None:
    words = ("detect-windows", str(photo), str(photo), "--model", model, "--class", *CLASSES, "--windows", "14",
             "--iou", "1", "--score", "0")  # fmt: skip
    pictures = json.loads(run(*words, "--json")[1])["pictures"]
    scores = sorted((found["score"] for each in pictures for found in each["found"]), reverse=True)
    code, out, err = run(*words)
    assert code == 0, err
    lines = [line.split() for line in out.splitlines() if line.strip().startswith(str(photo.parent))]
    assert [line[-7] for line in lines] == [f"{score:.4g}" for score in scores[:20]]
    assert len(scores) > 100 and f"… and {len(scores) - 20:,} less probable: --json" in out
    code, out, err = run(*words, "--most", "3")
    assert code == 0 and "less probable" not in out and out.count(str(photo)) == 6, err


def test_both_ways_print_the_same(run: Run, model: str, photo: Path) -> None:
    words = (
        "detect-windows",
        str(photo),
        "--model",
        model,
        "--class",
        "square",
        "--score",
        "0.3",
        "--stride",
        "4",
    )
    convolved, cut = (
        json.loads(run(*words, "--way", way, "--json")[1]) for way in ("convolutional", "crops")
    )
    (one,), (other,) = convolved["pictures"], cut["pictures"]
    assert len(one["found"]) == len(other["found"]) > 0
    for ours, theirs in zip(one["found"], other["found"], strict=True):
        assert ours["box_xyxy"] == theirs["box_xyxy"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-6)


def test_several_pictures_are_drawn_into_a_folder_and_scikit_images_have_names(
    run: Run, model: str, photo: Path, tmp_path: Path
) -> None:
    code, out, err = run(
        "detect-windows", "skimage:astronaut", str(photo), "--model", model, "--class", "square",
        "--windows", "48", "--out", str(tmp_path / "drawn"),
    )  # fmt: skip
    assert code == 0, err
    assert "of 2 pictures" in out and "wrote 2 pictures" in out
    assert size_of(tmp_path / "drawn" / "skimage-astronaut.png") == (512, 512)
    assert (tmp_path / "drawn" / "noise.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class", "cat"), "class cat is not known; the model knows background, square"),
        (("--class", "square", "--windows", "49"), "windows (=49) must be from 1 to 48 px"),
        (("--class", "square", "--stride", "-2"), "stride (=-2) must be at least 1"),
        (("--class", "square", "--score", "2"), "score (=2.0) must lie in 0…1"),
        (("--class", "square", "--most", "-3"), "most (=-3) must be at least 1"),
        (("--class", "square", "--iou", "3"), "iou (=3.0) must lie in 0…1"),
        (("--class", "square", "--agreeing", "0"), "agreeing (=0) must be at least 1"),
        (("--class", "square", "--stride", "3"), "stride (=3) must be a multiple of the network's own, 2"),
    ],
)
def test_what_does_not_fit_is_one_line(
    run: Run, model: str, photo: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = run("detect-windows", str(photo), "--model", model, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_pictures_of_one_name_do_not_replace_each_other(
    run: Run, model: str, photo: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / photo.name
    other.parent.mkdir()
    Image.new("RGB", (60, 50)).save(other)
    words = (
        "detect-windows",
        str(photo),
        str(other),
        "--model",
        model,
        "--class",
        "square",
        "--windows",
        "40",
    )
    code, out, err = run(*words, "--out", str(tmp_path / "drawn"))
    assert code == 0, err
    assert size_of(tmp_path / "drawn" / "noise.png") == size_of(photo)
    assert size_of(tmp_path / "drawn" / "noise-2.png") == (60, 50)
    other.write_bytes(b"hello")
    code, _, err = run(*words)
    assert code == 2 and err.startswith(f"convoy: {other}: not an image") and err.count("\n") == 1


def test_what_is_drawn_goes_into_a_file_or_a_folder_that_need_not_be_there(
    run: Run, model: str, photo: Path, tmp_path: Path
) -> None:
    words = ("detect-windows", str(photo), "--model", model, "--class", "square", "--windows", "40")
    for out, file in (("new/deep/a.jpg", "new/deep/a.jpg"), ("drawn", "drawn/noise.png")):
        code, _out, err = run(*words, "--out", str(tmp_path / out))
        assert code == 0, err
        assert size_of(tmp_path / file) == size_of(photo)
    (tmp_path / "notes.txt").write_text("mine")
    code, _out, err = run(*words, "--out", str(tmp_path / "notes.txt"))
    assert code == 2 and "is a file: it must end in .png, .jpg, .jpeg, or be a folder" in err
    words = (*words[:1], "skimage:astronaut", *words[1:])
    code, _out, err = run(*words, "--out", str(tmp_path / "b.png"))
    assert code == 2 and "is one file, and there are 2 pictures" in err
    code, _out, err = run(*words, "--windows", "100")
    assert code == 2 and err.startswith(f"convoy: {photo}: windows (=100) must be from 1 to 48 px")


def test_a_picture_that_is_not_there_lists_those_that_are_shipped(run: Run, model: str) -> None:
    code, _, err = run("detect-windows", "none.jpg", "--model", model, "--class", "square")
    assert code == 2
    assert "no such picture: none.jpg; give a file, or skimage:astronaut, skimage:brick" in err


@pytest.fixture
def finder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that finds squares, sure of white ones and less of grey ones; and the dataset `scenes`.

    Of its three squares in val two are drawn, a grey one is drawn and not annotated, and there is a disc.
    """
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path / "home"))
    grey = np.uint8(178) * (np.array(scene((30, 20))) > 0)
    drawn = (np.array(scene((10, 20), (50, 30))), grey, np.array(scene()))
    files = {f"val/{i}.png": png(pixels) for i, pixels in enumerate(drawn)}
    # the window of 14 px that shows a square of 6 in its middle
    boxes = [
        {"image_id": i, "category_id": label, "bbox": [x - 4, y - 4, 14, 14]}
        for i, label, x, y in ((0, 2, 10, 20), (0, 2, 50, 30), (1, 2, 8, 44), (2, 1, 24, 24))
    ]
    draw = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        images = [{"file_name": f"{split}/{i}.png"} for i in range(3)]
        own = boxes if split == "val" else boxes[:1]
        files[f"instances_{split}.json"] = coco_json(images, own, ("disc", "square"))
        for image in images if split != "val" else ():
            files[image["file_name"]] = png(draw.integers(0, 256, (60, 80), dtype=np.uint8))
    source = write_tree(tmp_path / "source", files)
    ingest(source, name="scenes", family="detection", store=store(), config=CONFIG, workers=1)
    made = square_finder(tmp_path / "plain")
    save_model(tmp_path / "finder", made.card, made.members)
    return str(tmp_path / "finder")


def test_windows_are_scored_on_a_dataset_of_detection(run: Run, finder: str, tmp_path: Path) -> None:
    """Two of three squares are found, exactly; the false alarm, if it is probable enough, comes after them."""
    words = ("detect-windows", "--dataset", "scenes", "--split", "val", "--model", finder, "--class", "square",
             "--windows", "14")  # fmt: skip
    for score, precision in (("0.5", 2 / 3), ("0.9", 1)):
        code, out, err = run(*words, "--score", score, "--out", str(tmp_path / score), "--json")
        assert code == 0, err
        document = json.loads(out)
        metrics = document["metrics"]
        assert metrics == json.loads((tmp_path / score / "metrics.json").read_text())
        expected = {"ap": 67 / 101, "ap50": 67 / 101, "precision": precision, "recall": 2 / 3}
        assert {name: metrics[name] for name in expected} == pytest.approx(expected)
        assert (metrics["num_images"], metrics["num_objects"], metrics["threshold"]) == (3, 3, float(score))
        assert document["about"]["num_windows"] == 3 * 24 * 34
        assert document["about"]["models"] == finder
        assert [row["class"] for row in document["per_class"]] == ["square"]
        assert (tmp_path / score / "report.html").is_file()
    code, out, err = run(*words, "--score", "0.9", "--out", str(tmp_path / "0.9"))
    assert code == 0, err
    assert "scenes, val, windows from 0.9 on" in out and "report.html" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class", "square"), "detect-windows needs pictures, or --dataset NAME to be scored on, and not both"),
        (("a.png", "--dataset", "scenes", "--class", "square"), "and not both"),
        (("a.png", "--split", "val", "--class", "square"), "--split (=val) is of a dataset: give --dataset NAME"),
        (("--dataset", "scenes", "--class", "square", "--crops", "x"), "--crops (=x) are cut out of pictures"),
        (("--dataset", "scenes", "--class", "cat"), "class cat is none of dataset 'scenes', which has disc, square"),
        (("--dataset", "scenes", "--class", "square", "--split", "val", "--windows", "61"),
         ".png: windows (=61) must be from 1 to 60 px"),
        (("--dataset", "none", "--class", "square"), "no dataset named 'none'"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_one_line(
    run: Run, finder: str, arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = run("detect-windows", *arguments, "--model", finder)
    assert code == 2
    assert message in err.splitlines()[-1]
