"""A saved detector: the same boxes whatever a picture's shape, by each view, and the least score that it reports."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.dataset import Dataset
from tasks import detection
from tasks.card import ModelCard
from tasks.detectionevaluate import evaluate, fit_threshold, found_in, objects_of_split
from tasks.detectionmatches import match
from tasks.detectionmetrics import at_threshold
from tasks.detectionpredict import DETECTION_SCHEMA, DetectionPredictor, coco_results, view_named
from tasks.families import FAMILIES
from tasks.modelfile import load_card, load_model, save_model
from tasks.optim import build_optimizers
from tasks.train import decode_here
from tests.tiny import tiny_config, tiny_dataset

CPU = torch.device("cpu")
NUM_LEARNT = 20  # scenes that the detector of these tests knows by heart


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset("detection", tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def config() -> Any:
    return tiny_config(
        "detection", optim__name="adamw", optim__lr=1e-2, optim__bias_lr=1e-2, input__stored_px=96
    )


@pytest.fixture(scope="module")
def card(config: Any, dataset: Dataset) -> ModelCard:
    return detection.card(config, dataset.info, "d" * 32, "run")


@pytest.fixture(scope="module")
def folder(config: Any, dataset: Dataset, card: ModelCard, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that has learnt some validation scenes."""
    entry = FAMILIES["detection"]
    records = decode_here(entry, dataset, "val", config)
    torch.manual_seed(0)
    batch = entry.batch(records, np.arange(NUM_LEARNT), dataset.info, config, None)
    model = entry.model(config, dataset.info, lambda: [batch])
    optimizers = build_optimizers(model.train(), config.optim)
    for _ in range(240):
        loss, _values = entry.loss(model, batch, config)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for _ in range(40):  # the norms' averages catch up
        with torch.no_grad():
            model(batch.images)
    path = tmp_path_factory.mktemp("model")
    save_model(path, card, [model])
    return path


def scene(dataset: Dataset, place: int) -> Image.Image:
    return Image.open(io.BytesIO(dataset.table("val", ["image"])["image"][place].as_py()))


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def predictor(folder: Path) -> DetectionPredictor:
    return DetectionPredictor(load_model(folder), CPU)


