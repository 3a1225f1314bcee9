"""Landmarks' input: points stand where the pixels went, and pairs change places in a mirror."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from data.dataset import DatasetInfo
from data.decode import decode_many
from data.formats.landmarks import mirrored_names
from data.landmarks import (
    IBUG68_PAIRS,
    LandmarkAugment,
    LandmarkInput,
    LandmarkRecords,
    decode_rows,
    make_batch,
    mirrored_order,
    square_maps,
)
from data.random import SampleGenerator
from tests.pictures import encode

SIDE = 48
INPUT = LandmarkInput(input_px=SIDE, resize="squash")
STILL = {
    "mirror": False, "mirror_pairs": [], "rotation_deg": 0, "scale": 0, "shift_share": 0, "brightness": 0,
    "contrast": 0, "saturation": 0,
}  # fmt: skip

# Points 17 to 67 of iBUG's markup in dlib's mean face (get_face_chip_details), in thousandths of its width.
MEAN_FACE = np.array([
    (0, 106), (75, 39), (181, 19), (291, 34), (393, 77), (587, 77), (689, 34), (799, 19), (905, 39),
    (980, 106),  # brows
    (490, 203), (490, 307), (490, 410), (490, 516), (367, 587), (426, 609), (490, 628), (554, 609),
    (613, 587),  # nose
    (122, 216), (187, 179), (266, 180), (335, 232), (261, 245), (183, 244), (646, 232), (714, 180),
    (793, 179), (859, 216), (798, 244), (719, 245),  # eyes
    (254, 780), (341, 745), (429, 727), (490, 743), (551, 727), (639, 745), (726, 780), (642, 865),
    (557, 902), (490, 909), (424, 902), (338, 865), (290, 785), (428, 779), (490, 785), (552, 779),
    (690, 785), (553, 824), (490, 832), (427, 824),  # mouth
], float)  # fmt: skip


def changes(**other: object) -> LandmarkAugment:
    return LandmarkAugment.parse({**STILL, **other}, "augment")


def info(num: int = 3, **other: object) -> DatasetInfo:
    values = {
        "schema_version": 1, "name": "dots", "family": "landmarks", "classes": (), "channels": 3, "counts": {},
        "width_px": (1, 1, 1), "height_px": (1, 1, 1), "channel_mean": (0.5,) * 3, "channel_std": (0.2,) * 3,
        "source": "", "source_sha256": "", "licence": "", "set_aside": 0, "shards": (),
        "points": tuple(str(i) for i in range(num)),
    }  # fmt: skip
    return DatasetInfo(**{**values, **other})


def dots(num: int = 6) -> LandmarkRecords:
    """A red, a green and a blue blob in each picture; the points are their middles."""
    rng = np.random.default_rng(0)
    points = rng.uniform(14, SIDE - 14, (num, 3, 2)).astype(np.float32)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    away = (x - points[:, :, 0, None, None]) ** 2 + (y - points[:, :, 1, None, None]) ** 2
    images = torch.from_numpy((255 * np.exp(-away / 8)).astype(np.uint8))
    there = torch.ones(num, 3, dtype=torch.bool)
    return LandmarkRecords(images, torch.from_numpy(points), there, there.clone())


def middles(images: torch.Tensor) -> torch.Tensor:
    """The centre of mass of each channel: (B, C, 2), in pixels counted from the edge."""
    mass = images.double()
    place = torch.arange(SIDE) + 0.5
    total = mass.sum((2, 3))
    return torch.stack([(mass.sum(2) * place).sum(2) / total, (mass.sum(3) * place).sum(2) / total], 2)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_points_move_with_the_pixels(epoch: int) -> None:
    augment = changes(mirror=True, mirror_pairs=[[0, 1]], rotation_deg=20, scale=0.15, shift_share=0.05)
    records = dots()
    records.visible[:, 0], records.given[:, 1] = False, False
    batch = make_batch(records, np.arange(6), info(), INPUT, augment, SampleGenerator(3, epoch))
    where = middles(batch.images)
    mirrored = (batch.points_xy[:, :2] - where[:, :2].flip(1)).abs().amax((1, 2)) < 1
    wanted = torch.where(mirrored[:, None, None], where[:, [1, 0, 2]], where)
    torch.testing.assert_close(batch.points_xy.double(), wanted, atol=0.3, rtol=0)
    assert 0 < mirrored.sum() < 6
    # whether a point is seen, and given, goes with it
    first, second = (torch.arange(3) == place for place in (0, 1))
    assert torch.equal(batch.visible, ~torch.where(mirrored[:, None], second, first))
    assert torch.equal(batch.given, ~torch.where(mirrored[:, None], first, second))


def test_a_mirror_is_undone_by_a_second_one() -> None:
    order = mirrored_order(info(68), changes(mirror=True))
    np.testing.assert_array_equal(order[order], np.arange(68))
    assert (order == np.arange(68)).sum() == 68 - 2 * len(IBUG68_PAIRS) == 10  # nose, chin, lips


def test_each_of_the_68_points_becomes_the_one_that_a_mirrored_face_has_there() -> None:
    """The jaw of points 0 to 16 goes from ear to ear; neighbours of the rest are 36 thousandths apart, or more."""
    turn = np.linspace(np.pi, 2 * np.pi, 17)
    jaw = np.stack([490 + 620 * np.cos(turn), 250 - 850 * np.sin(turn)], 1)
    face = np.concatenate([jaw, MEAN_FACE])
    mirrored = face[mirrored_order(info(68), changes(mirror=True))]
    mirrored[:, 0] = 2 * 490 - mirrored[:, 0]
    np.testing.assert_allclose(mirrored, face, atol=3)


def test_a_mirror_without_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"which of the 3 points of 'dots' change places.*mirror=false"):
        mirrored_order(info(), changes(mirror=True))
    assert mirrored_order(info(mirror_pairs=((0, 2),)), changes(mirror=True)).tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match="must name points below 3"):
        mirrored_order(info(), changes(mirror=True, mirror_pairs=[[0, 3]]))
    with pytest.raises(ValueError, match="must name each point once"):
        changes(mirror_pairs=[[0, 1], [1, 2]])


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        ("left_eye right_eye nose left_mouth right_mouth", ((0, 1), (3, 4))),
        ("righteye lefteye nose", ((0, 1),)),  # as CelebA has them
        ("mouth_left_corner nose mouth_right_corner", ((0, 2),)),
        ("EyeLeft bright_spot EyeRight", ((0, 2),)),
        ("left_eye right_eye left_ear", ()),  # the mirror image of an ear that nobody named
        ("bright_spot nose", ()),
        ("0 1 2", ()),
        ("Left_eye left_eye right_eye", ()),
        ("", ()),
    ],
)
def test_names_tell_which_points_change_places(names: str, pairs: tuple[tuple[int, int], ...]) -> None:
    assert mirrored_names(names.split()) == pairs


def test_a_sample_looks_the_same_beside_any_neighbours() -> None:
    augment = changes(
        rotation_deg=20, scale=0.1, shift_share=0.1, brightness=0.2, contrast=0.2, saturation=0.2
    )
    whole = make_batch(dots(), np.arange(6), info(), INPUT, augment, SampleGenerator(0, 4))
    alone = make_batch(dots(), np.array([4]), info(), INPUT, augment, SampleGenerator(0, 4))
    torch.testing.assert_close(whole.points_xy[4:5], alone.points_xy)
    assert (whole.images[4:5].int() - alone.images.int()).abs().max() <= 1


def test_points_that_leave_the_picture_are_not_visible_and_keep_their_place() -> None:
    records = dots()
    records.points_xy[0, 0] = torch.tensor([-3.0, 5.0])
    batch = make_batch(records, np.arange(6), info(), INPUT, changes(), None)
    assert batch.points_xy[0, 0].tolist() == [-3, 5]
    assert not batch.visible[0, 0] and batch.given.all() and batch.visible.sum() == 17


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (48, 61), (48, 48)])
def test_square_maps_follow_the_decoder(resize: str, size: tuple[int, int]) -> None:
    """A blob of the picture is found in the square where the map says."""
    config = LandmarkInput.parse({"input_px": SIDE, "resize": resize}, "input")
    x0, y0 = size[0] * 0.5 + 3, size[1] * 0.5 - 4
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    pixels = 255 * np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / 18)
    blob = encode(Image.fromarray(pixels.astype(np.uint8)).convert("RGB"))
    scale, shift = square_maps(np.array([size]), config)
    found = middles(torch.from_numpy(decode_many([blob], SIDE, 3, config.resize)))[0, 0].numpy()
    np.testing.assert_allclose(found, np.array([x0, y0]) * scale[0] + shift[0], atol=0.1)


@pytest.mark.parametrize("size", [(144, 96), (193, 143), (144, 193)])
def test_points_of_a_large_jpeg_stand_where_its_pixels_went(size: tuple[int, int]) -> None:
    """Decoded smaller first, what was cut out of it once was up to half a pixel off."""
    x0, y0 = size[0] * 0.5 + 9, size[1] * 0.5 - 8
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    pixels = 255 * np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / 60)
    rows = pa.table(
        {
            "image": [encode(Image.fromarray(pixels.astype(np.uint8)).convert("RGB"), "JPEG", quality=98)],
            "points_xy": [[x0 - 0.5, y0 - 0.5]], "visible": [[True]], "width": [size[0]], "height": [size[1]],
        }
    )  # fmt: skip
    arrays = decode_rows(rows, info(1), LandmarkInput(input_px=SIDE, resize="crop"))
    clean = np.where(arrays["images"] < 8, 0, arrays["images"])
    np.testing.assert_allclose(middles(torch.from_numpy(clean))[0, 0], arrays["points_xy"][0, 0], atol=0.08)
