"""Resident or streamed: the same batches, sample for sample, from whichever process and whatever the window."""

import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data import storage
from data.dataset import Dataset
from data.ingest import ingest
from data.stream import layout_of
from tasks.batches import BatchPlan, plain_jobs, training_jobs
from tasks.families import FAMILIES
from tasks.feed import choose_mode, resident, round_up, stream_depth, streamed_here
from tasks.train import decode_here
from tests.pictures import encode, picture, write_tree
from tests.tiny import PLAIN, ingest_config, tiny_config

FAMILY = FAMILIES["classification"]
SQUARES = {**PLAIN, "random_crop": True, "mirror": True, "cutout_px": 4, "colour_shift": 0.1}
PICTURES = {**PLAIN, "crop_from": "picture", "crop_area": [0.2, 1.0], "crop_aspect": 1.333, "mirror": True}
WARPED = {**PICTURES, "rotation_deg": 20, "mixup_alpha": 0.4}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """90 JPEGs and PNGs of different sizes, in blocks of a few rows."""
    folder = tmp_path_factory.mktemp("photos")
    files = {}
    for i in range(90):
        image = picture(i, 60 + i % 7 * 9, 50 + i % 5 * 11)
        kind = "PNG" if i % 9 == 0 else "JPEG"
        files[f"{'ab'[i % 2]}/{i}.{kind.lower()}"] = encode(image, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "ROW_GROUP_ROWS", 5)
        ingest(
            write_tree(folder / "source", files), name="photos", family="classification", store=folder,
            config=ingest_config(),
        )  # fmt: skip
    return Dataset.open(folder / "photos")


def config_of(augment: dict[str, Any], **train: Any) -> Any:
    changes = {f"train__{name}": value for name, value in {"batch_size": 8, "epochs": 2, **train}.items()}
    changes |= {f"augment__{name}": value for name, value in augment.items()}
    return tiny_config("classification", **changes)


def assert_same_batches(one: Any, other: Any) -> int:
    num = 0
    for a, b in zip(one, other, strict=True):
        assert (a.indices == b.indices).all()
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        num += 1
    return num


@pytest.mark.parametrize("augment", [SQUARES, PICTURES, WARPED], ids=["squares", "pictures", "warped"])
@pytest.mark.parametrize("data_gb", [1.0, 2e-5], ids=["all", "window"])
def test_streaming_gives_the_resident_batches(
    photos: Dataset, augment: dict[str, Any], data_gb: float
) -> None:
    config = config_of(augment, data_gb=data_gb)
    plan = BatchPlan.of(config.train, layout_of(photos, "train"), 0, 1)
    assert (plan.window < plan.num_samples) == (data_gb < 1)
    held = resident(FAMILY, decode_here(FAMILY, photos, "train", config), photos.info, config)
    streamed = streamed_here(FAMILY, photos, "train", config)
    num = assert_same_batches(held(training_jobs(plan, 0)), streamed(training_jobs(plan, 0)))
    assert num == plan.num_steps >= 8
    later = plan.num_steps - 3
    assert_same_batches(
        islice(held(training_jobs(plan, 0)), later, None), streamed(training_jobs(plan, later))
    )


@pytest.mark.parametrize("augment", [SQUARES, PICTURES], ids=["squares", "pictures"])
def test_validation_sees_the_same_plain_pictures(photos: Dataset, augment: dict[str, Any]) -> None:
    config = config_of(augment)
    num = photos.info.num_images("val")
    held = resident(FAMILY, decode_here(FAMILY, photos, "val", config), photos.info, config)
    streamed = streamed_here(FAMILY, photos, "val", config)
    assert assert_same_batches(held(plain_jobs(np.arange(num), 4)), streamed(plain_jobs(np.arange(num), 4)))


def test_auto_streams_what_does_not_fit(photos: Dataset) -> None:
    num = photos.info.num_images("train") + photos.info.num_images("val")
    decoded = num * (16 * 16 * 3 + 8) / 1e9
    assert choose_mode(FAMILY, photos, config_of(SQUARES, data_gb=decoded * 1.01)) == "resident"
    assert choose_mode(FAMILY, photos, config_of(SQUARES, data_gb=decoded * 0.99)) == "streaming"
    assert choose_mode(FAMILY, photos, config_of(SQUARES, data_gb=9, data_mode="streaming")) == "streaming"


def test_what_is_under_way_fits_into_memory(photos: Dataset) -> None:
    layout = layout_of(photos, "train")

    def depth(gb: float) -> int:
        return stream_depth(FAMILY, photos, config_of(PICTURES, data_gb=gb, augment_workers=4), layout)

    depths = [depth(gb) for gb in (6e-4, 1.2e-3, 1.0)]
    assert 1 <= depths[0] < depths[1] <= depths[2] == 12
    with pytest.raises(ValueError, match=r"\(=1e-05\) holds no batch of 8 pictures: give at least") as raised:
        depth(1e-5)
    advised = re.search(r"at least ([\d.e-]+), or", str(raised.value))
    assert advised and depth(float(advised[1])) == 1


@given(st.floats(1e-9, 1e9))
def test_rounding_up_never_falls_short(value: float) -> None:
    assert value * (1 - 1e-12) <= round_up(value) <= value * 1.1001


def test_crops_of_pictures_need_an_area() -> None:
    with pytest.raises(ValueError, match=r"crop_from \(=picture\) cuts random resized crops: set crop_area"):
        config_of({**PICTURES, "crop_area": [1, 1]})


def test_a_run_that_streams_gives_the_weights_of_one_that_does_not(photos: Dataset, tmp_path: Path) -> None:
    from tasks.train import train
    from tests.test_families import assert_equal_weights

    for mode in ("resident", "streaming"):
        config = config_of(PICTURES, data_mode=mode, data_gb=1e-3)
        train(
            "classification",
            config,
            photos,
            folder=tmp_path / mode,
            key=mode,
            digest="",
            executor="in_process",
        )
    assert_equal_weights(tmp_path / "resident", tmp_path / "streaming")
