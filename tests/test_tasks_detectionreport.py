"""A detector's report: its files agree with each other and with pycocotools."""

import contextlib
import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasks.detectionerrors import FALSE_ALARMS
from tasks.detectionfigures import CELL_PX, PAST_BORDER, ROWS, examples_figure, examples_of, pr_figure
from tasks.detectionmatches import Detections, Objects
from tasks.detectionreport import Report, detection_report
from tasks.figures import DPI
from tests.test_tasks_detectionmetrics import detections_of, drawn, objects_of, pycocotools
from tests.test_tasks_figures import assert_nothing_is_cut_off, title_of

ABOUT: dict[str, str | int | float] = {
    "models": "models:/made/1", "runs": "key", "dataset": "made", "split": "test", "num_networks": 1,
    "registered_view": "single", "precision": "float32", "device": "none", "threshold_fitted_to": "nothing",
}  # fmt: skip


def noise(place: int) -> np.ndarray:
    return np.random.default_rng(place).integers(0, 256, (150, 230, 3), dtype=np.uint8)


def report_of(objects: Objects, detections: Detections, num_images: int, classes: tuple[str, ...]) -> Report:
    ids = [f"test/{i:03d}.jpg" for i in range(num_images)]
    return detection_report(
        objects, detections, ids, classes, 0.4, ABOUT, noise,
        num_examples=6, generator=np.random.default_rng(0), images_per_s=12.5, num_draws=50,
    )  # fmt: skip


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    report = report_of(*drawn(3, 12, 3, 9), 12, ("small", "cat $x$", "dog"))
    folder = tmp_path_factory.mktemp("report")
    report.write(folder)
    return report, folder


def test_the_page_has_the_numbers_every_class_and_every_figure_and_needs_no_other_file(
    written: tuple[Report, Path],
) -> None:
    report, folder = written
    page = (folder / "report.html").read_text()
    assert f"<div>{report.metrics['ap']:.3f}<span>AP, 95% interval {report.metrics['ap_low']:.3f} to" in page
    assert all(f"<td>{name}</td>" in page for name in report.classes)
    assert page.count('src="data:image/png;base64,') == 4 and page.count("src=") == 4
    assert "nan" not in re.sub('"data:[^"]*"', "", page)
    bad = report_of(*drawn(2, 4, 2, 5), 4, ("<script>", "b & c"))
    bad.write(folder.parent / "bad")
    page = (folder.parent / "bad" / "report.html").read_text()
    assert "<script>" not in page and "<td>b &amp; c</td>" in page


def test_a_split_without_objects_has_a_page_too(tmp_path: Path) -> None:
    report = report_of(objects_of(), detections_of((0, 0, 0.9, (0, 0, 9, 9))), 2, ("a",))
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<div>0<span>objects" in page and "95% interval" not in page


def test_the_page_says_how_many_objects_are_not_to_be_found(tmp_path: Path) -> None:
    boxes = [(0, 0, (float(x), 0.0, x + 9.0, 9.0)) for x in (0, 20, 40)]
    found = detections_of((0, 0, 0.9, (0, 0, 9, 9)))
    report = report_of(objects_of(*boxes, crowd=(1,), difficult=(2,)), found, 1, ("a",))
    assert (report.metrics["num_objects"], report.metrics["num_ignored"]) == (1, 2)
    assert ["num_ignored", 2] in report.tables("t")[0][2]
    report.write(tmp_path)
    told = "<div>1<span>objects; 2 more, crowds and difficult ones, are not to be found</span>"
    assert told in (tmp_path / "report.html").read_text()
    report_of(objects_of(boxes[0]), found, 1, ("a",)).write(tmp_path)
    assert "<div>1<span>objects</span>" in (tmp_path / "report.html").read_text()


def test_the_page_says_why_a_wrong_class_may_be_no_confusion(tmp_path: Path) -> None:
    """The object is taken by the right detection, so that the other class is a false alarm of the background."""
    box = (10.0, 10, 60, 60)
    report = report_of(
        objects_of((0, 0, box)), detections_of((0, 0, 0.9, box), (0, 1, 0.8, box)), 1, ("a", "b")
    )
    assert [each.caption for each in report.examples if each.row == "wrong"] == [
        "wrong class, is a, IoU 1.00"
    ]
    assert report.judgement.confusion[0, 1] == 0 and report.judgement.confusion[2, 1] == 1
    report.write(tmp_path)
    [_, examples] = (tmp_path / "report.html").read_text().split("<h2>Examples</h2>")
    assert "“wrong class”" in examples.partition("<img")[0] and "in the row of background" in examples