def sure(row: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """Labels and boxes of what is found for sure, in an order that depends on their place alone."""
    found = zip(row["labels"], row["boxes_xyxy"], row["scores"], strict=True)
    return sorted(((label, box) for label, box, score in found if score > 0.35), key=lambda each: each[1][0])


def crowded(dataset: Dataset) -> int:
    """A validation scene with several digits."""
    counts = np.bincount(objects_of_split(dataset, "val")[0].image, minlength=NUM_LEARNT)[:NUM_LEARNT]
    return int(counts.argmax())


@pytest.mark.parametrize("factor", [1, 3])
def test_boxes_are_in_pixels_of_the_picture_whatever_its_size(
    predictor: DetectionPredictor, dataset: Dataset, factor: int
) -> None:
    picture = scene(dataset, crowded(dataset))
    large = picture.resize((96 * factor, 96 * factor), Image.Resampling.NEAREST)
    wide = Image.new("L", (96 * factor, 48 * factor), 114)  # letterboxed, with grey above and below
    wide.paste(large.crop((0, 24 * factor, 96 * factor, 72 * factor)))
    one, many = (sure(row) for row in predictor.predict([encoded(picture), encoded(large)]).to_pylist())
    assert len(one) == len(many) > 1 and [label for label, _ in one] == [label for label, _ in many]
    for (_, box), (_, larger) in zip(one, many, strict=True):
        np.testing.assert_allclose(np.array(box) * factor, larger, atol=1.5 * factor)
    [row] = predictor.predict([encoded(wide)]).to_pylist()
    assert all(y1 <= 48 * factor for *_, y1 in row["boxes_xyxy"])


def test_objects_of_learnt_scenes_are_found_where_they_are(
    predictor: DetectionPredictor, dataset: Dataset
) -> None:
    objects, _ids = objects_of_split(dataset, "val")
    num, hits = 0, 0
    rows = predictor.predict([encoded(scene(dataset, place)) for place in range(NUM_LEARNT)]).to_pylist()
    for place, row in enumerate(rows):
        own = objects.image == place
        for box, label in zip(objects.boxes_xyxy[own], objects.labels[own], strict=True):
            near = [found for name, found in sure(row) if name == str(label)]
            hits += bool(near) and np.abs(np.array(near) - box).max(1).min() < 4
            num += 1
    assert num > 30 and hits > 0.85 * num


def test_a_mirrored_picture_has_mirrored_boxes_by_the_view_mirror(
    predictor: DetectionPredictor, dataset: Dataset
) -> None:
    picture = scene(dataset, crowded(dataset))
    flipped = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    squares, _errors = predictor.decode([encoded(picture), encoded(flipped)])
    found = predictor.detect(squares, "mirror")
    one, other = (found.image == i for i in range(2))
    assert one.sum() == other.sum() > 0
    order = [
        np.lexsort((found.boxes_xyxy[each][:, 1].round(3), -found.scores[each].round(4)))
        for each in (one, other)
    ]
    mine, theirs = found.boxes_xyxy[one][order[0]], found.boxes_xyxy[other][order[1]]
    turned = np.stack([96 - theirs[:, 2], theirs[:, 1], 96 - theirs[:, 0], theirs[:, 3]], 1)
    np.testing.assert_allclose(np.sort(mine.sum(1)), np.sort(turned.sum(1)), atol=0.05)


@pytest.mark.parametrize("view", ["mirror", "multi_scale"])
def test_views_of_several_looks_find_what_one_look_finds(
    predictor: DetectionPredictor, dataset: Dataset, view: Any
) -> None:
    squares, _errors = predictor.decode([encoded(scene(dataset, place)) for place in range(8)])
    single, several = predictor.detect(squares, "single"), predictor.detect(squares, view)
    assert (np.diff(several.image) >= 0).all()
    for image in range(8):
        best = several.scores[several.image == image].max(initial=0)
        assert best >= single.scores[single.image == image].max(initial=0) - 1e-6
        assert (np.diff(several.scores[several.image == image]) <= 0).all()


def test_unreadable_pictures_give_their_reason_and_take_nobodys_place(
    predictor: DetectionPredictor, dataset: Dataset
) -> None:
    good = encoded(scene(dataset, crowded(dataset)))
    table = predictor.predict([b"junk", good, b"", good])
    assert table.schema == DETECTION_SCHEMA
    rows = table.to_pylist()
    assert (
        rows[0]["boxes_xyxy"] is None and "not an image" in rows[0]["error"] and "empty" in rows[2]["error"]
    )
    assert rows[1] == rows[3] and rows[1]["error"] is None and rows[1]["labels"]
    assert predictor.predict([]).schema == DETECTION_SCHEMA
    assert len(coco_results(["a", "b", "c", "d"], rows, predictor.card.classes)) == 2 * len(rows[1]["labels"])


def test_batches_of_any_size_find_the_same(folder: Path, dataset: Dataset) -> None:
    blobs = dataset.table("val", ["image"])["image"][:7].to_pylist()
    one, many = (
        DetectionPredictor(load_model(folder), CPU, batch_size=size).predict(blobs).to_pylist()
        for size in (1, 7)
    )
    assert [row["labels"] for row in one] == [row["labels"] for row in many]


def test_the_least_score_has_the_precision_that_was_asked_for_and_stays(
    folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    saved = load_model(folder)
    for wanted in (0.5, 0.9):
        own = tmp_path / str(wanted)
        asked = saved.card.model_copy(update={"thresholds": {"precision": wanted}})
        save_model(own, asked, list(saved.members))
        found = fit_threshold(own, dataset, batch_size=32, device=CPU)
        assert found.precision >= wanted and "80 validation pictures" in found.basis
        assert load_card(own).thresholds == {"precision": wanted, "score": found.score}
        predictor = DetectionPredictor(load_model(own), CPU)
        seen = found_in([predictor], dataset, "val", ["single"], lambda done, total: None)["single"].together
        objects, ids = objects_of_split(dataset, "val")
        matches = match(objects, seen, num_images=len(ids), num_classes=10)
        cut = at_threshold(matches, found.score)
        assert (cut.precision, cut.recall) == (found.precision, found.recall)
        again = fit_threshold(own, dataset, batch_size=32, device=CPU)
        assert again.score == found.score
    assert load_card(tmp_path / "0.5").thresholds["score"] < load_card(tmp_path / "0.9").thresholds["score"]


def test_an_evaluation_counts_every_picture_and_object(folder: Path, dataset: Dataset) -> None:
    config = tiny_config("detection").evaluate.model_copy(update={"views": ("single", "mirror")})
    report = evaluate([folder], dataset, split="test", config=config, device=CPU)
    assert report.metrics["num_images"] == 120 and report.metrics["num_objects"] == 329
    assert report.metrics["single.ap"] == report.metrics["ap"] and "mirror.ap50" in report.metrics
    assert report.about["split"] == "test"
    titles = [title for title, *_ in report.tables("digits, test")]
    assert titles[0] == "digits, test" and len(titles) == 4


def test_models_and_data_that_do_not_fit_are_refused(
    folder: Path, dataset: Dataset, config: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="evaluated one at a time"):
        evaluate([folder, folder], dataset, config=config.evaluate, device=CPU)
    saved = load_model(folder)
    other = tmp_path / "other"
    save_model(other, saved.card.model_copy(update={"classes": tuple("abcdefghij")}), list(saved.members))
    with pytest.raises(ValueError, match="the same classes in the same order"):
        evaluate([other], dataset, config=config.evaluate, device=CPU)
    with pytest.raises(ValueError, match="unknown view 'ten_crop'"):
        view_named("ten_crop")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train__growth": [[32, 0.5]]}, "train.growth must be"),
        ({"optim__class_weights": "balanced"}, "class_weights must be none"),
        ({"train__patience_metric": "accuracy"}, "patience_metric must be ap or loss"),
        ({"transfer__mode": "head"}, "give transfer.weights, or set mode=all"),
        ({"optim__label_smoothing": 0.1}, "label_smoothing must be 0"),
    ],
)
def test_parameters_that_mean_nothing_to_a_detector_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config("detection", **change)
