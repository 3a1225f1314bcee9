"""A saved detector: the same boxes whatever a picture's shape, by each view, and the least score that it reports."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from data import digitscenes
from data.dataset import CROWD, Dataset
from data.samples import sample_tree
from models.detection import DETECTORS, build
from models.detector import Found
from models.rcnn import Rcnn
from models.yolo import Yolo
from pipelines.parameters import recipes
from tasks import detection
from tasks.card import ModelCard
from tasks.detectionerrors import FALSE_ALARMS
from tasks.detectionevaluate import evaluate, fit_threshold, found_in, objects_of_split
from tasks.detectionfigures import ROWS
from tasks.detectionmatches import Objects, match, pair_iou
from tasks.detectionmetrics import at_threshold
from tasks.detectionpredict import BATCH_SIZE, DETECTION_SCHEMA, VIEWS, DetectionPredictor, coco_results
from tasks.ensemble import combine
from tasks.families import FAMILIES
from tasks.modelfile import load_card, load_model, save_model
from tasks.optim import build_optimizers
from tasks.predictors import open_predictor
from tasks.train import LocalSession, decode_here, train
from tasks.views import view_named
from tasks.weights import of_transfer
from tests.annotated import ingest_source
from tests.test_tasks_detectionmetrics import NAMES, pycocotools
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


def test_a_box_in_the_border_around_a_picture_is_none(
    predictor: DetectionPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture lies in rows 24 to 72 of its square; the second box reaches into it."""
    boxes = torch.tensor([[0.0, 0, 96, 20], [10, 20, 30, 40]])
    zeros = torch.zeros(2, dtype=torch.int64)
    found = Found(boxes, torch.tensor([0.9, 0.8]), zeros, zeros)
    monkeypatch.setattr(predictor, "once", lambda *_given: found)
    [row] = predictor.predict([encoded(Image.new("L", (96, 48)))]).to_pylist()
    assert row["boxes_xyxy"] == [[10, 0, 30, 16]] and row["scores"] == pytest.approx([0.8])


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
    pictures, _errors = predictor.decode([encoded(scene(dataset, place)) for place in range(8)])
    single, several = predictor.detect(pictures, "single"), predictor.detect(pictures, view)
    assert (np.diff(several.image) >= 0).all()
    for image in range(8):
        assert (np.diff(several.scores[several.image == image]) <= 0).all()
    for place in np.flatnonzero(single.scores > 0.35):
        alike = (several.image == single.image[place]) & (several.labels == single.labels[place])
        boxes = several.boxes_xyxy[alike]
        overlaps = pair_iou(
            boxes, np.tile(single.boxes_xyxy[place], (len(boxes), 1)), np.zeros(len(boxes), bool)
        )
        assert overlaps.max() > 0.5


