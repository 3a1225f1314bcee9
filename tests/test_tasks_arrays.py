"""The families signals and volumes: what they refuse, what cards keep, and one path for testing and predicting."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.dataset import Dataset
from data.fitting import ArrayPreprocessing
from data.npy import write_npy
from tasks.arrays import PICTURE_PX, draw_all, draw_signal, draw_volume
from tasks.evaluate import evaluate
from tasks.modelfile import load_card, save_model
from tasks.predict import Predictor, load_predictor
from tasks.preview import preview
from tasks.settings import ViewName
from tasks.train import TrainResult, train
from tests.tiny import tiny_config, tiny_dataset
from tests.waves import blob, tone, wav

FAMILIES = ("signals", "volumes")
families = pytest.mark.parametrize("family", FAMILIES)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Dataset, TrainResult]]:
    """A dataset and a trained model of each family."""
    folder = tmp_path_factory.mktemp("trained")
    found = {}
    for family in FAMILIES:
        dataset = tiny_dataset(family, folder / "store")
        # a volume's class is the axis that a box is long along: enough for a few epochs
        config = tiny_config(
            family, train__epochs=2.0, optim__name="adamw", optim__lr=3e-3, optim__bias_lr=3e-3
        )
        options: dict[str, Any] = {"key": "k", "digest": "d" * 32, "executor": "in_process"}
        found[family] = (dataset, train(family, config, dataset, folder=folder / family, **options))
    return found


@families
def test_what_only_pictures_have_is_refused(family: str) -> None:
    with pytest.raises(ValueError, match=r"train.growth \(=.*must be \[\]: only pictures are shrunk"):
        tiny_config(family, train__growth=[[8, 0.5]])
    with pytest.raises(ValueError, match=r"evaluate.views \(='ten_crop'\) must be \[single\]"):
        tiny_config(family, evaluate__views=["single", "ten_crop"])


def test_items_that_do_not_fit_the_network_are_refused() -> None:
    with pytest.raises(ValueError, match=r"input.length \(=48\) is too short for m5"):
        tiny_config("signals", model__name="m5")
    with pytest.raises(ValueError, match="voxnet needs crop_voxels of at least 11, got 10"):
        tiny_config("volumes", model__name="voxnet")


@families
def test_it_learns_and_testing_gives_what_prediction_gives(
    family: str, trained: dict[str, tuple[Dataset, TrainResult]]
) -> None:
    dataset, result = trained[family]
    report = evaluate([result.model_folder], dataset, config=tiny_config(family).evaluate, device=CPU)
    assert report.metrics["accuracy"] > 0.8  # a guess is right in a third
    rows = dataset.table("test")
    predicted = load_predictor(result.model_folder, CPU).predict(rows["image"].to_pylist())
    np.testing.assert_allclose(predicted["probabilities"].to_pylist(), report.probabilities, atol=1e-5)
    assert predicted["label"].to_pylist() == [dataset.info.classes[i] for i in report.predicted]
    assert report.ids == rows["id"].to_pylist()


@families
def test_a_report_shows_its_mistakes_as_pictures(
    family: str, trained: dict[str, tuple[Dataset, TrainResult]], tmp_path: Path
) -> None:
    dataset, result = trained[family]
    model = load_predictor(result.model_folder, CPU)
    with torch.no_grad():
        for parameter in model.members[0].parameters():
            parameter.zero_()  # says the first class of everything
    report = evaluate([_copy_of(model, tmp_path)], dataset, config=tiny_config(family).evaluate, device=CPU)
    assert report.worst_pictures.shape == (4, 1, PICTURE_PX, PICTURE_PX)
    report.write(tmp_path / "report")
    assert (tmp_path / "report" / "worst_mistakes.png").stat().st_size > 1000


def _copy_of(model: Predictor, folder: Path) -> Path:
    save_model(folder / "model", model.card, model.members)
    return folder / "model"


@families
def test_the_card_keeps_what_prediction_needs(
    family: str, trained: dict[str, tuple[Dataset, TrainResult]]
) -> None:
    dataset, result = trained[family]
    card = load_card(result.model_folder)
    wanted = card.preprocessing
    assert isinstance(wanted, ArrayPreprocessing) and card.family == family
    assert wanted.fill == dataset.info.channel_mean and wanted.channels == 1
    if family == "signals":
        assert (wanted.stored, wanted.crop, wanted.rate_hz) == ((64,), (48,), 8000)
    state = load_predictor(result.model_folder, CPU).members[0].state_dict()
    np.testing.assert_allclose(state["mean"].flatten(), dataset.info.channel_mean, rtol=1e-6)
    np.testing.assert_allclose(state["std"].flatten(), dataset.info.channel_std, rtol=1e-6)


@families
def test_what_cannot_be_read_gets_a_reason_and_the_others_an_answer(
    family: str, trained: dict[str, tuple[Dataset, TrainResult]]
) -> None:
    _, result = trained[family]
    item = wav(tone(5, 2)) if family == "signals" else write_npy(blob(5, 1))
    other = write_npy(np.zeros((3, 5) if family == "signals" else (3, 5, 5, 5)))
    rows = load_predictor(result.model_folder, CPU).predict([item, b"", item[:-9], other, item]).to_pylist()
    errors = [row["error"] for row in rows]
    assert errors[0] is errors[4] is None and errors[1] == "empty file"
    assert errors[2].startswith("truncated") and errors[3].startswith("3 channels")
    assert rows[0]["label"] == rows[4]["label"] and rows[1]["label"] is None


@families
@pytest.mark.parametrize("view", ["mirror", "ten_crop"])
def test_views_of_pictures_are_refused(
    family: str, view: ViewName, trained: dict[str, tuple[Dataset, TrainResult]]
) -> None:
    dataset, result = trained[family]
    predictor = load_predictor(result.model_folder, CPU)
    message = f"view '{view}' is of pictures; signals and volumes are looked at by: single"
    with pytest.raises(ValueError, match=message):
        predictor.predict(dataset.table("test")["image"].to_pylist()[:1], view)
    config = tiny_config(family).evaluate.model_copy(update={"views": (view,)})
    with pytest.raises(ValueError, match=message):
        evaluate([result.model_folder], dataset, config=config, device=CPU)


@families
def test_arrays_of_another_shape_or_type_are_refused(
    family: str, trained: dict[str, tuple[Dataset, TrainResult]]
) -> None:
    predictor = load_predictor(trained[family][1].model_folder, CPU)
    with pytest.raises(
        ValueError, match=r"images must be \(B, 1, .*\) float32, got \(2, 1, 5\) torch.float32"
    ):
        predictor.probabilities(torch.zeros(2, 1, 5))


@families
def test_a_preview_draws_curves_and_slices(
    family: str, trained: dict[str, tuple[Dataset, TrainResult]]
) -> None:
    figure = preview(family, tiny_config(family), trained[family][0], num_pictures=3, num_epochs=2)
    assert len(figure.axes) == 9
    assert "px" not in figure.get_suptitle()


# --------------------------------------------------------------------------------------- drawings


def test_a_rising_signal_is_drawn_from_lower_left_to_upper_right() -> None:
    picture = draw_signal(np.linspace(0, 1, 500, dtype=np.float32)[None])
    dark = [np.flatnonzero(picture[:, column] == 0) for column in range(PICTURE_PX)]
    assert all(len(rows) for rows in dark)
    middles = [rows.mean() for rows in dark]
    assert middles[0] > PICTURE_PX - 4 and middles[-1] < 4 and (np.diff(middles) <= 0).all()


def test_a_single_peak_among_many_samples_is_seen() -> None:
    values = np.zeros((1, 100_000), np.float32)
    values[0, 50_000] = 1
    assert draw_signal(values)[0, PICTURE_PX // 2] == 0


def test_channels_stand_below_each_other_and_short_signals_are_drawn_too() -> None:
    picture = draw_signal(np.array([[1.0, 1.0], [0.0, 1.0]], np.float32))
    half = PICTURE_PX // 2
    assert (picture[:half] == 0).any(0).all() and (picture[half:] == 0).any(0).all()


def test_a_volume_is_drawn_as_its_middle_slices() -> None:
    volume = np.zeros((1, 4, 4, 4), np.float32)
    volume[0, 2, 1, 3] = 1
    picture, half = draw_volume(volume), PICTURE_PX // 2
    cell = half // 4
    assert picture[cell, half - 1] == 255 and (picture[:half, :half] == 255).sum() == cell * cell
    assert not picture[:half, half:].any()  # the slice across axis 1 at 2 misses it
    assert picture[half + cell, -1] == round(255 / 4)


@pytest.mark.parametrize("shape", [(0, 1, 5), (2, 3, 1), (2, 1, 1, 2, 3)])
def test_any_shape_can_be_drawn(shape: tuple[int, ...]) -> None:
    assert draw_all(np.ones(shape, np.float32)).shape == (shape[0], 1, PICTURE_PX, PICTURE_PX)
