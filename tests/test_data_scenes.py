"""Pictures with boxes for training: where a box is after all that is done to its picture."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from data.dataset import CROWD, DIFFICULT, SCHEMA_VERSION, TRUNCATED, DatasetInfo
from data.decode import decode_image, decode_many, read_size
from data.detection import (
    Batch,
    DetectionAugment,
    DetectionInput,
    Scenes,
    decode_rows,
    empty_split,
    make_batch,
    pad,
)
from data.geometry import identity, turned, warp_images
from data.letterbox import into_square, out_of_square, placement
from data.random import SampleGenerator
from data.squares import BORDER, to_square

INFO = DatasetInfo.model_construct(
    schema_version=SCHEMA_VERSION, name="x", family="detection", classes=("a", "b"), channels=3,
    channel_mean=(0.5,) * 3, channel_std=(0.2,) * 3, colour_covariance=(),
)  # fmt: skip
STILL: dict[str, Any] = {
    "mirror": False, "upside_down": False, "quarter_turns": False, "scale": [1, 1], "translate": 0,
    "rotation_deg": 0, "brightness": 0, "contrast": 0, "saturation": 0, "colour_shift": 0, "pca_colour": 0,
    "mosaic": 0, "mosaic_until": 1, "least_seen": 0.2,
}  # fmt: skip
INPUT = DetectionInput(stored_px=64, resize="letterbox", train_px=())


def augmentation(**changes: Any) -> DetectionAugment:
    return DetectionAugment.parse({**STILL, **changes}, "augment")


def scene(width: int, height: int, boxes: list[tuple[int, int, int, int]]) -> bytes:
    """A dark picture with a white rectangle in each box."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(pictures: list[tuple[int, int, list[tuple[int, int, int, int]]]], flags: int = 0) -> pa.Table:
    """Rows as ingest leaves them, a class for each box in turn."""
    return pa.table(
        {
            "image": [scene(*picture) for picture in pictures],
            "width": [w for w, _h, _b in pictures],
            "height": [h for _w, h, _b in pictures],
            "boxes_xyxy": pa.array([np.ravel(b).tolist() for *_, b in pictures], pa.list_(pa.float32())),
            "box_labels": pa.array(
                [[i % 2 for i in range(len(b))] for *_, b in pictures], pa.list_(pa.int32())
            ),
            "box_flags": pa.array([[flags] * len(b) for *_, b in pictures], pa.list_(pa.uint8())),
        }
    )


