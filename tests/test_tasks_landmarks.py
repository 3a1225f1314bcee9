"""The family landmarks from a source to a report: what prediction gives is what evaluation measured."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.dataset import Dataset
from data.ingest import ingest
from tasks.landmarkevaluate import evaluate, normaliser
from tasks.landmarkmetrics import lengths, nan_mean, point_errors
from tasks.landmarkpredict import LandmarkPredictor
from tasks.modelfile import load_model
from tasks.train import train
from tests.datasets import DATASETS
from tests.tiny import ingest_config, tiny_config, tiny_dataset

REAL = DATASETS / "facial_keypoints_112.tar"


def test_prediction_gives_what_evaluation_measured(tmp_path: Path) -> None:
    dataset = tiny_dataset("landmarks", tmp_path / "store")
    config = tiny_config("landmarks", train__epochs=4.0, optim__lr=0.01)
    train("landmarks", config, dataset, folder=tmp_path / "run", key="run", digest="", executor="in_process")
    model = tmp_path / "run" / "model"
    report = evaluate([model], dataset, config=config.evaluate)
    report.write(tmp_path / "report")
    written = pq.read_table(tmp_path / "report" / "predictions.parquet")
    blobs = dataset.table("test", ["image"])["image"].to_pylist()
    table = LandmarkPredictor(load_model(model)).predict([b"no picture", *blobs])
    assert table["error"][0].as_py() and table["points_xy"][0].as_py() is None
    got, wanted = table["points_xy"].to_pylist()[1:], written["points_xy"].to_pylist()
    np.testing.assert_allclose(np.array(got), np.array(wanted), atol=1e-4)
    own = np.array(written["nme"].to_pylist(), float)
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["nme"] == pytest.approx(own.mean())
    assert {file.name for file in (tmp_path / "report").glob("*.png")} == {
        "cumulative.png", "per_point.png", "pictures.png",
    }  # fmt: skip


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is not there")
def test_real_faces_are_found_better_than_by_the_mean_shape(tmp_path: Path) -> None:
    ingest(REAL, name="keypoints", family="landmarks", store=tmp_path, config=ingest_config())
    dataset = Dataset.open(tmp_path / "keypoints")
    config = tiny_config(
        "landmarks", input__input_px=32, augment__mirror_pairs=[], evaluate__eye_corners=None,
        optim__name="adamw", optim__lr=3e-3, optim__bias_lr=3e-3, train__epochs=12.0,
    )  # fmt: skip
    train("landmarks", config, dataset, folder=tmp_path / "run", key="run", digest="", executor="in_process")
    report = evaluate([tmp_path / "run" / "model"], dataset, config=config.evaluate)
    report.write(tmp_path / "report")
    assert report.about["normalised_by"] == "distance of the outer eye corners"
    stored = dataset.table("train", ["points_xy"])["points_xy"].to_pylist()
    mean = np.array(stored).reshape(len(stored), -1, 2).mean(0)
    by, eyes = normaliser(dataset.info, config.evaluate)
    length = lengths(report.points_xy, report.given, np.ones((len(report.ids), 2)), by, eyes)
    guess = point_errors(
        np.broadcast_to(mean, report.points_xy.shape), report.points_xy, report.given, length
    )
    print(report.metrics, nan_mean(guess, 1).mean())  # noqa: T201
    assert report.metrics["nme"] < 0.7 * nan_mean(guess, 1).mean()
