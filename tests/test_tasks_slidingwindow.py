"""Windows over a picture: where they are, both ways alike, and what is left of those that overlap."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models.classification import Classifier
from tasks.card import Preprocessing
from tasks.modelfile import load_model
from tasks.predict import Predictor
from tasks.slidingwindow import (
    WindowScorer,
    cut_out,
    detect,
    draw,
    pyramid,
    window_sizes,
    write_crops,
)
from tests.handmade import write_model

CLASSES = ("background", "square")


def predictor(folder: Path, **changes: object) -> Predictor:
    values = {"architecture": "overfeat_course", "stored_px": 14, "crop_px": 14, "pad_px": 0} | changes
    return Predictor(load_model(write_model(folder, CLASSES, **values)), torch.device("cpu"))  # type: ignore[arg-type]


def square_finder(folder: Path) -> Predictor:
    """The course's net by hand: sure of a window whose middle is bright and whose border is dark."""
    made = predictor(folder)
    member = made.members[0]
    assert isinstance(member, Classifier)
    conv, first, second, head = (m for m in member.net.modules() if isinstance(m, nn.Conv2d | nn.Linear))  # type: ignore[misc]
    with torch.no_grad():
        member.mean.zero_()
        member.std.fill_(1)
        for layer in (conv, first, second, head):
            layer.weight.zero_()
            layer.bias.zero_()
        conv.weight[0, 0, 2, 2] = 1  # the pixel itself; of 2x2 the brightest: a map of 5x5
        plan = torch.full((5, 5), -1.0)
        plan[1:4, 1:4] = 1
        first.weight[0, :25] = plan.flatten()
        first.bias[0] = -6.0  # of 9 bright places
        second.weight[0, 0] = 1
        head.weight[1, 0] = 40
        head.bias[0] = 10
    return made


def scene(*corners: tuple[int, int], side: int = 6, size: tuple[int, int] = (60, 80)) -> Image.Image:
    """White squares on black at (x, y)."""
    pixels = np.zeros(size, np.uint8)
    for x, y in corners:
        pixels[y : y + side, x : x + side] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("members", [1, 2])
def test_both_ways_give_the_same_probabilities(tmp_path: Path, members: int) -> None:
    made = predictor(tmp_path / "a")
    made.card = made.card.model_copy(update={"temperature": 1.7})
    if members == 2:
        made.members.append(predictor(tmp_path / "b", seed=1).members[0])
    picture = torch.randint(0, 256, (1, 37, 52), dtype=torch.uint8)
    whole, alone = WindowScorer(made), WindowScorer(made, "crops", 2)
    assert whole.stride_px == 2
    assert whole(picture).shape == (12, 20, 2)
    torch.testing.assert_close(whole(picture), alone(picture), rtol=0, atol=1e-6)
    torch.testing.assert_close(WindowScorer(made, stride_px=6)(picture), whole(picture)[::3, ::3])


def test_what_is_in_memory_at_once_changes_no_probability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bands as low as they get, and a window a pass."""
    made = predictor(tmp_path / "a")
    picture = torch.randint(0, 256, (1, 97, 52), dtype=torch.uint8)
    expected = [WindowScorer(made, stride_px=4)(picture), WindowScorer(made, "crops", 4)(picture)]
    monkeypatch.setattr("tasks.slidingwindow.BAND_PX", 1)
    monkeypatch.setattr("tasks.slidingwindow.PASS_MB", 0)
    cut = [WindowScorer(made, stride_px=4)(picture), WindowScorer(made, "crops", 4)(picture)]
    assert expected[0].shape == (21, 10, 2)
    for one, other in zip(cut, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_stride_is_the_networks_own_either_way(tmp_path: Path) -> None:
    resnet = predictor(tmp_path / "a", architecture="resnet8_cifar", stored_px=32, crop_px=32)
    assert WindowScorer(resnet).stride_px == WindowScorer(resnet, "crops").stride_px == 4
    lite = predictor(tmp_path / "b", architecture="efficientnet_lite0", channels=3, stored_px=32, crop_px=32)
    assert WindowScorer(lite, "crops").stride_px == 5  # it cannot be converted
    with pytest.raises(ValueError, match="EfficientNetLite cannot be made fully convolutional"):
        WindowScorer(lite)


def test_a_window_alone_gets_what_prediction_says(tmp_path: Path) -> None:
    made = predictor(tmp_path / "a")
    picture = torch.randint(0, 256, (1, 14, 14), dtype=torch.uint8)
    torch.testing.assert_close(WindowScorer(made)(picture)[0, 0], made.probabilities(picture[None])[0])


def test_squares_are_found_where_they_are(tmp_path: Path) -> None:
    """Windows of 14 on even places: a square of 6 in the middle of one is 4 px from its edges."""
    scorer = WindowScorer(square_finder(tmp_path / "a"))
    scan = detect(scorer, scene((10, 20), (50, 30)), ["square"], [14])
    boxes = sorted(each.box_xyxy for each in scan.found)
    assert boxes == [(6.0, 16.0, 20.0, 30.0), (46.0, 26.0, 60.0, 40.0)]
    assert scan.num_windows == 24 * 34
    assert all(each.score > 0.99 and each.window_px == 14 for each in scan.found)
    assert detect(scorer, scene(), ["square"], [14]).found == ()


def test_what_too_few_windows_agree_on_is_left_out(tmp_path: Path) -> None:
    """A window two pixels beside the square's own sees its edge, and says no."""
    scorer = WindowScorer(square_finder(tmp_path / "a"))
    picture = scene((10, 20), (50, 30))
    alone = detect(scorer, picture, ["square"], [14])
    assert [each.num_agreeing for each in alone.found] == [1, 1]
    assert detect(scorer, picture, ["square"], [14], agreeing=2).found == ()
    every = detect(scorer, picture, ["square"], [14], least_score=0.0, iou=0.0, most=1)
    overlapping = [  # shifts by (dx, dy) of windows of 14 whose overlap is at least half of what both cover
        (dx, dy) for dx in range(-12, 13, 2) for dy in range(-12, 13, 2)
        if (14 - abs(dx)) * (14 - abs(dy)) * 3 >= 14 * 14 * 2
    ]  # fmt: skip
    assert every.found[0].num_agreeing == len(overlapping)