def mosaic_of(dataset: Dataset, rows: int, columns: int) -> tuple[Image.Image, np.ndarray, list[str]]:
    """A large picture of scenes that are learnt, row by row, and its digits in its pixels."""
    objects, _ids = objects_of_split(dataset, "val")
    large, boxes, labels = Image.new("L", (96 * columns, 96 * rows)), [], []
    for place in range(rows * columns):
        corner = 96 * (place % columns), 96 * (place // columns)
        large.paste(scene(dataset, place), corner)
        own = objects.image == place
        boxes.append(objects.boxes_xyxy[own] + np.tile(corner, 2))
        labels += [dataset.info.classes[label] for label in objects.labels[own]]
    return large, np.concatenate(boxes), labels


def test_tiles_that_are_the_scenes_of_a_large_picture_find_what_is_found_in_each(
    folder: Path, predictor: DetectionPredictor, dataset: Dataset
) -> None:
    large, _boxes, _labels = mosaic_of(dataset, 2, 3)
    tiled = DetectionPredictor(load_model(folder), CPU, batch_size=4, tile_overlap=0.0)
    [found] = tiled.predict([encoded(large)]).to_pylist()
    alone = predictor.predict([encoded(scene(dataset, place)) for place in range(6)]).to_pylist()
    wanted = [
        (
            label,
            [x0 + 96 * (place % 3), y0 + 96 * (place // 3), x1 + 96 * (place % 3), y1 + 96 * (place // 3)],
        )
        for place, row in enumerate(alone)
        for label, (x0, y0, x1, y1) in sure(row)
    ]
    assert len(wanted) > 10
    wanted.sort(key=lambda each: each[1][0])
    assert [label for label, _box in sure(found)] == [label for label, _box in wanted]
    np.testing.assert_allclose([box for _, box in sure(found)], [box for _, box in wanted], atol=0.01)
    assert found["scores"] == sorted(found["scores"], reverse=True)


@pytest.mark.parametrize("view", ["single", "mirror"])
def test_objects_of_a_large_picture_are_found_once_each_in_its_pixels(
    folder: Path, dataset: Dataset, view: Any
) -> None:
    large, boxes, labels = mosaic_of(dataset, 3, 3)
    small = scene(dataset, 0)
    tiled = DetectionPredictor(load_model(folder), CPU, tile_overlap=0.25)
    row, other = tiled.predict([encoded(large), encoded(small)], view).to_pylist()
    hits = [
        sum(name == label and np.abs(np.array(box) - wanted).max() < 6 for name, box in sure(row))
        for label, wanted in zip(labels, boxes, strict=True)
    ]
    assert len(hits) > 15 and max(hits) == 1
    if view == "single":  # half of what is found in a mirrored digit is another one
        assert np.mean(hits) > 0.7
    # what is no larger than a tile is looked at as ever
    assert [other] == DetectionPredictor(load_model(folder), CPU).predict([encoded(small)], view).to_pylist()
    with pytest.raises(ValueError, match=r"overlap \(=1\) of tiles must lie in 0…0.9"):
        DetectionPredictor(load_model(folder), CPU, tile_overlap=1)


@pytest.fixture(scope="module")
def rival(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another detector: the first with noise in its weights, and a least score of its own."""
    saved = load_model(folder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in saved.members[0].parameters():
            weight += 0.05 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    path = tmp_path_factory.mktemp("rival")
    thresholds = {**saved.card.thresholds, "score": 0.9}
    save_model(path, saved.card.model_copy(update={"thresholds": thresholds}), list(saved.members))
    return path


def test_several_detectors_tested_together_are_the_ensemble_that_is_saved_of_them(
    folder: Path, rival: Path, dataset: Dataset, config: Any, tmp_path: Path
) -> None:
    together = evaluate([folder, rival], dataset, config=config.evaluate, device=CPU, called=("a", "b"))
    card = combine([folder, rival], tmp_path / "pair")
    assert len(card.members) == 2 and "score" not in card.thresholds
    found = fit_threshold(tmp_path / "pair", dataset, batch_size=32, device=CPU)
    pair = evaluate([tmp_path / "pair"], dataset, config=config.evaluate, device=CPU)
    assert together.threshold == pair.threshold == found.score
    assert together.about["num_networks"] == pair.about["num_networks"] == 2
    for name in ("ap", "ap50", "precision", "recall", "single.ap"):
        assert together.metrics[name] == pair.metrics[name]
    assert [row["model"] for row in together.members] == ["a", "b", "together"] and not pair.members
    assert (together.about["models"], pair.about["models"]) == ("a, b", str(tmp_path / "pair"))
    alone = [evaluate([each], dataset, config=config.evaluate, device=CPU) for each in (folder, rival)]
    assert [row["ap"] for row in together.members[:2]] == [report.metrics["ap"] for report in alone]


def test_a_detector_twice_is_that_detector(
    folder: Path, predictor: DetectionPredictor, dataset: Dataset, tmp_path: Path
) -> None:
    combine([folder, folder], tmp_path / "twice")
    blobs = dataset.table("val", ["image"])["image"][:6].to_pylist()
    twice = DetectionPredictor(load_model(tmp_path / "twice"), CPU).predict(blobs).to_pylist()
    for one, other in zip(predictor.predict(blobs).to_pylist(), twice, strict=True):
        assert one["labels"] == other["labels"]
        np.testing.assert_allclose(one["scores"], other["scores"], rtol=1e-6)
        np.testing.assert_allclose(one["boxes_xyxy"], other["boxes_xyxy"], rtol=1e-5, atol=1e-4)


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


def test_a_detector_that_is_served_takes_as_few_pictures_a_pass_as_one_that_predicts(folder: Path) -> None:
    """A classifier's passes are many times as large, and so would be the memory."""
    served = open_predictor(folder, CPU)
    assert isinstance(served, DetectionPredictor) and served.batch_size == BATCH_SIZE


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


@pytest.mark.parametrize("num_images", [0, 2])
def test_a_validation_without_objects_gives_a_plain_least_score(
    folder: Path, num_images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The networks' own would report some hundred boxes a picture."""
    saved = load_model(folder)
    save_model(tmp_path, saved.card, list(saved.members))
    nothing = np.empty(0)
    objects = Objects(
        image=nothing, boxes_xyxy=nothing.reshape(0, 4), labels=nothing, crowd=nothing == 1,
        difficult=nothing == 1, area=nothing,
    )  # fmt: skip
    monkeypatch.setattr("tasks.detectionevaluate.objects_of_split", lambda _dataset, _split: (objects, []))
    bare: Any = SimpleNamespace(info=SimpleNamespace(name="bare", num_images=lambda _split: num_images))
    found = fit_threshold(tmp_path, bare, batch_size=32, device=CPU)
    assert load_card(tmp_path).thresholds["score"] == found.score == 0.5
    assert found.note.startswith("least score 0.5, chosen on nothing: bare") and "nan" not in found.note
    again = fit_threshold(tmp_path, bare, batch_size=32, device=CPU)
    assert again.note == found.note


def test_an_evaluation_counts_every_picture_and_object(folder: Path, dataset: Dataset) -> None:
    config = tiny_config("detection").evaluate.model_copy(update={"views": ("single", "mirror")})
    report = evaluate([folder], dataset, split="test", config=config, device=CPU)
    assert report.metrics["num_images"] == 120 and report.metrics["num_objects"] == 329
    assert report.metrics["single.ap"] == report.metrics["ap"] and "mirror.ap50" in report.metrics
    assert report.about["split"] == "test"
    titles = [title for title, *_ in report.tables("digits, test")]
    assert titles[0] == "digits, test" and len(titles) == 4


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, Any]]:
    """The scenes with areas unlike their boxes', one in nine with none; and the validation split's JSON."""
    tree, rng = sample_tree("sklearn:digit_scenes"), np.random.default_rng(0)
    files = {name: tree.read(name) for name in tree.sizes}
    for name in [name for name in files if name.endswith(".json")]:
        document = json.loads(files[name])
        for place, row in enumerate(document["annotations"]):
            area = row.pop("area") * rng.choice([0.1, 1.7, 12.3])
            row |= {"area": area} if place % 9 else {}
        files[name] = json.dumps(document).encode()
    _, dataset = ingest_source(tmp_path_factory.mktemp("unlike"), "detection", files)
    return dataset, json.loads(files["annotations/instances_val.json"])


@pytest.mark.parametrize("way", ["single", "ensemble", "tiles"])
def test_the_twelve_figures_are_pycocotools_on_areas_unlike_the_boxes(
    folder: Path, unlike: tuple[Dataset, dict[str, Any]], way: str
) -> None:
    dataset, document = unlike
    config, overlap = tiny_config("detection").evaluate, 0.25 if way == "tiles" else None
    folders = [folder] * (2 if way == "ensemble" else 1)
    report = evaluate(folders, dataset, split="val", config=config, device=CPU, tile_overlap=overlap)
    place = {id: i for i, id in enumerate(report.ids)}
    image = {each["id"]: place[each["file_name"]] for each in document["images"]}
    rows = document["annotations"]
    low, sides = np.split(np.array([row["bbox"] for row in rows], np.float64), 2, axis=1)
    areas = [row.get("area", side.prod()) for row, side in zip(rows, sides, strict=True)]
    given = Objects(
        image=np.array([image[row["image_id"]] for row in rows]), boxes_xyxy=np.hstack([low, low + sides]),
        labels=np.array([row["category_id"] for row in rows]), crowd=np.zeros(len(rows), bool),
        difficult=np.zeros(len(rows), bool), area=np.array(areas),
    )  # fmt: skip
    peer, by_boxes = (
        pycocotools(each, report.detections, len(report.ids), 10).stats
        for each in (given, replace(given, area=sides.prod(1)))
    )
    ours = [report.metrics[name] for name in NAMES]
    np.testing.assert_allclose(ours, peer, rtol=0, atol=1e-12)
    assert np.abs(peer - by_boxes)[3:6].min() > 0.01


@pytest.mark.parametrize(("num_worst", "most"), [(0, 0), (3, 1), (24, 8)])
def test_an_evaluation_shows_a_third_each_of_hits_misses_and_false_alarms(
    folder: Path, dataset: Dataset, num_worst: int, most: int
) -> None:
    config = tiny_config("detection", evaluate__num_worst=num_worst).evaluate
    report = evaluate([folder], dataset, config=config, device=CPU)
    counts = report.judgement.counts
    totals = {
        "hit": counts["hit"],
        "missed": counts["missed"],
        "wrong": sum(counts[kind] for kind in FALSE_ALARMS),
    }
    shown = {row: sum(each.row == row for each in report.examples) for row in ROWS}
    assert shown == {row: min(most, totals[row]) for row in ROWS}
    assert min(totals.values()) > 1


def test_models_and_data_that_do_not_fit_are_refused(
    folder: Path, dataset: Dataset, config: Any, tmp_path: Path
) -> None:
    saved = load_model(folder)
    other = tmp_path / "other"
    save_model(other, saved.card.model_copy(update={"classes": tuple("abcdefghij")}), list(saved.members))
    with pytest.raises(ValueError, match="same classes in the same order: the model alone has 10"):
        evaluate([other], dataset, config=config.evaluate, device=CPU)
    with pytest.raises(ValueError, match="models of an ensemble must have the same classes"):
        evaluate([folder, other], dataset, config=config.evaluate, device=CPU)
    with pytest.raises(ValueError, match="at least one model folder"):
        evaluate([], dataset, config=config.evaluate, device=CPU)
    with pytest.raises(ValueError, match="view 'ten_crop' is not known"):
        view_named("ten_crop", VIEWS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train__growth": [[32, 0.5]]}, "train.growth must be"),
        ({"optim__class_weights": "balanced"}, "class_weights .* must be none"),
        ({"train__patience_metric": "accuracy"}, "patience_metric .* must be ap or loss"),
        ({"transfer__mode": "head"}, "give transfer.weights, or set mode=all"),
        ({"model__name": "fasterrcnn_resnet50_fpn"}, "give transfer.weights, or set model.name=faster_rcnn"),
        ({"optim__label_smoothing": 0.1}, "label_smoothing .* must be 0"),
        ({"model__strides": [8, 8]}, "must name each stride once"),
        ({"input__train_px": [64, 8192]}, "up to 4096"),
    ],
)
def test_parameters_that_mean_nothing_to_a_detector_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config("detection", **change)


@pytest.mark.parametrize(
    ("name", "network"),
    [("yolo", "mobilenet_v2"), ("faster_rcnn", "mobilenet_v2"), ("fasterrcnn_resnet50_fpn", "resnet50")],
)
def test_a_detector_starts_from_a_classifier_of_the_body_that_it_has(name: str, network: str) -> None:
    """The one as published has its own, whatever `body` says."""
    config = tiny_config(
        "detection", model__name=name, model__body="mobilenet_v2", transfer__weights="package:some"
    )
    assert config.model.network == network


@pytest.mark.parametrize("name", [name for name in DETECTORS if name != "fasterrcnn_resnet50_fpn"])
def test_every_detector_learns_and_comes_back_from_its_file(
    name: str, dataset: Dataset, tmp_path: Path
) -> None:
    config = tiny_config("detection", model__name=name)
    entry = FAMILIES["detection"]
    records = decode_here(entry, dataset, "val", config)
    torch.manual_seed(0)
    batch = entry.batch(records, np.arange(4), dataset.info, config, None)
    model = entry.model(config, dataset.info, lambda: [batch])
    loss, values = entry.loss(model.train(), batch, config)
    loss.backward()
    assert loss.isfinite() and all(value.isfinite() for value in values.values())
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)
    with torch.no_grad():
        metrics = entry.validate(model.eval(), [batch], config)
    assert metrics["loss"] > 0
    save_model(tmp_path, entry.card(config, dataset.info, "", "run"), [model])
    found = load_model(tmp_path).members[0](batch.images)
    again = model(batch.images)
    assert torch.equal(found.labels, again.labels) and torch.allclose(found.scores, again.scores, atol=1e-4)


def test_boxes_too_small_to_be_trained_are_told() -> None:
    """Pictures of 640 px at 64: of 15 px, 1.5 are left; crowds are not trained anyway."""
    large, small = [0.0, 0, 200, 200], [10.0, 10, 25, 300]
    rows = pa.table({
        "width": [640, 320], "height": [480, 320], "boxes_xyxy": [[*large, *small, *small], small],
        "box_labels": [[0, 0, 0], [0]], "box_flags": [[0, 0, CROWD], [0]],
    })  # fmt: skip
    asked: Any = SimpleNamespace(table=lambda _split, columns: rows.select(columns))
    [told] = detection.notes(tiny_config("detection"), asked)
    assert told.startswith("of 3 training boxes, 1 with a side below 2 px at input.stored_px (=64)")
    assert detection.notes(tiny_config("detection", input__stored_px=96), asked) == []


@pytest.mark.parametrize("name", ["rcnn", "fast_rcnn"])
def test_pictures_that_are_searched_anew_in_every_epoch_are_told_with_what_ends_it(name: str) -> None:
    large = [0.0, 0, 200, 200]
    rows = pa.table({
        "width": [640, 320], "height": [480, 320], "boxes_xyxy": [large, large], "box_labels": [[0], [0]],
        "box_flags": [[0], [0]],
    })  # fmt: skip
    asked: Any = SimpleNamespace(table=lambda _split, columns: rows.select(columns))
    [told] = detection.notes(tiny_config("detection", model__name=name), asked)
    said, changes = told.split("; to search it once, set ")
    assert said.startswith(f"model.name (={name}) ")
    assert "each of 2 training pictures is searched anew in every epoch" in said
    off = {key.replace(".", "__"): yaml.safe_load(text) for key, text in re.findall(r"(\S+)=(\S+)", changes)}
    assert off == {
        "augment__scale": [1, 1], "augment__translate": 0, "augment__brightness": 0, "augment__contrast": 0,
        "augment__mosaic": 0,
    }  # fmt: skip
    assert detection.notes(tiny_config("detection", model__name=name, **off), asked) == []
    # a mirrored picture is one of two
    mirrored = tiny_config("detection", model__name=name, augment__mirror=True, **off)
    assert detection.notes(mirrored, asked) == []
    assert detection.notes(tiny_config("detection", model__name="faster_rcnn"), asked) == []


@pytest.mark.parametrize("augmented", [True, False])
def test_a_detector_knows_whether_training_shows_a_picture_again(dataset: Dataset, augmented: bool) -> None:
    plain = {"scale": [1, 1], "translate": 0, "brightness": 0, "contrast": 0}
    off = {} if augmented else {f"augment__{name}": value for name, value in plain.items()}
    # mosaic that ends before it begins is none
    config = tiny_config("detection", model__name="rcnn", augment__mosaic_until=0, **off)
    model = detection.build_model(config, dataset.info, list)
    assert isinstance(model, Rcnn) and model.pictures_return is not augmented


def test_a_recipe_chooses_what_the_papers_of_the_r_cnn_line_vary(dataset: Dataset) -> None:
    changes = {"model__pooling": "max", "model__crop_px": 64, "model__proposals": 50}

    def made(name: str) -> Any:
        return detection.build_model(
            tiny_config("detection", model__name=name, **changes), dataset.info, list
        )

    fast, rcnn = made("fast_rcnn"), made("rcnn")
    assert (fast.pooling, fast.propose.most) == ("max", 50)
    assert (rcnn.crop_px, rcnn.propose.most) == (64, 50)
    # a card of before there was a choice
    arguments = {
        name: value
        for name, value in tiny_config("detection", model__name="rcnn").arguments().items()
        if name not in ("crop_px", "proposals")
    }
    older: Any = build("rcnn", 10, 1, arguments, (0.5,), (0.2,))
    assert (older.crop_px, older.propose.most) == (96, 2000)


def test_the_recipe_of_fast_r_cnn_searches_each_picture_once() -> None:
    values = {"dataset": "x", **recipes("detection")["fast_rcnn"]}
    for name in ("fast_rcnn", "rcnn"):
        config = detection.DetectionConfig.parse({**values, "model": {**values["model"], "name": name}}, name)
        assert config.augment.endless == []


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """Weights by chance under the keys of torchvision's Faster R-CNN, of 90 classes and background."""
    finding = tiny_config("detection").evaluate.finding().model_dump()
    with torch.device("meta"):
        model: Any = build("fasterrcnn_resnet50_fpn", 90, 3, {"finding": finding}, (0.0,) * 3, (1.0,) * 3)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(value.shape, generator=generator) + 0.1
        for name, value in model.net.state_dict().items()
    }


