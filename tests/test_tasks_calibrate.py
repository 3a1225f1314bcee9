"""Temperatures: the likeliest one is found, it changes no answer, and what predicts uses it."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.datasets import load_digits

from data.dataset import Dataset
from tasks.calibrate import calibrate, fit_on_validation, fit_temperature
from tasks.ensemble import combine
from tasks.evaluate import evaluate
from tasks.metrics import negative_log_likelihood
from tasks.modelfile import load_card
from tasks.predict import load_predictor
from tasks.settings import EvaluateConfig
from tasks.temperature import GREATEST_T, LEAST_T, with_temperature
from tests.handmade import one_thread, png, write_dataset, write_model

CPU = torch.device("cpu")
CLASSES = [str(digit) for digit in range(10)]
CONFIG = EvaluateConfig.parse(
    {"views": ["single"], "registered_view": "mirror", "batch_size": 32, "num_worst": 3}, "evaluate"
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Digits, labelled as a random network sees them, three in ten by chance."""
    pictures = [(picture * 15).astype(np.uint8) for picture in load_digits().images[:160]]
    model = load_predictor(make_model(tmp_path_factory.mktemp("model")), CPU)
    images = torch.from_numpy(np.array(pictures)[:, None])
    seen = model.uncalibrated(images, "mirror").argmax(1).numpy()
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(160) < 0.3, rng.integers(0, 10, 160), seen).tolist()
    return write_dataset(tmp_path_factory.mktemp("store") / "digits", pictures, labels, CLASSES, num_val=100)


def make_model(folder: Path, seed: int = 1, view: str = "mirror") -> Path:
    """A random network that is sure of itself."""
    return write_model(folder, CLASSES, seed=seed, view=view, sharpness=10)


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    return with_temperature(torch.from_numpy(probabilities), temperature).numpy()


def drawn(seed: int, num_samples: int = 400, num_classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn by their softmax: calibrated by construction."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_samples, num_classes)) * 2
    labels = np.array([rng.choice(num_classes, p=row) for row in softmax(logits, axis=1)])
    return logits, labels


logits = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=6)
temperatures = st.floats(LEAST_T, GREATEST_T)


@given(logits, temperatures)
def test_one_networks_probabilities_are_those_of_its_logits_divided(
    row: list[float], temperature: float
) -> None:
    values = np.array([row], np.float64)
    ours = scaled(softmax(values, axis=1).astype(np.float32), temperature)
    np.testing.assert_allclose(ours, softmax(values / temperature, axis=1), atol=1e-5)


@given(logits, st.integers(0, 5), temperatures)
def test_no_temperature_changes_the_most_probable_class(
    row: list[float], place: int, temperature: float
) -> None:
    """Nor where two probabilities differ by one unit of the last place, or not at all."""
    base = softmax(np.array(row, np.float64)).astype(np.float32)
    rows = np.stack([base, base, base])
    second = place % len(row)
    rows[1, second] = rows[1].max()
    rows[2, second] = np.nextafter(rows[2].max(), np.float32(2))
    changed = scaled(rows, temperature)
    assert changed.argmax(1).tolist() == rows.argmax(1).tolist()


def test_probabilities_of_zero_and_one_stay_finite() -> None:
    rows = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    for temperature in (LEAST_T, 1.0, GREATEST_T):
        changed = scaled(rows, temperature)
        assert np.isfinite(changed).all()
        assert changed.argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize(("seed", "true"), [(0, 3.0), (1, 0.5), (2, 1.0)])
def test_the_temperature_is_the_likeliest_one_of_the_logits(seed: int, true: float) -> None:
    logits, labels = drawn(seed, num_samples=4000)
    given = logits * true  # too sure by that factor

    def nll(temperature: float) -> float:
        return -log_softmax(given / temperature, axis=1)[np.arange(len(labels)), labels].mean()

    found, note = fit_temperature(softmax(given, axis=1).astype(np.float32), labels)
    assert note == ""
    assert found == pytest.approx(minimize_scalar(nll, (0.5, 2), options={"xtol": 1e-10}).x, rel=1e-4)
    assert found == pytest.approx(true, rel=0.1)


