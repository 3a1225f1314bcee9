"""`./convoy mine`, as a person types it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.dataset import Dataset
from data.files import file_sha256
from tasks.modelfile import load_card, model_sha256
from tasks.paths import runs, store
from tests.conftest import Run

CLASSES = ("blank", "square")
# of docs/slidingwindows.md: photographs without a face
FACELESS = (
    "brick", "chelsea", "coffee", "coins", "grass", "gravel", "horse", "hubble_deep_field", "ihc", "moon",
    "motorcycle_left", "page", "retina", "rocket", "text",
)  # fmt: skip
DRAWN = ("circles", "mosaic", "stones", "strokes", "whirls")
ASTRONAUT_XY = ((205, 101), (247, 103), (226, 128), (203, 140), (245, 142))  # eyes, nose, mouth, by eye


@pytest.fixture
def patches(run: Run, tmp_path: Path) -> None:
    """Thirty noisy patches of each class, of which a half has a bright square, as the dataset `patches`."""
    draw = np.random.default_rng(0)
    for label in CLASSES:
        (tmp_path / "source" / label).mkdir(parents=True)
        for number in range(30):
            pixels = draw.integers(0, 120, (28, 28), dtype=np.uint8)
            if label == "square":
                pixels[8:20, 8:20] = 250
            Image.fromarray(pixels).save(tmp_path / "source" / label / f"{number}.png")
    code, _out, err = run("data", "add", str(tmp_path / "source"), "--name", "patches")
    assert code == 0, err


@pytest.mark.usefixtures("patches")
def test_false_alarms_become_training_pictures_and_nothing_else_changes(run: Run, tmp_path: Path) -> None:
    photo, pictures = tmp_path / "noise.png", tmp_path / "mined"
    draw = np.random.default_rng(1)
    Image.fromarray(draw.integers(0, 256, (90, 120), dtype=np.uint8)).save(photo)
    before = Dataset.open(store() / "patches").info
    code, out, err = run(
        "mine", "patches", str(photo), "--class", "square", "--as", "blank", "--pictures", str(pictures),
        "--rounds", "1", "--steps", "3", "--score", "0", "--most", "9", "--recipe", "faces_patches",
        "--executor", "in_process", "--json",
    )  # fmt: skip
    assert code == 0, err
    [row] = json.loads(out)["rounds"]
    after = Dataset.open(store() / "patches").info
    assert row["round"] == 1 and row["training pictures"] == before.num_images("train")
    assert 0 < row["false alarms"] <= 9
    assert after.counts["train"]["blank"] == before.counts["train"]["blank"] + row["false alarms"]
    assert after.counts["train"]["square"] == before.counts["train"]["square"]
    assert [after.counts[side] for side in ("val", "test")] == [
        before.counts[side] for side in ("val", "test")
    ]
    assert len(list((pictures / "train" / "blank").glob("noise-*.png"))) == row["false alarms"]


@pytest.mark.slow
@pytest.mark.usefixtures("patches")
def test_a_round_goes_on_from_the_last_ones_weights_and_false_alarms_fall(run: Run, tmp_path: Path) -> None:
    photo, out = tmp_path / "stripes.png", tmp_path / "out"
    pixels = np.random.default_rng(1).integers(0, 120, (80, 80), dtype=np.uint8)
    pixels[::16] = pixels[:, 30:44] = 250  # bright as squares are, and none
    Image.fromarray(pixels).save(photo)
    code, text, err = run(
        "mine", "patches", str(photo), "--class", "square", "--as", "blank", "--pictures", str(tmp_path / "mined"),
        "--rounds", "3", "--steps", "60", "--recipe", "faces_patches", "--executor", "in_process",
        "--out", str(out), "--json",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(text)
    rounds = document["rounds"]
    models = [runs() / row["run"] / "model" for row in rounds]
    begun = [load_card(model).initial_weights for model in models]
    assert begun[0] is None
    assert [(each.source, each.sha256, each.trained) for each in begun[1:] if each] == [
        (row["run"], file_sha256(model / "member-0.safetensors"), "all")
        for row, model in zip(rounds[:-1], models[:-1], strict=True)
    ]
    assert document["model"] == str(out / "model") and model_sha256(out / "model") == model_sha256(models[-1])
    alarms = [row["false alarms"] for row in rounds]
    assert alarms[0] > 2 * alarms[-1]


@pytest.mark.usefixtures("patches")
@pytest.mark.parametrize("other", ["square", "circle"])
def test_the_class_and_that_of_its_false_alarms_are_two_of_the_dataset(
    run: Run, tmp_path: Path, other: str
) -> None:
    words = ("mine", "patches", "skimage:coffee", "--class", "square", "--pictures", str(tmp_path / "mined"))
    code, _out, err = run(*words, "--as", other)
    assert code == 2 and "must be two classes of patches: blank, square" in err
    assert not (tmp_path / "mined").exists()


@pytest.mark.usefixtures("patches")
def test_photographs_that_cannot_be_looked_over_are_told_before_anything_is_trained(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"hello")
    Image.new("L", (90, 40)).save(tmp_path / "low.png")
    before = set(runs().glob("*"))
    for photo, message in {
        "none.jpg": "no such picture: none.jpg",
        str(tmp_path / "bad.png"): "bad.png: not an image",
        str(tmp_path / "low.png"): "--windows (=24 41) must be from 1 to 40 px, the shorter side of",
    }.items():
        code, _out, err = run(
            "mine", "patches", "skimage:coffee", photo, "--class", "square", "--as", "blank",
            "--pictures", str(tmp_path / "mined"), "--windows", "24", "41",
        )  # fmt: skip
        assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "mined").exists() and set(runs().glob("*")) == before


@pytest.mark.slow
def test_of_two_hundred_patches_comes_a_detector_that_finds_the_astronauts_face_and_nothing_else(
    run: Run, tmp_path: Path
) -> None:
    """The commands of docs/slidingwindows.md, with its numbers; five minutes on one thread."""
    photos = [*(f"skimage:{name}" for name in FACELESS), *(f"convoy:{name}" for name in DRAWN)]
    mined, out = tmp_path / "mined", tmp_path / "faces"
    for words in (
        ("data", "add", "skimage:lfw_subset", "--name", "faces_patches"),
        (
            "mine", "faces_patches", *photos, "--class", "face", "--as", "other",
            "--pictures", str(tmp_path / "patches"), "--windows", "47", "59", "73", "92", "114", "143",
            "--rounds", "6", "--steps", "500", "--out", str(mined), "--executor", "in_process",
        ),
        (
            "train", "classification", "--dataset", "faces_patches", "--out", str(out),
            "--set", f"transfer.weights={mined / 'model'}", "--executor", "in_process",
        ),
    ):  # fmt: skip
        code, _text, err = run(*words)
        assert code == 0, err
    code, text, err = run(
        "detect-windows", "skimage:astronaut", "--model", str(out / "model"), "--class", "face",
        "--windows", *map(str, range(40, 161, 4)), "--agreeing", "15", "--json",
    )  # fmt: skip
    assert code == 0, err
    [scan] = json.loads(text)["pictures"]
    [found] = scan["found"]
    x0, y0, x1, y1 = found["box_xyxy"]
    assert all(x0 < x < x1 and y0 < y < y1 for x, y in ASTRONAUT_XY) and x1 - x0 < 160
    assert scan["num_windows"] == 36_334