def test_larger_windows_find_larger_squares_at_their_size(tmp_path: Path) -> None:
    scorer = WindowScorer(square_finder(tmp_path / "a"))
    picture = scene((40, 80), side=24, size=(240, 320))
    (found,) = detect(scorer, picture, ["square"], [14, 56]).found
    assert found.window_px == 56
    assert np.allclose(found.box_xyxy, (24, 64, 80, 120), atol=8)  # a stride of 2, at a quarter of the size


def test_windows_at_the_far_edges_end_there(tmp_path: Path) -> None:
    scorer = WindowScorer(predictor(tmp_path / "a"), "crops", 1)
    scan = detect(scorer, scene(size=(33, 51)), CLASSES, [14, 21], least_score=0.0, iou=1.0)
    boxes = np.array([each.box_xyxy for each in scan.found])
    assert boxes.min() == 0
    assert boxes[:, 2].max() == pytest.approx(51, abs=1e-4)
    assert boxes[:, 3].max() == pytest.approx(33, abs=1e-4)


def test_a_pyramid_makes_each_window_as_large_as_the_network_takes() -> None:
    picture = Image.fromarray(np.arange(48 * 96, dtype=np.uint8).reshape(48, 96))
    levels = dict(pyramid(picture, [12, 24, 48], 24))
    assert [tuple(level.shape) for level in levels.values()] == [(1, 96, 192), (1, 48, 96), (1, 24, 48)]
    assert torch.equal(levels[24][0], torch.from_numpy(np.array(picture)))
    with pytest.raises(ValueError, match=r"windows \(=49\) must be from 1 to 48 px"):
        list(pyramid(picture, [49], 24))
    with pytest.raises(ValueError, match=r"windows \(=1\) make the picture 21,504x10,752 px large"):
        next(pyramid(picture, [1], 224))


def test_sizes_grow_from_the_networks_to_the_pictures() -> None:
    assert window_sizes(100, 60, 24) == [24, 30, 38, 47, 59]
    assert window_sizes(20, 90, 24) == [20]


def test_what_is_cut_out_is_framed_as_training_pictures_are(tmp_path: Path) -> None:
    """The network sees 14 of 18 px: the middle of what is cut out is what the window showed."""
    made = predictor(tmp_path / "a", stored_px=18)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8))
    scan = detect(WindowScorer(made), picture, CLASSES, [14], least_score=0.0, iou=0.0)
    preprocessing = made.card.preprocessing
    assert isinstance(preprocessing, Preprocessing)
    inner = [each for each in scan.found if min(each.box_xyxy) >= 2 and each.box_xyxy[2] <= 48
             and each.box_xyxy[3] <= 38]  # fmt: skip
    assert inner
    for each in inner:
        cut = cut_out(picture, each, preprocessing)
        assert cut.size == (18, 18)
        assert cut.crop((2, 2, 16, 16)).tobytes() == picture.crop(tuple(map(int, each.box_xyxy))).tobytes()  # type: ignore[arg-type]
    files = write_crops(tmp_path / "crops", "x", picture, scan, preprocessing)
    left, top, *_ = map(round, scan.found[0].box_xyxy)
    assert files[0].name == f"x-{left}-{top}-14.png"
    assert write_crops(tmp_path / "crops", "x", picture, scan, preprocessing) == files
    assert sorted((tmp_path / "crops").iterdir()) == sorted(set(files))


def test_boxes_are_drawn_where_they_are(tmp_path: Path) -> None:
    scan = detect(WindowScorer(square_finder(tmp_path / "a")), scene((10, 40)), ["square"], [14])
    drawn = np.asarray(draw(scene((10, 40)), scan, ["square"]))
    assert drawn[45, 6].tolist() == [0xFF, 0x3B, 0x30]
    assert drawn[45, 13].tolist() == [255, 255, 255]
    assert drawn[47, 13].tolist() == [0, 0, 0]
    assert drawn[49, 13].tolist() == [0xFF, 0x3B, 0x30] and drawn[50, 13].tolist() == [0, 0, 0]


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    made = predictor(tmp_path / "a")
    with pytest.raises(ValueError, match=r"stride \(=3\) must be a multiple of the network's own, 2"):
        WindowScorer(made, stride_px=3)
    with pytest.raises(ValueError, match="class cat is not known; the model knows background, square"):
        detect(WindowScorer(made), scene(), ["cat"])
    twice = detect(WindowScorer(made), scene(), ["square", "square"], [14], least_score=0.0)
    assert twice.found == detect(WindowScorer(made), scene(), ["square"], [14], least_score=0.0).found
    with pytest.raises(ValueError, match=r"reflected border \(crop_px 16 of 14 px\)"):
        WindowScorer(predictor(tmp_path / "b", crop_px=16, pad_px=2))