@given(st.integers(0, 1000), st.floats(0.2, 5))
def test_the_images_that_it_is_fitted_to_never_become_less_likely(seed: int, factor: float) -> None:
    logits, labels = drawn(seed, num_samples=60)
    probabilities = softmax(logits * factor, axis=1).astype(np.float32)
    found, _ = fit_temperature(probabilities, labels)
    before = negative_log_likelihood(probabilities, labels)
    assert negative_log_likelihood(scaled(probabilities, found), labels) <= before + 1e-6


def test_a_split_without_mistakes_leaves_the_temperature_at_one_and_says_so() -> None:
    for num_images in (1, 50):
        probabilities = np.tile(np.array([[0.7, 0.3]], np.float32), (num_images, 1))
        found, note = fit_temperature(probabilities, np.zeros(num_images, np.int64))
        assert found == 1
        assert "none is mistaken" in note


def test_a_temperature_out_of_range_is_bounded_and_said() -> None:
    surely_wrong = np.tile(np.array([[0.99, 0.01]], np.float32), (5, 1))
    assert fit_temperature(surely_wrong, np.ones(5, np.int64)) == (
        GREATEST_T,
        ": the greatest that is allowed",
    )
    timid = np.tile(np.array([[0.501, 0.499]], np.float32), (50, 1))
    labels = np.array([1] + [0] * 49)
    assert fit_temperature(timid, labels) == (LEAST_T, ": the least that is allowed")


def test_what_a_diverged_network_gives_is_named_not_left_to_a_solver() -> None:
    probabilities = np.tile(np.array([[0.7, 0.3]], np.float32), (4, 1))
    probabilities[2] = np.nan
    with pytest.raises(ValueError, match=r"1 of 4 rows are no probabilities; the first is row 2.*diverged"):
        fit_temperature(probabilities, np.array([0, 1, 0, 0]))


def test_the_card_keeps_the_temperature_and_prediction_uses_it(tmp_path: Path, dataset: Dataset) -> None:
    folder = make_model(tmp_path)
    before, plain = load_card(folder), load_predictor(folder, CPU)
    found = calibrate(folder, dataset, device=CPU)
    after, predictor = load_card(folder), load_predictor(folder, CPU)
    assert 1.2 < found.temperature < GREATEST_T
    assert found.basis == "100 validation pictures of digits, view mirror"
    assert after.temperature == found.temperature
    assert after == before.model_copy(update={"temperature": found.temperature, "calibrated_on": found.basis})
    blobs = [png(np.full((8, 8), level, np.uint8)) for level in (0, 90, 250)]
    expected = scaled(
        np.array(plain.predict(blobs)["probabilities"].to_pylist(), np.float32), found.temperature
    )
    rows = predictor.predict(blobs).to_pylist()
    np.testing.assert_allclose([row["probabilities"] for row in rows], expected, atol=1e-6)
    assert [row["label"] for row in rows] == plain.predict(blobs)["label"].to_pylist()
    # another view was not calibrated
    assert predictor.predict(blobs, "single").equals(plain.predict(blobs, "single"))


def test_a_calibrated_model_is_left_as_it_is(tmp_path: Path, dataset: Dataset) -> None:
    folder = make_model(tmp_path)
    first = calibrate(folder, dataset, device=CPU)
    written = (folder / "model.json").stat().st_mtime_ns
    assert calibrate(folder, dataset, device=CPU) == first
    assert (folder / "model.json").stat().st_mtime_ns == written