def begun(dataset: Dataset, file: Path, num_classes: int = 10, channels: int = 3, **changes: Any) -> Any:
    """A detector that begins with the weights of a file."""
    of_channels = {"channels": channels, "channel_mean": (0.5,) * channels, "channel_std": (0.2,) * channels}
    classes = tuple(str(k) for k in range(num_classes))
    info = dataset.info.model_copy(update={**of_channels, "classes": classes})
    changes = {"model__name": "fasterrcnn_resnet50_fpn", **changes}
    config = tiny_config("detection", transfer__weights=str(file), **changes)
    return detection.build_model(config, info, list, of_transfer(config, info, Path))


def test_a_whole_published_detector_is_begun_with_but_for_its_classes(
    published: dict[str, torch.Tensor], dataset: Dataset, tmp_path: Path
) -> None:
    file = tmp_path / "fasterrcnn.pth"
    old = {re.sub(r"(_blocks\.\d)\.0\.|(head\.conv)\.0\.0\.", r"\1\2.", k): v for k, v in published.items()}
    assert old.keys() != published.keys()
    torch.save(old, file)
    model = begun(dataset, file)
    own = model.net.state_dict()
    assert own.keys() == published.keys()
    classes = {name for name in own if name.startswith("roi_heads.box_predictor.")}
    assert len(classes) == 4 and {len(own[name]) for name in classes} == {11, 44}
    norms = {name.replace("running_var", "weight"): name for name in own if name.endswith("running_var")}
    for name in own.keys() - classes:
        wanted = published[name]
        if name in norms:  # published with an epsilon of 0
            wanted = wanted * ((published[norms[name]] + 1e-5) / published[norms[name]]).sqrt()
        assert torch.equal(own[name], wanted), name
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    with pytest.raises(ValueError, match=r"conv1.weight is \(64, 3, 7, 7\), not \(64, 1, 7, 7\).*of colour"):
        begun(dataset, file, channels=1)
    with pytest.raises(ValueError, match=r"not of a Yolo: set model\.name=fasterrcnn_resnet50_fpn"):
        begun(dataset, file, model__name="yolo", model__body="resnet18")


