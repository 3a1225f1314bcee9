"""Selective search: regions grow by merging the likest neighbours, and objects are among their boxes."""

import io
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from data.proposals import MEASURES, Regions, grow, measure, selective_search, similarity, touching
from models.boxes import iou
from tests.corpus import read_tar
from tests.datasets import DATASETS


def picture(side: int = 96) -> np.ndarray:
    """A red and a blue rectangle on grey."""
    image = np.full((side, side, 3), 110, np.uint8)
    image[10:40, 15:60] = (230, 30, 30)
    image[50:90, 60:85] = (20, 40, 220)
    return image


def random_regions(num: int, seed: int = 0) -> Regions:
    generator = np.random.default_rng(seed)
    corners = generator.integers(0, 50, (num, 2))
    boxes = np.concatenate([corners, corners + generator.integers(5, 40, (num, 2))], 1)
    shares = [generator.random((num, bins)) for bins in (12, 20)]
    return Regions(generator.integers(5, 25, num), boxes, *(s / s.sum(1, keepdims=True) for s in shares))


def test_objects_of_one_colour_are_found_to_the_pixel() -> None:
    found = selective_search(picture()).tolist()
    assert [15, 10, 60, 40] in found
    assert [60, 50, 85, 90] in found
    assert [0, 0, 96, 96] in found  # the last merge


def test_boxes_are_inside_the_picture_different_large_enough_and_always_the_same() -> None:
    noisy = np.clip(picture() + np.random.default_rng(0).normal(0, 25, (96, 96, 3)), 0, 255).astype(np.uint8)
    found = selective_search(noisy, least_side_px=12)
    assert found.dtype == np.float32
    assert (found >= 0).all() and (found <= 96).all()
    assert (found[:, 2:] - found[:, :2] >= 12).all()
    assert len(np.unique(found, axis=0)) == len(found) > 20
    assert np.array_equal(found, selective_search(noisy, least_side_px=12))
    assert np.array_equal(found[:10], selective_search(noisy, most=10, least_side_px=12))
    assert set(map(tuple, selective_search(noisy, seed=1, least_side_px=12))) == set(map(tuple, found))


def test_a_grey_picture_is_that_of_three_equal_channels_and_a_plain_one_is_one_region() -> None:
    grey = picture()[..., :1]
    assert np.array_equal(selective_search(grey), selective_search(np.repeat(grey, 3, 2)))
    assert selective_search(np.full((40, 60, 3), 9, np.uint8)).tolist() == [[0, 0, 60, 40]]


@pytest.mark.parametrize(
    "wrong", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)]
)
def test_what_is_no_picture_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a picture is"):
        selective_search(wrong)


def test_regions_are_measured_as_worked_by_hand() -> None:
    labels = np.array([[0, 0, 1], [0, 2, 1]])
    values = np.zeros((2, 3, 3))
    values[..., 0] = [[0.1, 0.1, 1.0], [0.9, 0.5, 0.98]]
    regions, pairs = measure(values, labels)
    assert regions.sizes.tolist() == [3, 2, 1]
    assert regions.boxes_xyxy.tolist() == [[0, 0, 2, 2], [2, 0, 3, 2], [1, 1, 2, 2]]
    assert pairs.tolist() == touching(labels).tolist() == [[0, 1], [0, 2], [1, 2]]
    first = regions.colours[:, :25] * 3  # of the first of three channels
    assert first[0, 2] == pytest.approx(2 / 3) and first[0, 22] == pytest.approx(1 / 3)
    assert first[1, 24] == pytest.approx(1)  # 1.0 is in the last bin too
    np.testing.assert_allclose(regions.textures.sum(1), 1)


def test_similarity_is_that_of_the_paper() -> None:
    regions = Regions(
        np.array([10, 20]), np.array([[0, 0, 5, 4], [5, 0, 10, 8]]),
        np.array([[0.5, 0.5, 0], [0.2, 0.5, 0.3]]), np.array([[1.0, 0], [0.25, 0.75]]),
    )  # fmt: skip
    one, two = np.array([0]), np.array([1])
    # colour 0.7, texture 0.25; size 1 - 30/200; the common box has 10 · 8 pixels: fill 1 - (80 - 30)/200
    parts = [similarity(regions, one, two, np.eye(4)[i], 200)[0] for i in range(4)]
    assert parts == pytest.approx([0.7, 0.25, 0.85, 0.75])
    assert similarity(regions, one, two, (1, 1, 1, 1), 200)[0] == pytest.approx(sum(parts))


@pytest.mark.parametrize("weights", MEASURES)
@pytest.mark.parametrize("seed", range(3))
def test_growing_merges_the_likest_neighbours_until_one_is_left(
    weights: tuple[float, ...], seed: int
) -> None:
    """Against the definition: all pairs compared anew at each step."""
    N = 12
    regions, generator = random_regions(N, seed), np.random.default_rng(seed)
    pairs = np.array([(int(generator.integers(0, i)), i) for i in range(1, N)] + [(0, N - 1), (2, N - 2)])
    total = int(regions.sizes.sum())
    found = grow(regions, np.unique(pairs, axis=0), weights)
    items = {
        i: [getattr(regions, name)[i] for name in ("sizes", "boxes_xyxy", "colours", "textures")]
        for i in range(N)
    }
    joined = {frozenset(pair) for pair in pairs.tolist()}
    wanted = regions.boxes_xyxy.tolist()
    while joined:

        def like(pair: frozenset[int]) -> float:
            columns = zip(*(items[i] for i in sorted(pair)), strict=True)
            both = Regions(*(np.stack(column) for column in columns))
            return float(similarity(both, np.array([0]), np.array([1]), weights, total)[0])

        best = max(joined, key=like)
        (size_a, box_a, *one), (size_b, box_b, *two) = (items.pop(i) for i in sorted(best))
        new = len(wanted)
        box = np.array([*np.minimum(box_a[:2], box_b[:2]), *np.maximum(box_a[2:], box_b[2:])])
        mean = [(size_a * x + size_b * y) / (size_a + size_b) for x, y in zip(one, two, strict=True)]
        items[new] = [size_a + size_b, box, *mean]
        wanted.append(box.tolist())
        joined = {frozenset(new if i in best else i for i in pair) for pair in joined if pair != best}
    assert found.tolist() == wanted


@pytest.mark.data
@pytest.mark.slow
def test_nine_of_ten_objects_of_photos_are_covered() -> None:
    notes = read_tar(DATASETS / "voc40.tar", ".xml", 8)
    photos = read_tar(DATASETS / "voc40.tar", ".jpg", 40)
    best = []
    for note in notes.values():
        root = ElementTree.fromstring(note)
        [photo] = [data for name, data in photos.items() if name.endswith(str(root.findtext("filename")))]
        found = selective_search(np.asarray(Image.open(io.BytesIO(photo)).convert("RGB")))
        assert 1000 < len(found) <= 2000
        edges = [
            [float(box.findtext(edge) or 0) for edge in ("xmin", "ymin", "xmax", "ymax")]
            for box in root.iter("bndbox")
        ]
        best.append(iou(torch.tensor(edges)[:, None], torch.from_numpy(found)).amax(1))
    assert float((torch.cat(best) >= 0.5).float().mean()) > 0.9