def test_of_several_models_each_is_told_beside_all_together(tmp_path: Path) -> None:
    rows = tuple(
        {"model": name, "view": "single", "ap": 0.5, "ap50": None, "images_per_s": 2.0} for name in "ab"
    )
    report = replace(report_of(*drawn(3, 4, 2, 5), 4, ("x", "y")), members=rows)
    report.write(tmp_path)
    assert [row["model"] for row in rows_of(tmp_path / "members.csv")] == ["a", "b"]
    assert "<h2>Models</h2>" in (tmp_path / "report.html").read_text()
    assert report.document()["members"] == list(rows)
    assert report.tables("t")[1][0] == "Each model alone, and together"
    replace(report, members=()).write(tmp_path)
    assert not (tmp_path / "members.csv").exists()


def test_the_files_agree_with_each_other(written: tuple[Report, Path]) -> None:
    report, folder = written
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == report.metrics
    assert metrics["images_per_s"] == 12.5
    assert metrics["ap_low"] <= metrics["ap"] <= metrics["ap_high"]
    classes = rows_of(folder / "per_class.csv")
    assert np.mean([float(row["ap"]) for row in classes]) == pytest.approx(metrics["ap"], abs=1e-5)
    assert np.mean([float(row["ap50"]) for row in classes]) == pytest.approx(metrics["ap50"], abs=1e-5)
    assert np.mean([float(row["voc10"]) for row in classes]) == pytest.approx(metrics["voc10"], abs=1e-5)
    assert metrics["ap.small"] == pytest.approx(float(classes[0]["ap"]), abs=1e-5)
    cells = rows_of(folder / "confusion.csv")
    right = sum(int(row["count"]) for row in cells if row["actual"] == row["predicted"])
    real = sum(int(row["count"]) for row in cells if row["actual"] != "background")
    kept = sum(int(row["count"]) for row in cells if row["predicted"] != "background")
    assert metrics["precision"] == pytest.approx(right / kept)
    assert metrics["recall"] == pytest.approx(right / real)
    assert metrics["num_objects"] == real
    slices = rows_of(folder / "slices.csv")
    assert [row["name"] for row in slices[:3]] == ["small", "medium", "large"]
    assert float(slices[1]["ap"]) == pytest.approx(metrics["ap_medium"], abs=1e-5)
    assert sum(int(row["num_objects"]) for row in slices[3:]) == real
    found = pq.read_table(folder / "detections.parquet").to_pydict()
    assert found["verdict"].count("hit") == right
    objects = pq.read_table(folder / "objects.parquet").to_pydict()
    assert objects["verdict"].count("hit") == right
    assert len(objects["verdict"]) - objects["verdict"].count("ignored") == real
    for name in ("pr", "confusion", "per_class", "examples"):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > 300


def test_pycocotools_reads_the_detections_and_finds_the_same(written: tuple[Report, Path]) -> None:
    report, folder = written
    truth = pycocotools(report.objects, report.detections, 12, 3).cocoGt.dataset
    truth["images"] = [{"id": name} for name in report.ids]
    truth["categories"] = [{"id": k + 1} for k in range(3)]
    for row in truth["annotations"]:
        row["image_id"], row["category_id"] = report.ids[row["image_id"]], row["category_id"] + 1
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth | {"info": {}}
        coco.createIndex()
        peer = COCOeval(coco, coco.loadRes(str(folder / "detections.json")), "bbox")
        peer.evaluate()
        peer.accumulate()
        peer.summarize()
    assert peer.stats[0] == pytest.approx(report.metrics["ap"], abs=1e-12)