def test_a_published_detector_of_as_many_classes_brings_them_along(
    published: dict[str, torch.Tensor], dataset: Dataset, tmp_path: Path
) -> None:
    save_file(published, tmp_path / "fasterrcnn.safetensors")
    own = begun(dataset, tmp_path / "fasterrcnn.safetensors", num_classes=90).net.state_dict()
    kept = [name for name in own if name.startswith(("roi_heads.", "rpn."))]
    assert len(kept) == 14 and all(torch.equal(own[name], published[name]) for name in kept)


def test_a_whole_detector_of_ours_is_begun_with_as_it_is(dataset: Dataset, tmp_path: Path) -> None:
    config = tiny_config("detection", model__name="faster_rcnn")
    torch.manual_seed(1)
    older = detection.build_model(config, dataset.info, list)
    card = detection.card(config, dataset.info, "", "run")
    save_model(tmp_path, card, [older])
    file = tmp_path / card.members[0].weights
    newer = begun(dataset, file, channels=1, model__name="faster_rcnn")
    state = older.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in newer.state_dict().items())


def test_anchors_are_fitted_to_boxes_that_are_trained(dataset: Dataset) -> None:
    config = tiny_config("detection", model__assignment="midpoint")
    entry = FAMILIES["detection"]
    records = decode_here(entry, dataset, "val", config)
    batch = entry.batch(records, np.arange(8), dataset.info, config, None)
    out = replace(batch, truths=replace(batch.truths, ignored=torch.ones_like(batch.truths.ignored)))
    model = entry.model(config, dataset.info, lambda: [out])
    assert isinstance(model, Yolo) and model.best_possible_recall.isnan()
    with torch.no_grad():  # a figure that there is none of would end the training
        assert "best_possible_recall" not in entry.validate(model.eval(), [out], config)
    fitted = entry.model(config, dataset.info, lambda: [batch])
    long = torch.tensor([[0.0, 30, 64, 33]]).expand(len(batch.truths), 4)
    other = replace(batch, truths=replace(batch.truths, boxes_xyxy=long))
    with torch.no_grad():  # what is told is of the validation's boxes, not of those that it was fitted to
        for seen, least, most in ((batch, 0.9, 1), (other, 0, 0)):
            told = entry.validate(fitted.eval(), [seen], config)["best_possible_recall"]
            assert least <= told <= most