def test_without_validation_images_the_temperature_is_one_and_the_card_says_why(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    pictures = [np.zeros((8, 8), np.uint8)] * 3
    alone = write_dataset(tmp_path / "alone", pictures, [0, 1, 2], CLASSES)
    assert calibrate(folder, alone, device=CPU).temperature == 1
    assert load_card(folder).calibrated_on == "nothing: alone has no validation pictures"


def test_a_model_of_before_there_were_temperatures_predicts_as_it_did(tmp_path: Path) -> None:
    folder = write_model(tmp_path, CLASSES)
    values = json.loads((folder / "model.json").read_text())
    assert values.pop("temperature") == 1
    assert values.pop("calibrated_on") == ""
    (folder / "model.json").write_text(json.dumps(values))
    predictor = load_predictor(folder, CPU)
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert torch.equal(predictor.probabilities(images), predictor.uncalibrated(images, "single"))


def test_an_ensemble_gets_a_temperature_of_its_own(tmp_path: Path, dataset: Dataset) -> None:
    """Whether it is evaluated from its members' folders or written as one model: the members' ones do not hold."""
    folders = [make_model(tmp_path / str(seed), seed) for seed in (1, 2)]
    predictors = [load_predictor(folder, CPU) for folder in folders]
    expected = fit_on_validation(predictors, dataset, "mirror").temperature
    alone = [calibrate(folder, dataset, device=CPU).temperature for folder in folders]
    assert expected != pytest.approx(alone[0], rel=1e-3)
    together = evaluate(folders, dataset, config=CONFIG, device=CPU)
    assert together.metrics["temperature"] == pytest.approx(expected, rel=1e-5)
    assert combine(folders, tmp_path / "pair").temperature == 1
    assert load_card(tmp_path / "pair").calibrated_on == ""
    assert calibrate(tmp_path / "pair", dataset, device=CPU).temperature == pytest.approx(expected, rel=1e-5)
    as_one = evaluate([tmp_path / "pair"], dataset, config=CONFIG, device=CPU)
    np.testing.assert_allclose(as_one.probabilities, together.probabilities, atol=1e-5)


def test_a_report_measures_the_model_with_its_temperature_and_without(
    tmp_path: Path, dataset: Dataset
) -> None:
    folder = make_model(tmp_path)
    plain = evaluate([folder], dataset, config=CONFIG, device=CPU)
    calibrate(folder, dataset, device=CPU)
    report = evaluate([folder], dataset, config=CONFIG, device=CPU)
    for name in ("nll", "brier", "ece"):
        assert report.metrics[f"{name}_uncalibrated"] == pytest.approx(plain.metrics[name], rel=1e-5)
        assert report.metrics[f"single.{name}"] == pytest.approx(plain.metrics[f"single.{name}"], rel=1e-5)
    assert report.metrics["nll"] < plain.metrics["nll"]
    assert report.metrics["accuracy"] == plain.metrics["accuracy"]
    assert report.about["temperature_fitted_to"] == "100 validation pictures of digits, view mirror"
    assert plain.about["temperature_fitted_to"] == "nothing: an uncalibrated model"


def test_another_view_than_the_models_own_is_not_calibrated(tmp_path: Path, dataset: Dataset) -> None:
    folder = make_model(tmp_path, view="single")
    calibrate(folder, dataset, device=CPU)
    report = evaluate([folder], dataset, config=CONFIG, device=CPU)
    assert report.metrics["temperature"] == 1
    assert "calibrated for the view single" in str(report.about["temperature_fitted_to"])


def test_of_several_models_progress_counts_the_validation_images_too(
    tmp_path: Path, dataset: Dataset
) -> None:
    folders = [write_model(tmp_path / str(seed), CLASSES, seed=seed) for seed in (1, 2)]
    heard: list[tuple[int, int]] = []
    evaluate(folders, dataset, config=CONFIG, device=CPU, on_progress=lambda *now: heard.append(now))
    assert heard == sorted(heard)
    assert heard[-1] == (100 + 2 * 60, 100 + 2 * 60)
