"""Copies of a picture are found however they were saved; pictures that only look alike are left apart."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from data import duplicates
from data.archive import open_tree
from data.decode import decode_image
from data.duplicates import (
    MAX_DISTANCE,
    affordable_distance,
    cluster,
    evidence_needed,
    hamming_distance,
    independent_pixels,
    near_pairs,
    perceptual_hashes,
    same_picture,
)
from data.measurement import join_measured, measure
from data.samples import sample_digits
from tests.datasets import DATASETS
from tests.pictures import encode, picture


def copies(image: Image.Image) -> dict[str, bytes]:
    """The ways in which a picture comes back."""
    width, height = image.size
    return {
        "recompressed": encode(image, "JPEG", quality=40),
        "half the size": encode(image.resize((width // 2, height // 2), Image.Resampling.BILINEAR)),
        "brighter": encode(ImageEnhance.Brightness(image).enhance(1.2)),
        "grey": encode(image.convert("L")),
        "cut by 2%": encode(image.crop((width // 50, 0, width, height - height // 50))),
    }


def pairs_of(hashes: np.ndarray, distance: int) -> list[tuple[int, int]]:
    return [
        (min(i, j), max(i, j))
        for block_i, block_j in near_pairs(hashes, distance)
        for i, j in zip(block_i.tolist(), block_j.tolist(), strict=True)
    ]


@given(
    seed=st.integers(0, 2**32 - 1),
    distance=st.integers(0, MAX_DISTANCE),
    spread=st.integers(0, 6),
    num=st.integers(0, 120),
)
@settings(max_examples=60, deadline=None)
def test_the_index_finds_every_near_pair_once(seed: int, distance: int, spread: int, num: int) -> None:
    generator = np.random.default_rng(seed)
    centres = generator.integers(0, 2**64, 3, np.uint64)  # so that many are near
    hashes = centres[generator.integers(0, 3, num)]
    for _ in range(spread):
        hashes = hashes ^ (np.uint64(1) << generator.integers(0, 64, num).astype(np.uint64))
    apart = hamming_distance(hashes[:, None], hashes[None])
    expected = {(i, j) for i in range(num) for j in range(i + 1, num) if apart[i, j] <= distance}
    found = pairs_of(hashes, distance)
    assert set(found) == expected
    assert len(found) == len(expected)


@given(
    seed=st.integers(0, 2**32 - 1),
    distance=st.integers(0, MAX_DISTANCE),
    spread=st.integers(0, 6),
    nums=st.tuples(st.integers(0, 80), st.integers(0, 80)),
)
@settings(max_examples=60, deadline=None)
def test_the_index_finds_every_near_pair_of_two_sides_once(
    seed: int, distance: int, spread: int, nums: tuple[int, int]
) -> None:
    generator = np.random.default_rng(seed)
    centres = generator.integers(0, 2**64, 3, np.uint64)
    hashes = centres[generator.integers(0, 3, sum(nums))]
    for _ in range(spread):
        hashes = hashes ^ (np.uint64(1) << generator.integers(0, 64, sum(nums)).astype(np.uint64))
    here, others = hashes[: nums[0]], hashes[nums[0] :]
    apart = hamming_distance(here[:, None], others[None])
    found = [
        pair
        for i, j in near_pairs(here, distance, others)
        for pair in zip(i.tolist(), j.tolist(), strict=True)
    ]
    assert sorted(found) == list(map(tuple, np.argwhere(apart <= distance).tolist()))


def test_the_index_keeps_its_blocks_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK_PAIRS", 100)
    hashes = np.zeros(60, np.uint64)
    blocks = [len(i) for i, _ in near_pairs(hashes, 3)]
    assert max(blocks) <= 100
    assert sum(blocks) == 60 * 59 // 2


def test_hamming_distance_counts_bits() -> None:
    a, b = np.array([0b1011, 0], np.uint64), np.array([0b0010, 2**64 - 1], np.uint64)
    assert hamming_distance(a, b).tolist() == [2, 64]


def test_equal_thumbnails_have_equal_hashes_and_other_pictures_far_ones() -> None:
    blobs = [encode(picture(seed)) for seed in range(60)]
    hashes = measure(blobs).phash
    assert np.array_equal(hashes, measure(blobs).phash)
    assert np.array_equal(hashes[::-1], measure(blobs[::-1]).phash)  # neighbours in the batch do not matter
    apart = hamming_distance(hashes[:, None], hashes[None])[np.triu_indices(60, 1)]
    assert apart.min() > MAX_DISTANCE
    assert 25 < apart.mean() < 35  # of 60 bits


def test_a_hash_by_hand() -> None:
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8) * 8, (32, 32))
    rightward = int(perceptual_hashes(ramp[None])[0])
    downward = int(perceptual_hashes(ramp.T[None])[0])
    assert rightward.bit_count() == 30  # 6 rows × 5 steps to the right rise; downward all is equal
    assert downward.bit_count() == 30
    assert rightward & downward == 0
    assert int(perceptual_hashes(np.full((1, 32, 32), 77, np.uint8))[0]) == 0


def test_copies_are_found_and_strangers_are_not() -> None:
    originals = [picture(seed, 200, 160) for seed in range(30)]
    blobs = [encode(image) for image in originals]
    kinds = list(copies(originals[0]))
    for image in originals[:10]:
        blobs += copies(image).values()
    found = measure(blobs)
    roots = cluster(found.phash, found.pictures, MAX_DISTANCE, 2.5)
    expected = [*range(30), *(i for i in range(10) for _ in kinds)]
    missed = [kinds[(i - 30) % len(kinds)] for i in range(30, len(blobs)) if roots[i] != expected[i]]
    assert missed == []
    assert roots[:30].tolist() == list(range(30))


def test_a_cluster_does_not_depend_on_the_order() -> None:
    blobs = [encode(picture(seed, 96, 96)) for seed in range(12)]
    blobs += [encode(picture(seed, 96, 96), "JPEG", quality=50) for seed in range(6)]
    order = np.random.default_rng(0).permutation(len(blobs))
    plain, mixed = measure(blobs), measure([blobs[i] for i in order])

    def sets(roots: np.ndarray, names: np.ndarray) -> set[frozenset[int]]:
        return {frozenset(names[roots == root].tolist()) for root in np.unique(roots)}

    a = cluster(plain.phash, plain.pictures, 7, 2.5)
    b = cluster(mixed.phash, mixed.pictures, 7, 2.5)
    assert sets(a, np.arange(len(blobs))) == sets(b, order)
    assert len(np.unique(a)) == 12


def test_flat_pictures_are_not_the_same_picture() -> None:
    blobs = [encode(Image.new("RGB", (64, 64), (value, value, value + 5))) for value in range(0, 200, 10)]
    found = measure(blobs)
    assert len(np.unique(found.phash)) == 1  # their hashes all collide
    assert len(np.unique(cluster(found.phash, found.pictures, 3, 2.5))) == len(blobs)
    assert independent_pixels(found.pictures.thumbs).max() == 0


def test_detail_in_few_pixels_is_little_evidence() -> None:
    full = np.asarray(picture(1, 32, 32, "L"))[None]
    dot = np.full((1, 32, 32), 100, np.uint8)
    dot[0, 14:18, 14:18] = 255
    tiny = np.asarray(picture(1, 8, 8, "L").resize((32, 32), Image.Resampling.BILINEAR))[None]
    assert independent_pixels(full)[0] > 3 * independent_pixels(dot)[0]
    assert independent_pixels(full)[0] > 1.5 * independent_pixels(tiny)[0]


def test_handwritten_digits_are_not_lumped_together() -> None:
    """1,797 digits at 8×8 of ten shapes, none of them twice."""
    rows = list(sample_digits())[:900]
    found = measure([data for _, data, _ in rows])
    labels = np.array([int(label) for _, _, label in rows])
    distance = affordable_distance(found.phash, MAX_DISTANCE)
    assert distance < MAX_DISTANCE  # nearly all hashes are near each other
    needed = evidence_needed(found.pictures, labels)
    assert needed > 4
    assert len(np.unique(cluster(found.phash, found.pictures, distance, needed))) == len(rows)


def test_evidence_needed_is_low_where_pictures_differ() -> None:
    found = measure([encode(picture(seed, 32, 32)) for seed in range(120)])
    labels = np.arange(120) % 2
    assert evidence_needed(found.pictures, labels) == 2.5
    assert affordable_distance(found.phash, MAX_DISTANCE) == MAX_DISTANCE


def test_same_picture_is_symmetric_and_reflexive() -> None:
    found = join_measured([measure([encode(picture(seed))]) for seed in range(8)])
    everything = np.arange(8)
    assert same_picture(found.pictures, everything, everything, 2.5).all()
    i, j = np.meshgrid(everything, everything)
    ahead = same_picture(found.pictures, i.ravel(), j.ravel(), 2.5)
    assert np.array_equal(ahead, same_picture(found.pictures, j.ravel(), i.ravel(), 2.5))
    assert ahead.sum() == 8


@pytest.mark.data
def test_on_photographs_copies_are_found_and_strangers_are_not(tmp_path: Path) -> None:
    archive = DATASETS / "hymenoptera_240.tar"
    if not archive.is_file():
        pytest.skip(f"{archive} is not there; set CONVOY_DATASETS")
    with open_tree(archive, spool=tmp_path, max_total_bytes=1 << 30) as tree:
        photos = [tree.read(name) for name in tree.sizes if name.endswith(".jpg")][:150]
    originals = [decode_image(photo, channels=3) for photo in photos[:40]]
    blobs = photos + [blob for image in originals for blob in copies(image).values()]
    found = measure(blobs)
    roots = cluster(found.phash, found.pictures, MAX_DISTANCE, 2.5)
    assert len(np.unique(roots[:150])) == 150  # no two of them are of one picture
    kinds = len(copies(originals[0]))
    expected = np.repeat(np.arange(40), kinds)
    assert np.mean(roots[150:] == expected) > 0.97
