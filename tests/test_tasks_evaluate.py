"""Evaluation: it measures what prediction gives, image by image, and its report reconciles with itself."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import tasks.outputs
import tasks.report
from data.dataset import Dataset
from data.decode import decode_many
from tasks.ensemble import combine
from tasks.evaluate import evaluate, interval_of
from tasks.memory import why_not_measurable
from tasks.metrics import summarise
from tasks.outputs import piece_size
from tasks.predict import load_predictor
from tasks.report import Report
from tasks.settings import EvaluateConfig
from tests.handmade import one_thread, png, write_dataset, write_model

CPU = torch.device("cpu")
CLASSES = [str(digit) for digit in range(10)]
NUM_IMAGES = 90


def configure(**changes: Any) -> EvaluateConfig:
    values: dict[str, Any] = {
        "views": ["single", "mirror", "ten_crop"], "registered_view": "mirror", "batch_size": 16, "num_worst": 5,
    }  # fmt: skip
    return EvaluateConfig.parse(values | changes, "evaluate")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def digits() -> tuple[list[np.ndarray], list[int]]:
    """Real handwriting: 8x8 grey pictures."""
    source = load_digits()
    pictures = [(picture * 15).astype(np.uint8) for picture in source.images[:NUM_IMAGES]]
    return pictures, source.target[:NUM_IMAGES].tolist()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, digits: tuple[list[np.ndarray], list[int]]) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("store") / "digits", *digits, CLASSES, num_shards=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), CLASSES, view="mirror", sharpness=30)


@pytest.fixture(scope="module")
def report(folder: Path, dataset: Dataset) -> Report:
    return evaluate([folder], dataset, config=configure(), device=CPU)


@pytest.fixture(scope="module")
def written(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    report.write(folder)
    return folder


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as source:
        return list(csv.DictReader(source))


def test_evaluation_measures_what_prediction_gives(
    report: Report, folder: Path, dataset: Dataset, digits: tuple[list[np.ndarray], list[int]]
) -> None:
    rows = load_predictor(folder, CPU).predict([png(picture) for picture in digits[0]]).to_pylist()
    predicted = np.array([row["probabilities"] for row in rows], np.float32)
    np.testing.assert_allclose(report.probabilities, predicted, atol=1e-5)
    assert [CLASSES[i] for i in report.predicted] == [row["label"] for row in rows]
    assert report.labels.tolist() == digits[1]
    assert report.ids == dataset.table("test", ["id"])["id"].to_pylist()


def test_every_view_is_measured_and_the_registered_one_twice(
    report: Report, folder: Path, dataset: Dataset
) -> None:
    predictor = load_predictor(folder, CPU)
    images = torch.from_numpy(decode_many(dataset.table("test")["image"].to_pylist(), 8, 1, "crop"))
    for view in ("single", "mirror", "ten_crop"):
        expected = summarise(predictor.probabilities(images, view).numpy(), report.labels)
        measured = {name: report.metrics[f"{view}.{name}"] for name in expected}
        assert measured == pytest.approx(expected, abs=1e-5)
        assert report.metrics[f"{view}.images_per_s"] > 0
    mirror = {name: value for name, value in report.metrics.items() if name.startswith("mirror.")}
    assert mirror == {name: report.metrics[name.removeprefix("mirror.")] for name in mirror}
    others = {name for name in report.metrics if "." not in name} - {
        name.removeprefix("mirror.") for name in mirror
    }
    assert others == {
        "num_images", "temperature", "nll_uncalibrated", "brier_uncalibrated", "ece_uncalibrated"
    }  # fmt: skip
    assert [row["view"] for row in report.views] == ["single", "mirror", "ten_crop"]


@pytest.mark.skipif(bool(why_not_measurable()), reason=why_not_measurable() or "measurable")
def test_memory_grows_with_the_batch_and_not_with_the_view(
    tmp_path: Path, digits: tuple[list[np.ndarray], list[int]]
) -> None:
    pictures = [np.kron(picture, np.ones((8, 8), np.uint8)) for picture in digits[0][:40]]
    dataset = write_dataset(tmp_path / "large", pictures, digits[1][:40], CLASSES)
    folder = write_model(tmp_path / "model", CLASSES, stored_px=64, crop_px=64)

    def memory_mb(batch_size: int) -> dict[str, float]:
        config = configure(views=["single", "mirror"], registered_view="single", batch_size=batch_size)
        metrics = evaluate([folder], dataset, config=config, device=CPU).metrics
        return {view: metrics[f"{view}.memory_mb"] for view in ("single", "mirror")}

    small, large = memory_mb(8), memory_mb(40)
    block_mb = 16 * 64 * 64 * 4 / 2**20  # the first layer's output for one image
    assert 2 * block_mb * 40 < large["single"] < 12 * block_mb * 40
    assert 2.5 < large["single"] / small["single"] < 8
    assert large["mirror"] == pytest.approx(large["single"], rel=0.4)


def test_the_registered_view_is_measured_even_where_it_is_not_listed(folder: Path, dataset: Dataset) -> None:
    config = configure(views=["single"], registered_view="mirror_shift")
    measured = evaluate([folder], dataset, config=config, device=CPU)
    assert measured.view_names == ("single", "mirror_shift")
    assert measured.metrics["accuracy"] == measured.metrics["mirror_shift.accuracy"]


def test_an_ensemble_averages_the_outputs_of_all_networks(tmp_path: Path, dataset: Dataset) -> None:
    """Members with different preprocessing; a folder of two networks counts twice."""
    folders = [write_model(tmp_path / str(seed), CLASSES, seed=seed, sharpness=30) for seed in (1, 2)]
    combine(folders, tmp_path / "pair")
    other = write_model(tmp_path / "other", CLASSES, seed=3, stored_px=12, crop_px=10, sharpness=30)
    alone = [evaluate([model], dataset, config=configure(), device=CPU) for model in (*folders, other)]
    together = evaluate([tmp_path / "pair", other], dataset, config=configure(), device=CPU)
    mean = np.mean([report.probabilities for report in alone], axis=0)
    np.testing.assert_allclose(together.probabilities, mean, atol=1e-5)
    assert (together.about["num_models"], together.about["num_networks"]) == (2, 3)
    assert together.about["models"] == f"{tmp_path / 'pair'}, {other}"
    assert together.about["runs"] == "run-1, run-2, run-3"


def test_images_are_decoded_once_for_all_views_and_models_that_agree_on_how(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[int] = Counter()

    def counting(blobs: list[bytes], side_px: int, *rest: Any) -> np.ndarray:
        decoded[side_px] += len(blobs)
        return decode_many(blobs, side_px, *rest)

    monkeypatch.setattr(tasks.outputs, "decode_many", counting)
    folders = [
        write_model(tmp_path / "a", CLASSES, seed=1),
        write_model(tmp_path / "b", CLASSES, seed=2, pad_px=2),
        write_model(tmp_path / "c", CLASSES, seed=3, stored_px=12),
    ]
    evaluate(folders, dataset, config=configure(), device=CPU)
    assert decoded == {8: NUM_IMAGES, 12: NUM_IMAGES}


def test_pieces_of_the_split_stay_below_the_memory_limit(tmp_path: Path) -> None:
    large = write_model(tmp_path / "large", CLASSES, channels=3, stored_px=1000, crop_px=224)
    predictor = load_predictor(large, CPU, batch_size=16)
    assert 1 <= piece_size([predictor]) * 3 * 1000**2 <= tasks.outputs.PIECE_MB * 2**20
    small = load_predictor(write_model(tmp_path / "small", CLASSES), CPU, batch_size=100)
    assert piece_size([small]) == 1000  # full passes


def test_any_size_of_piece_and_batch_gives_the_same_report(
    report: Report, folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for piece_images, batch_size in [(7, 1), (1000, 1000), (32, 5)]:
        monkeypatch.setattr(tasks.outputs, "PIECE_IMAGES", piece_images)
        again = evaluate([folder], dataset, config=configure(batch_size=batch_size), device=CPU)
        np.testing.assert_allclose(again.probabilities, report.probabilities, atol=1e-5)
        assert np.array_equal(again.confusion, report.confusion)
        assert again.ids == report.ids


def test_progress_counts_each_image_once_for_each_view(folder: Path, dataset: Dataset) -> None:
    heard: list[tuple[int, int]] = []
    evaluate([folder], dataset, config=configure(), device=CPU, on_progress=lambda *now: heard.append(now))
    assert heard == sorted(heard)
    assert heard[-1] == (3 * NUM_IMAGES, 3 * NUM_IMAGES)


def test_the_worst_mistakes_are_the_most_confident(report: Report, dataset: Dataset) -> None:
    wrong = np.flatnonzero(report.predicted != report.labels)
    assert len(report.worst) == 5
    assert set(report.worst) <= set(wrong)
    others = np.setdiff1d(wrong, report.worst)
    assert report.confidence[report.worst].min() >= report.confidence[others].max()
    assert (np.diff(report.confidence[report.worst]) <= 0).all()
    blobs = dataset.table("test")["image"].to_pylist()
    expected = decode_many([blobs[i] for i in report.worst], 8, 1, "crop")
    assert np.array_equal(report.worst_pictures, expected)


def test_pictures_of_mistakes_are_reduced_to_thumbnails(
    tmp_path: Path, digits: tuple[list[np.ndarray], list[int]]
) -> None:
    pictures = [np.kron(picture, np.ones((30, 30), np.uint8)) for picture in digits[0][:12]]
    dataset = write_dataset(tmp_path / "big", pictures, digits[1][:12], CLASSES)
    folder = write_model(tmp_path / "model", CLASSES, stored_px=240, crop_px=32, sharpness=30)
    measured = evaluate([folder], dataset, config=configure(views=["single"]), device=CPU)
    assert measured.worst_pictures.shape[1:] == (1, 160, 160)
    assert len(measured.worst_pictures) == len(measured.worst) > 0


def test_a_perfect_model_has_no_mistakes_to_show(tmp_path: Path, dataset: Dataset, folder: Path) -> None:
    predicted = evaluate([folder], dataset, config=configure(), device=CPU).predicted
    blobs = dataset.table("test")["image"].to_pylist()
    pictures = [decode_many([blob], 8, 1, "crop")[0, 0] for blob in blobs]
    agreeing = write_dataset(tmp_path / "agreeing", pictures, predicted.tolist(), CLASSES)
    measured = evaluate([folder], agreeing, config=configure(), device=CPU)
    assert measured.metrics["accuracy"] == 1
    assert measured.worst_pictures.shape[0] == 0
    measured.write(tmp_path / "evaluation")
    assert (tmp_path / "evaluation" / "worst_mistakes.png").is_file()


def test_written_tables_reconcile_with_the_metrics(report: Report, written: Path) -> None:
    metrics = json.loads((written / "metrics.json").read_text())
    assert metrics == report.metrics
    pairs = [(row["actual"], row["predicted"]) for row in rows_of(written / "confusion.csv")]
    assert sum(actual == predicted for actual, predicted in pairs) / len(pairs) == metrics["accuracy"]
    classes = rows_of(written / "per_class.csv")
    assert [row["class"] for row in classes] == CLASSES
    for row in classes:
        support = sum(actual == row["class"] for actual, _ in pairs)
        right = sum(pair == (row["class"], row["class"]) for pair in pairs)
        assert int(row["support"]) == support
        assert float(row["recall"]) == pytest.approx(right / support, abs=1e-5)
    bins = rows_of(written / "reliability.csv")
    full = [row for row in bins if int(row["count"])]
    error = sum(int(r["count"]) * abs(float(r["accuracy"]) - float(r["confidence"])) for r in full) / len(
        pairs
    )
    assert error == pytest.approx(metrics["ece"], abs=1e-5)
    assert all(row["accuracy"] == "" for row in bins if not int(row["count"]))
    assert sum(int(row["count_uncalibrated"]) for row in bins) == len(pairs)
    slices = rows_of(written / "slices.csv")
    assert {row["name"]: row["num_images"] for row in slices if row["kind"] == "class"} == {
        row["class"]: row["support"] for row in classes if int(row["support"])
    }
    assert [row["view"] for row in rows_of(written / "views.csv")] == ["single", "mirror", "ten_crop"]


def test_written_predictions_are_the_reports(report: Report, written: Path) -> None:
    table = pq.read_table(written / "predictions.parquet")
    assert table.column_names == ["id", "group", "label", "predicted", "confidence", "probabilities"]
    assert table["id"].to_pylist() == report.ids
    assert table["group"].to_pylist() == [str(place) for place in range(NUM_IMAGES)]
    assert table["label"].to_pylist() == [CLASSES[i] for i in report.labels]
    assert np.array_equal(np.array(table["probabilities"].to_pylist(), np.float32), report.probabilities)


def test_written_figures_are_pictures(written: Path) -> None:
    for name in ("confusion", "per_class", "reliability", "slices", "worst_mistakes"):
        with Image.open(written / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10  # something is drawn


def test_the_page_holds_the_numbers_and_every_figure(report: Report, written: Path, tmp_path: Path) -> None:
    page = (written / "report.html").read_text()
    assert f"{report.metrics['accuracy']:.2%}" in page
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page  # it needs no network
    names = ("<script>", *CLASSES[1:])
    replace(report, classes=names).write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_about_says_what_was_measured(written: Path, folder: Path) -> None:
    about = json.loads((written / "about.json").read_text())
    assert (about["models"], about["runs"]) == (str(folder), "run-0")
    assert (about["dataset"], about["split"], about["num_images"]) == ("digits", "test", NUM_IMAGES)
    assert (about["precision"], about["registered_view"], about["batch_size"]) == ("float32", "mirror", 16)
    assert "without reading and decoding" in about["images_per_s"]
    assert about["accuracy_interval"] == "Wilson, 95%, as if each image stood for itself"


def test_images_of_one_group_are_told_where_the_interval_does_not_know_of_them() -> None:
    assert interval_of(["a", "b", "a", "c"]).startswith("Wilson, 95%")
    assert "2 share a group with others (near-duplicates, a person)" in interval_of(["a", "b", "a", "c"])


def test_a_report_that_was_cut_off_has_no_metrics(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.write(tmp_path)

    def full_disk(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(tasks.report, "save_figure", full_disk)
    with pytest.raises(OSError, match="no space"):
        report.write(tmp_path)
    assert not (tmp_path / "metrics.json").exists()


def test_a_model_of_other_classes_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    folder = write_model(tmp_path / "model", ["ants", "bees"])
    with pytest.raises(
        ValueError, match=r"the model alone has 2 \(ants, bees\), the dataset alone .* trained on 'handmade'"
    ):
        evaluate([folder], dataset, config=configure(), device=CPU)


def test_models_of_different_classes_are_no_ensemble(tmp_path: Path, folder: Path, dataset: Dataset) -> None:
    other = write_model(tmp_path / "other", CLASSES[::-1])
    with pytest.raises(ValueError, match="models of an ensemble must have the same classes"):
        evaluate([folder, other], dataset, config=configure(), device=CPU)


def test_a_split_without_images_is_refused(folder: Path, dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="dataset 'digits' has no val pictures"):
        evaluate([folder], dataset, split="val", config=configure(), device=CPU)


def test_no_model_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="at least one model folder"):
        evaluate([], dataset, config=configure(), device=CPU)