def scenes(pictures: list[Any], config: DetectionInput = INPUT, flags: int = 0) -> Scenes:
    arrays = decode_rows(rows_of(pictures, flags), 3, config)
    return Scenes(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def seen_box(picture: torch.Tensor) -> list[int]:
    """The hull of what is white: (x0, y0, x1, y1)."""
    white = picture.float().mean(0) > 127  # a blurred edge is half white
    x, y = white.any(0).nonzero()[:, 0], white.any(1).nonzero()[:, 0]
    return [int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1]


@pytest.mark.parametrize("resize", ["letterbox", "squash"])
@pytest.mark.parametrize("size", [(64, 64), (128, 96), (96, 192), (30, 20)])
def test_a_box_lies_on_its_object_in_the_square(resize: Any, size: tuple[int, int]) -> None:
    width, height = size
    box = (width // 4, height // 8, width // 2, height // 2)
    config = DetectionInput(stored_px=64, resize=resize, train_px=())
    samples = scenes([(width, height, [box])], config)
    assert np.allclose(seen_box(samples.images[0]), samples.boxes_xyxy[0], atol=1.01)
    placed = np.array([placement(width, height, 64, resize)])
    back = out_of_square(samples.boxes_xyxy.double().numpy(), placed, np.array([[width, height]]))
    assert np.allclose(back, [box], atol=1e-3)
    assert np.allclose(into_square(back, placed), samples.boxes_xyxy, atol=1e-3)


def test_a_letterboxed_picture_has_a_grey_border_and_a_squashed_one_none() -> None:
    wide = scenes([(64, 32, [])])
    assert (wide.images[0, :, :16] == BORDER).all() and (wide.images[0, :, 48:] == BORDER).all()
    assert (wide.images[0, :, 16:48] == 0).all()
    squashed = scenes([(64, 32, [])], DetectionInput(stored_px=64, resize="squash", train_px=()))
    assert (squashed.images == 0).all()


@pytest.mark.parametrize("size", [(64, 64), (128, 96), (96, 192), (30, 20), (67, 64), (64, 67)])
def test_a_box_of_the_middle_of_a_picture_comes_back(size: tuple[int, int]) -> None:
    width, height = size
    left, top, right, bottom = box = (width // 2 - 6, height // 2 - 8, width // 2 + 5, height // 2 + 7)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    square = torch.from_numpy(to_square(Image.fromarray(pixels), 64, "crop"))
    placed = np.array([placement(*size, 64, "crop")])
    inside = into_square(np.array([box], float), placed)
    assert np.allclose(seen_box(square), inside, atol=0 if min(size) == 64 else 1.01)  # 64: copied
    assert np.allclose(out_of_square(inside, placed, np.array([size])), [box])


def test_boxes_beyond_the_picture_come_back_cut_at_its_edges() -> None:
    placed, size = np.array([placement(64, 32, 64, "letterbox")]), np.array([[64, 32]])
    assert out_of_square(np.array([[-5.0, 0, 70, 64]]), placed, size).tolist() == [[0, 0, 64, 32]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_of_a_turned_picture_is_that_of_the_upright_one(form: str, orientation: int) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 20)).save(buffer, form, exif=exif)
    upright = (40, 20) if orientation < 5 else (20, 40)
    assert read_size(buffer.getvalue()) == upright == decode_image(buffer.getvalue(), channels=3).size


@pytest.mark.parametrize("size", [(1749, 2078), (1082, 2624), (1053, 1075), (640, 637)])
def test_a_large_jpeg_lies_in_its_square_where_its_boxes_do(size: tuple[int, int]) -> None:
    """Decoded smaller first, it once had a border a pixel off."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (255, 255, 255)).save(buffer, "JPEG")
    [square] = decode_many([buffer.getvalue()], 320, 3, "letterbox")
    [box] = into_square(np.array([[0, 0, *size]], float), np.array([placement(*size, 320, "letterbox")]))
    assert seen_box(torch.from_numpy(square)) == box.tolist()
    drafted = decode_image(buffer.getvalue(), channels=3, draft_px=320)
    assert np.array_equal(to_square(drafted, 320, "letterbox", size), square)


def test_rows_keep_all_boxes_in_their_order_and_pictures_without_any() -> None:
    boxes = [(2, 2, 20, 20), (30, 30, 60, 50)]
    samples = scenes([(64, 64, boxes), (64, 64, []), (64, 64, boxes[:1])], flags=TRUNCATED)
    assert samples.num_boxes.tolist() == [2, 0, 1]
    truths = samples.truths(np.array([2, 1, 0]))
    assert truths.image.tolist() == [0, 2, 2] and truths.labels.tolist() == [0, 0, 1]
    assert truths.boxes_xyxy.tolist() == [list(map(float, box)) for box in (boxes[0], *boxes)]
    assert not truths.ignored.any()  # what is cut off is an object


@pytest.mark.parametrize("flag", [CROWD, DIFFICULT, CROWD | TRUNCATED])
def test_crowds_and_difficult_objects_are_neither_object_nor_background(flag: int) -> None:
    assert scenes([(64, 64, [(2, 2, 20, 20)])], flags=flag).truths(np.array([0])).ignored.all()


def test_a_split_without_pictures_has_the_arrays_of_one_with() -> None:
    full, none = decode_rows(rows_of([(64, 64, [(1, 1, 9, 9)])]), 3, INPUT), empty_split(3, INPUT)
    assert {k: (v.shape[1:], v.dtype) for k, v in full.items()} == {
        k: (v.shape[1:], v.dtype) for k, v in none.items()
    }
    assert len(Scenes(**{name: torch.from_numpy(array) for name, array in none.items()})) == 0


def test_plain_batches_are_the_stored_pictures() -> None:
    samples = scenes([(64, 64, [(2, 2, 20, 20)]), (64, 48, [])])
    batch = make_batch(samples, np.array([1, 0]), INFO, INPUT, augmentation(mirror=True), None)
    assert torch.equal(batch.images, samples.images[[1, 0]])
    assert batch.truths.image.tolist() == [1] and batch.truths.boxes_xyxy.tolist() == [[2, 2, 20, 20]]


def made(
    samples: Scenes, epoch: int = 0, config: DetectionInput = INPUT, done: float = 0.0, **changes: Any
) -> Batch:
    generator = SampleGenerator(0, epoch, done)
    return make_batch(samples, np.arange(len(samples)), INFO, config, augmentation(**changes), generator)


WAYS: dict[str, dict[str, Any]] = {
    "mirrored": {"mirror": True},
    "upside down": {"upside_down": True},
    "turned": {"mirror": True, "upside_down": True, "quarter_turns": True},
    "zoomed": {"scale": [0.6, 1.5]},
    "shifted": {"translate": 0.2},
    "turned by an angle": {"rotation_deg": 20},
    "all": {"mirror": True, "quarter_turns": True, "scale": [0.7, 1.3], "translate": 0.1, "brightness": 0.1},
}


@pytest.mark.parametrize("way", WAYS)
def test_boxes_move_with_their_pictures(way: str) -> None:
    samples = scenes([(64, 64, [(20, 12, 44, 30)])] * 8)
    checked = 0
    for epoch in range(5):
        batch = made(samples, epoch, **WAYS[way])
        for box, image in zip(batch.truths.boxes_xyxy, batch.truths.image, strict=True):
            # a turned rectangle does not fill its hull, so its white pixels may end earlier
            assert np.allclose(seen_box(batch.images[image]), box, atol=2.1 if "angle" in way else 1.1)
            checked += 1
    assert checked > 30


def test_a_square_is_laid_down_in_eight_ways_exactly() -> None:
    picture = torch.randint(0, 256, (1, 3, 6, 6), dtype=torch.uint8)
    for mirror in (False, True):
        for upside_down in (False, True):
            for swap in (False, True):
                maps = turned(*(torch.tensor([each]) for each in (mirror, upside_down, swap)), 6)
                want = picture.flip(3) if mirror else picture
                want = want.flip(2) if upside_down else want
                want = want.transpose(2, 3) if swap else want
                assert torch.allclose(warp_images(picture, maps, (6, 6)), want.float(), atol=1e-3)
    no = torch.zeros(1, dtype=torch.bool)
    assert torch.equal(turned(no, no, no, 6), identity(1))


def test_what_is_hardly_left_is_ignored_and_what_is_gone_is_no_box() -> None:
    # zoomed to the middle half of the picture: 16…48 is shown
    corner, edge, middle = (0, 0, 10, 10), (10, 20, 18, 30), (20, 20, 40, 40)
    samples = scenes([(64, 64, [corner, edge, middle])])
    truths = made(samples, scale=[2, 2], least_seen=0.5).truths
    assert truths.boxes_xyxy.round().tolist() == [[0, 8, 4, 28], [8, 8, 48, 48]]
    assert truths.ignored.tolist() == [True, False]


def test_what_becomes_too_small_is_neither_object_nor_background() -> None:
    """A detector that finds it is not wrong: left out, its box would be taught as background."""
    small, large = (10, 10, 14, 30), (20, 20, 40, 40)
    samples = scenes([(64, 64, [small, large])])
    truths = made(samples, scale=[0.4, 0.4]).truths
    sides = truths.boxes_xyxy[:, 2:] - truths.boxes_xyxy[:, :2]
    torch.testing.assert_close(sides, torch.tensor([[1.6, 8], [8, 8]]), atol=1e-3, rtol=0)
    assert truths.ignored.tolist() == [True, False]
    dot = scenes([(64, 64, [(10, 10, 11, 11), large])])
    assert made(dot).truths.ignored.tolist() == [True, False]
    plain = make_batch(dot, np.arange(1), INFO, INPUT, augmentation(), None).truths
    assert not plain.ignored.any()  # a validation counts it


def test_a_mosaic_has_the_boxes_of_its_four_pictures_where_they_are() -> None:
    samples = scenes([(64, 64, [(8, 8, 56, 56)])] * 6)
    batch = made(samples, mosaic=1)
    counts = torch.bincount(batch.truths.image, minlength=6)
    assert (counts == 4).all()
    for i in range(6):
        # the white of a mosaic is the union of its boxes
        painted = torch.zeros(64, 64, dtype=torch.bool)
        for x0, y0, x1, y1 in batch.truths.boxes_xyxy[batch.truths.image == i].round().int().tolist():
            painted[y0:y1, x0:x1] = True
        assert torch.equal(batch.images[i, 0] > 128, painted)


def test_mosaic_is_switched_off_at_the_end_of_training_and_left_out_of_a_share() -> None:
    samples = scenes([(64, 64, [(8, 8, 56, 56)])] * 32)
    assert len(made(samples, done=0.79, mosaic=1, mosaic_until=0.8).truths) > 32
    assert len(made(samples, done=0.8, mosaic=1, mosaic_until=0.8).truths) == 32
    assert len(made(samples, 50, done=0.99, mosaic=1, mosaic_until=1).truths) > 32
    counts = torch.bincount(made(samples, mosaic=0.5).truths.image, minlength=32)
    assert 8 <= int((counts == 1).sum()) <= 24 and set(counts.tolist()) == {1, 4}


def test_batches_have_the_sides_that_are_drawn_for_them() -> None:
    config = DetectionInput(stored_px=64, resize="letterbox", train_px=(32, 64, 96))
    samples = scenes([(64, 64, [(16, 16, 48, 32)])] * 2, config)
    sides = set()
    for epoch in range(20):
        batch = made(samples, epoch, config)
        side = batch.images.shape[2]
        sides.add(side)
        assert torch.allclose(batch.truths.boxes_xyxy[0] / side, torch.tensor([0.25, 0.25, 0.75, 0.5]))
    assert sides == {32, 64, 96}


def test_a_sample_is_augmented_alike_beside_any_neighbours() -> None:
    samples = scenes([(64, 64, [(8 + i, 8, 40, 30)]) for i in range(6)])
    config = augmentation(mirror=True, scale=[0.7, 1.4], translate=0.1, brightness=0.2)
    generator = SampleGenerator(3, 1)
    whole = make_batch(samples, np.arange(6), INFO, INPUT, config, generator)
    some = make_batch(samples, np.array([4, 2]), INFO, INPUT, config, generator)
    assert torch.equal(some.images, whole.images[[4, 2]])
    part = make_batch(samples, np.array([14, 12]), INFO, INPUT, config, generator, np.array([4, 2]))
    assert not torch.equal(part.images, some.images)  # drawn by the sample's index, not by its place


def test_padded_boxes_are_the_flat_ones() -> None:
    samples = scenes([(64, 64, [(2, 2, 20, 20), (30, 30, 60, 50)]), (64, 64, []), (64, 64, [(1, 1, 9, 9)])])
    truths = samples.truths(np.arange(3))
    padded = pad(truths, 3)
    assert padded.taken.tolist() == [[True, True], [False, False], [True, False]]
    again = padded.flat()
    for name in ("boxes_xyxy", "labels", "image", "ignored"):
        assert torch.equal(getattr(again, name), getattr(truths, name))
    assert pad(samples.truths(np.array([1])), 1).taken.shape == (1, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": [0.01, 1]}, r"scale \(=\[0.01, 1.0\]\) must be \[least, greatest\]"),
        ({"scale": [1.5, 1]}, "least <= greatest"),
        ({"mosaic": 1.5}, "mosaic"),
    ],
)
def test_parameters_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augmentation(**changes)
    with pytest.raises(ValueError, match="multiples of 32"):
        DetectionInput.parse({"stored_px": 64, "resize": "squash", "train_px": [40]}, "input")