class Crash(Exception):
    """Stands for a crash in the middle of a run."""


@pytest.mark.parametrize(
    "changes",
    [
        {"model__name": "yolo", "model__assignment": "midpoint"},
        pytest.param({"model__name": "faster_rcnn"}, marks=pytest.mark.slow),
        pytest.param({"model__name": "fast_rcnn"}, marks=pytest.mark.slow),
        pytest.param({"model__name": "rcnn"}, marks=pytest.mark.slow),
    ],
    ids=lambda changes: changes["model__name"],
)
def test_training_has_the_same_bits_whether_it_was_interrupted_validated_or_neither(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which anchors and proposals are trained is drawn: neither a validation nor a new start may move the draws."""
    monkeypatch.setattr(digitscenes, "NUM_SCENES", {"train": 24, "val": 4, "test": 4})
    scenes = tiny_dataset("detection", tmp_path / "store")
    few = {"train__epochs": 2.0, "train__batch_size": 8, "train__checkpoint_every_steps": 4}

    def weights_of(name: str, **others: Any) -> dict[str, torch.Tensor]:
        config = tiny_config("detection", **few, **changes, **others)
        train("detection", config, scenes, folder=tmp_path / name, key=name, digest="", executor="in_process")
        return load_model(tmp_path / name / "model").members[0].state_dict()

    straight = weights_of("straight")
    validated = weights_of("validated", train__validate_every_epochs=1)
    save = LocalSession.save

    def save_then_crash(session: LocalSession, state: dict[str, Any], step: int) -> None:
        save(session, state, step)
        raise Crash

    monkeypatch.setattr(LocalSession, "save", save_then_crash)
    with pytest.raises(Crash):
        weights_of("broken")
    monkeypatch.undo()
    resumed = weights_of("broken")
    for other in (validated, resumed):
        assert [name for name in straight if not torch.equal(straight[name], other[name])] == []