def test_what_nothing_can_be_computed_from_is_left_out_and_named(tmp_path: Path) -> None:
    objects = objects_of((0, 0, (0, 0, 100, 100)))
    report = report_of(objects, detections_of((0, 1, 0.9, (0, 0, 100, 100))), 2, ("cat", "dog"))
    report.write(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["ap"] == metrics["ap.cat"] == metrics["recall"] == 0
    assert "ap.dog" not in metrics
    assert "ap_small" not in metrics
    told = json.loads((tmp_path / "about.json").read_text())["not_measured"].split(", ")
    assert {"ap.dog", "ap50.dog", "ap_small", "ap_medium", "ar_small", "ar_medium"} == set(told)
    assert [row["ap"] for row in rows_of(tmp_path / "per_class.csv")] == ["0", ""]


@pytest.mark.parametrize("with_detection", [False, True])
def test_a_split_without_objects_is_reported(tmp_path: Path, with_detection: bool) -> None:
    rows = [(0, 0, 0.9, (0.0, 0, 10, 10))] if with_detection else []
    report_of(objects_of(), detections_of(*rows), 1, ("cat",)).write(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == {
        "threshold": 0.4, "num_images": 1, "num_objects": 0, "num_ignored": 0, "num_beyond": 0,
        "images_per_s": 12.5,
    }  # fmt: skip


@pytest.mark.parametrize("num_classes", [1, 4, 30])
def test_figures_fit_any_number_of_classes(num_classes: int) -> None:
    objects, detections = drawn(1, 40, num_classes, 9)
    classes = [f"a class of name {k}" for k in range(num_classes)]
    report = report_of(objects, detections, 40, tuple(classes))
    figure = pr_figure(report.matches, classes, 0.4, "made, test split, n = 40")
    assert_nothing_is_cut_off(figure)
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(named) == min(num_classes, 10) + 2
    assert f"{report.metrics['ap50']:.3f}" in named[-2]
    assert_nothing_is_cut_off(examples_figure(report.examples, report.judgement, "made"))


@pytest.mark.parametrize("most", [0, 1, 20])
def test_as_many_examples_are_shown_as_were_asked_for_and_headings_say_of_how_many(most: int) -> None:
    objects, detections = drawn(1, 40, 3, 9)
    judged = report_of(objects, detections, 40, ("a", "b", "c")).judgement
    examples = examples_of(judged, objects, detections, "abc", noise, most)
    num_false = sum(judged.counts[kind] for kind in FALSE_ALARMS)
    totals = {"hit": judged.counts["hit"], "missed": judged.counts["missed"], "wrong": num_false}
    assert max(totals.values()) > 4  # so that 20 are more than a line
    shown = {row: sum(each.row == row for each in examples) for row in totals}
    assert shown == {row: min(most, total) for row, total in totals.items()}
    figure = examples_figure(examples, judged, "made")
    assert_nothing_is_cut_off(figure)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    for row, heading in ROWS.items():
        assert (f"{heading}: {shown[row]} of {totals[row]:,}" in texts) == (most > 0)
    assert sum(len(axes.images) for axes in figure.axes) == len(examples)
    assert ("none to show" in title_of(figure)) == (most == 0)


def test_what_there_is_no_example_of_has_no_line() -> None:
    """And what there are many of takes no line longer than a page shows as it was drawn."""
    box = (10.0, 10, 60, 60)
    objects = objects_of(*((image, 0, box) for image in range(6)))
    report = report_of(objects, detections_of(*((image, 0, 0.9, box) for image in range(6))), 6, ("cat",))
    figure = examples_figure(report.examples, report.judgement, "made")
    [axes] = figure.axes
    texts = [text.get_text() for text in axes.texts if text.get_text() not in ("", "hit, IoU 1.00")]
    assert texts == [f"{ROWS['hit']}: 6 of 6"] and len(axes.images) == 6
    width, height = figure.get_size_inches()
    assert height < 2 * 3.3 + 1.2 and width * DPI < 1.1 * 1180


def test_an_example_shows_the_box_that_it_is_about() -> None:
    objects = objects_of((0, 0, (100, 50, 120, 70)))
    detections = detections_of((0, 0, 0.9, (100, 50, 120, 70)))
    report = report_of(objects, detections, 1, ("cat",))
    black = np.zeros((150, 230, 3), np.uint8)
    (hit,) = examples_of(report.judgement, objects, detections, ["cat"], lambda place: black, 6)
    assert (hit.row, hit.caption, hit.picture.shape) == ("hit", "hit, IoU 1.00", (288, 288, 3))
    green = (hit.picture == [0x34, 0xC7, 0x59]).all(-1)
    rows, columns = np.nonzero(green)
    assert rows.max() - 84 in range(118, 124)  # 20 of 48 px, in the middle
    assert (columns.min(), columns.max()) == (84, 203)  # from the edge 84 to the edge 204


@pytest.mark.parametrize("size", [(100, 100), (230, 150), (150, 230), (20, 20)])
def test_an_example_shows_no_more_grey_than_the_picture_lacks_of_a_square(size: tuple[int, int]) -> None:
    width, height = size
    box = (0.0, 0.0, 0.9 * width, 0.9 * height)
    objects, detections = objects_of((0, 0, box)), detections_of((0, 0, 0.9, box))
    judged = report_of(objects, detections, 1, ("cat",)).judgement
    white = np.full((height, width, 3), 255, np.uint8)
    (hit,) = examples_of(judged, objects, detections, ["cat"], lambda place: white, 6)
    grey = (hit.picture == PAST_BORDER).all(-1)
    grey = grey if width >= height else grey.T
    lacks = CELL_PX * (1 - min(size) / max(size))
    middle, last = grey[CELL_PX // 2], grey[:, -1]  # the box ends before the last
    assert not middle.any()
    for half in (last[: CELL_PX // 2], last[CELL_PX // 2 :]):
        assert half.sum() == pytest.approx(lacks / 2, abs=1)
