"""Prediction: what is averaged, what a neighbour may change, and what an unreadable image does."""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks.predict
from data.decode import decode_many
from tasks.ensemble import combine
from tasks.predict import PREDICTION_SCHEMA, Predictor, load_predictor
from tasks.settings import ViewName
from tasks.views import VIEWS
from tests.handmade import one_thread, png, write_model

CLASSES = [f"class {i}" for i in range(7)]
SHARPNESS = 20.0  # of the random networks: their outputs spread from 1e-6 to 0.99, as a trained network's do
CPU = torch.device("cpu")


def pictures(num: int, side_px: int = 8, channels: int = 1) -> np.ndarray:
    shape = (num, side_px, side_px) if channels == 1 else (num, side_px, side_px, 3)
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


def tensors(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), CLASSES, view="ten_crop", sharpness=SHARPNESS)


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return load_predictor(folder, CPU)


@pytest.mark.parametrize("view", [None, *VIEWS])
def test_probabilities_are_the_weighted_mean_of_each_crops_softmax(
    predictor: Predictor, view: ViewName | None
) -> None:
    images = tensors(pictures(5))
    ours = predictor.probabilities(images, view)
    (member,) = predictor.members
    for i in range(len(images)):
        crops, weights = VIEWS[view or "ten_crop"](images[i : i + 1], predictor.card.preprocessing)
        with torch.inference_mode():
            softmax = torch.stack([member(crop).double().softmax(1)[0] for crop in crops])
        torch.testing.assert_close(ours[i].double(), weights.double() @ softmax, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(ours.sum(1), torch.ones(5))


@pytest.mark.parametrize(
    ("architecture", "sharpness"), [("resnet8_cifar", 30.0), ("lenet5", 300.0), ("airnet_narrow", 300.0)]
)
def test_an_images_probabilities_do_not_depend_on_its_batch_beyond_rounding(
    tmp_path: Path, architecture: str, sharpness: float
) -> None:
    write_model(
        tmp_path, CLASSES, architecture=architecture, channels=3, stored_px=20, crop_px=20, view="mirror",
        sharpness=sharpness,
    )  # fmt: skip
    images = tensors(pictures(40, 20, 3))
    together = load_predictor(tmp_path, CPU, batch_size=1000).probabilities(images)
    assert together.max() > 0.5  # logits far apart, where rounding shows most
    for batch_size in (1, 6, 33):
        apart = load_predictor(tmp_path, CPU, batch_size=batch_size).probabilities(images)
        torch.testing.assert_close(apart, together, atol=1e-5, rtol=0)
        assert torch.equal(apart.argmax(1), together.argmax(1))


def test_an_ensemble_averages_outputs_not_weights(tmp_path: Path) -> None:
    folders = [
        write_model(tmp_path / str(seed), CLASSES, seed=seed, sharpness=SHARPNESS) for seed in (1, 2, 3)
    ]
    combine(folders, tmp_path / "all")
    images = tensors(pictures(6))
    outputs = torch.stack([load_predictor(folder, CPU).probabilities(images) for folder in folders])
    torch.testing.assert_close(load_predictor(tmp_path / "all", CPU).probabilities(images), outputs.mean(0))


def test_predicting_files_equals_predicting_what_training_decoded(predictor: Predictor) -> None:
    photos = resources.files("sklearn.datasets.images")  # 640 x 427: JPEGs that are decoded at a fraction
    blobs = [(photos / name).read_bytes() for name in ("china.jpg", "flower.jpg")]
    blobs += [png(picture) for picture in pictures(7, 13)]
    decoded = torch.from_numpy(decode_many(blobs, 8, 1, "crop"))
    expected = predictor.probabilities(decoded)
    table = predictor.predict(blobs)
    assert table.schema == PREDICTION_SCHEMA
    assert np.array_equal(np.array(table["probabilities"].to_pylist(), np.float32), expected.numpy())
    assert table["label"].to_pylist() == [CLASSES[i] for i in expected.argmax(1).tolist()]
    np.testing.assert_array_equal(table["confidence"].to_numpy(), expected.max(1).values.numpy())
    assert table["error"].to_pylist() == [None] * 9


def test_an_unreadable_image_gives_its_row_an_error_and_leaves_its_neighbours_alone(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [png(picture) for picture in pictures(4)]
    alone = predictor.predict(good).to_pylist()
    blobs = [good[0], b"", good[1], good[2], good[2][:40], b"%PDF-1.4", good[3]]
    for decoded_mb in (tasks.predict.DECODED_MB, 0):  # 0: one image at a time
        monkeypatch.setattr(tasks.predict, "DECODED_MB", decoded_mb)
        rows = predictor.predict(blobs).to_pylist()
        for row, same in zip([rows[i] for i in (0, 2, 3, 6)], alone, strict=True):
            assert (row["label"], row["error"]) == (same["label"], None)
            assert row["probabilities"] == pytest.approx(same["probabilities"], abs=1e-6)
        errors = {i: rows[i]["error"] for i in (1, 4, 5)}
        assert errors[1] == "empty file"
        assert errors[4].startswith("damaged PNG")
        assert "unsupported format PDF" in errors[5]
        assert all(rows[i][name] is None for i in errors for name in ("label", "confidence", "probabilities"))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=60) | st.just(png(pictures(1)[0])), max_size=4))
def test_any_bytes_give_a_class_or_a_reason(predictor: Predictor, blobs: list[bytes]) -> None:
    rows = predictor.predict(blobs).to_pylist()
    assert len(rows) == len(blobs)
    for row in rows:
        if row["error"] is None:
            assert row["label"] in CLASSES
            assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        else:
            assert row["error"]
            assert row["label"] is row["confidence"] is row["probabilities"] is None


def test_no_images_give_an_empty_table(predictor: Predictor) -> None:
    assert predictor.predict([]).num_rows == 0
    assert predictor.predict([]).schema == PREDICTION_SCHEMA
    assert predictor.probabilities(torch.empty(0, 1, 8, 8, dtype=torch.uint8)).shape == (0, 7)


@pytest.mark.parametrize("shape", [(2, 1, 9, 8), (2, 3, 8, 8), (1, 8, 8)])
def test_images_of_another_shape_are_refused(predictor: Predictor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \(B, 1, 8, 8\) uint8, got"):
        predictor.probabilities(torch.zeros(shape, dtype=torch.uint8))


def test_a_model_with_an_unknown_view_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="view 'fisheye' is not known; known: single"):
        load_predictor(write_model(tmp_path, CLASSES, view="fisheye"), CPU)


def test_prediction_computes_in_float32_unless_asked(folder: Path) -> None:
    images = tensors(pictures(16))
    exact = load_predictor(folder, CPU)
    short = load_predictor(folder, CPU, precision="bf16")
    assert (exact.dtype, short.dtype) == (torch.float32, torch.bfloat16)
    difference = (exact.probabilities(images) - short.probabilities(images)).abs().max()
    assert 1e-6 < difference < 0.2
    assert short.probabilities(images).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_cpu_gives(folder: Path) -> None:
    images = tensors(pictures(16))
    on_gpu = load_predictor(folder, torch.device("cuda", 0)).probabilities(images)
    torch.testing.assert_close(on_gpu, load_predictor(folder, CPU).probabilities(images), atol=1e-4, rtol=0)
