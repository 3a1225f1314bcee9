"""Figures: everything is inside the picture, nothing overlaps, and what is drawn is what was counted."""

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from tasks.figures import (
    MAX_BARS,
    MAX_SLICES,
    NUM_CONFUSIONS,
    confusion_figure,
    mistakes_figure,
    per_class_figure,
    reliability_figure,
    save_figure,
    short,
    slices_figure,
)
from tasks.metrics import confusion_matrix, per_class, reliability
from tasks.slices import Slice

HOSTILE = ["", "$x^2$", "a\nb", "ants & <bees>", "x" * 300, "_under\\score", "猫", "%s{}"]
WHAT = "a dataset of a rather long name, test split, n = 10,000; accuracy 93.31%, view mirror_shift"


def names(num_classes: int) -> list[str]:
    return [f"class of number {i:04d}" for i in range(num_classes)]


def counts(num_classes: int) -> np.ndarray:
    rng = np.random.default_rng(num_classes)
    labels = rng.integers(0, num_classes, 20 * num_classes)
    wrong = rng.random(len(labels)) < 0.2
    return confusion_matrix(labels, np.where(wrong, rng.permutation(labels), labels), num_classes)


def outputs(num_classes: int = 10, num_samples: int = 500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    probabilities = rng.dirichlet(np.full(num_classes, 0.2), num_samples)
    return probabilities, rng.integers(0, num_classes, num_samples)


def title_of(figure: Figure) -> str:
    return " ".join(figure.get_suptitle().split())


def assert_nothing_is_cut_off(figure: Figure) -> None:
    figure.draw_without_rendering()
    drawn, page = figure.get_tightbbox(), figure.bbox_inches
    assert min(drawn.x0, drawn.y0) > -0.02  # inches
    assert drawn.x1 < page.x1 + 0.02
    assert drawn.y1 < page.y1 + 0.02


def assert_labels_do_not_overlap(axes: Axes) -> None:
    boxes = sorted((label.get_window_extent() for label in axes.get_yticklabels()), key=lambda box: box.y0)
    for below, above in itertools.pairwise(boxes):
        assert below.y1 <= above.y0 + 1.5  # ascenders may touch


def assert_no_picture_touches_another(axes: Axes) -> None:
    boxes = [
        *(image.get_window_extent() for image in axes.images),
        *(t.get_window_extent() for t in axes.texts),
    ]
    for one, other in itertools.combinations(boxes, 2):
        apart = one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0
        assert apart


def bar_heights(axes: Axes) -> list[float]:
    return [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]


@pytest.mark.parametrize("num_classes", [2, 3, 10, 25, 26, 100])
def test_a_confusion_matrix_is_legible_at_any_number_of_classes(num_classes: int) -> None:
    figure = confusion_figure(counts(num_classes), names(num_classes), WHAT)
    assert_nothing_is_cut_off(figure)
    assert len(figure.axes[0].get_yticklabels()) == num_classes
    assert_labels_do_not_overlap(figure.axes[0])
    assert all(float(label.get_fontsize()) >= 5 for label in figure.axes[0].get_yticklabels())


def test_each_cell_of_a_small_confusion_matrix_shows_its_count() -> None:
    confusion = counts(10)
    figure = confusion_figure(confusion, names(10), WHAT)
    shown = {
        (int(text.get_position()[1]), int(text.get_position()[0])): int(text.get_text().replace(",", ""))
        for text in figure.axes[0].texts
    }
    assert shown == {(row, column): confusion[row, column] for row, column in np.argwhere(confusion)}


def test_a_large_confusion_matrix_lists_the_most_frequent_confusions() -> None:
    confusion = np.diag(np.full(30, 50))
    confusion[3, 7], confusion[9, 2] = 11, 12
    figure = confusion_figure(confusion, [f"c{i}" for i in range(30)], WHAT)
    listed = [axes for axes in figure.axes if "Most frequent confusions" in axes.get_title()]
    assert len(listed) == 1
    assert [label.get_text() for label in listed[0].get_yticklabels()] == ["c9 → c2", "c3 → c7"]
    many = confusion_figure(counts(60), names(60), WHAT)
    assert len(many.axes[-1].get_yticklabels()) == NUM_CONFUSIONS


def test_a_thousand_classes_are_numbered_not_named() -> None:
    figure = confusion_figure(counts(1000), names(1000), WHAT)
    assert len(figure.axes[0].get_yticklabels()) < 20
    assert_nothing_is_cut_off(figure)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_classes_are_in_order_of_f1(num_classes: int) -> None:
    figures = per_class(counts(num_classes))
    figure = per_class_figure(figures, names(num_classes), WHAT)
    assert_nothing_is_cut_off(figure)
    (axes,) = figure.axes
    assert_labels_do_not_overlap(axes)
    order = np.argsort(figures.f1, kind="stable")
    expected = [f"{short(names(num_classes)[i])} ({figures.support[i]})" for i in order]
    assert [label.get_text() for label in axes.get_yticklabels()] == expected
    assert axes.yaxis_inverted()  # the first of them is at the top


def test_of_many_classes_those_of_lowest_f1_are_shown() -> None:
    figure = per_class_figure(per_class(counts(140)), names(140), WHAT)
    assert len(figure.axes[0].get_yticklabels()) == MAX_BARS
    assert "the 100 of lowest F1, of 140" in title_of(figure)


def test_the_reliability_figure_draws_the_table() -> None:
    table = reliability(*outputs())
    figure = reliability_figure({"at temperature 1": table}, WHAT)
    assert_nothing_is_cut_off(figure)
    upper, lower = figure.axes
    full = table.count > 0
    assert bar_heights(upper) == table.accuracy[full].tolist()
    assert bar_heights(lower) == table.count.tolist()
    assert upper.get_title() == f"at temperature 1: ECE {table.expected_error:.4f}"


def test_the_reliability_figure_shows_before_and_after_at_one_scale() -> None:
    probabilities, labels = outputs()
    tables = {
        "before": reliability(probabilities, labels),
        "after": reliability(probabilities**0.3 / (probabilities**0.3).sum(1, keepdims=True), labels),
    }
    figure = reliability_figure(tables, WHAT)
    assert_nothing_is_cut_off(figure)
    for (name, table), upper, lower in zip(tables.items(), figure.axes[:2], figure.axes[2:], strict=True):
        assert upper.get_title() == f"{name}: ECE {table.expected_error:.4f}"
        assert bar_heights(lower) == table.count.tolist()
    assert figure.axes[2].get_ylim() == figure.axes[3].get_ylim()


@pytest.mark.parametrize("num_slices", [0, 1, 12, 60])
def test_the_slices_figure_shows_the_worst_of_them(num_slices: int) -> None:
    slices = [
        Slice("source", names(num_slices)[i], 20 + i, 0.9, 0.8, 0.95, few=i < 10, below=i % 2 == 0)
        for i in range(num_slices)
    ]
    figure = slices_figure(slices, 0.96, WHAT)
    assert_nothing_is_cut_off(figure)
    (axes,) = figure.axes
    assert_labels_do_not_overlap(axes)
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == [f"source: {short(each.name)} ({each.num_images})" for each in slices[:MAX_SLICES]]
    assert (f"the worst {MAX_SLICES} of {num_slices}" in title_of(figure)) == (num_slices > MAX_SLICES)


@pytest.mark.parametrize(("num_shown", "channels"), [(1, 3), (5, 1), (24, 3), (100, 1)])
def test_every_mistake_has_its_picture_and_caption(num_shown: int, channels: int) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (num_shown, channels, 8, 8), dtype=np.uint8)
    captions = [(f"true class number {i}", f"another class {i}", 0.987) for i in range(num_shown)]
    figure = mistakes_figure(pictures, captions, 1234, WHAT)
    assert_nothing_is_cut_off(figure)
    (axes,) = figure.axes
    assert len(axes.images) == len(axes.texts) == num_shown
    assert axes.texts[0].get_text() == "true class number 0\n→ another class 0\n98.7%"
    for image, picture in zip(axes.images, pictures, strict=True):
        pixels = image.get_array()
        assert pixels is not None
        assert np.array_equal(pixels[:, :, 0], picture[0])
    assert_no_picture_touches_another(axes)
    assert f"The {num_shown} most confident of 1,234 mistakes" in title_of(figure)


def test_captions_of_neighbours_do_not_overlap() -> None:
    captions = [("LONG NAMES OF AN AUTHOR WHO SHOUTS", "黑龙江野生东北虎幼崽的照片集", 1.0)] * 12
    figure = mistakes_figure(np.zeros((12, 1, 8, 8), np.uint8), captions, 12, WHAT)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.draw_without_rendering()
        assert_no_picture_touches_another(figure.axes[0])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        ("two\n lines", "two lines"),
        ("x" * 22, "x" * 22),
        ("x" * 23, "x" * 21 + "…"),
        ("猫" * 11, "猫" * 11),
        ("猫" * 12, "猫" * 10 + "…"),
        ("", ""),
    ],
)
def test_long_names_are_cut_to_a_width(name: str, shown: str) -> None:
    assert short(name) == shown


def test_no_mistake_is_said() -> None:
    figure = mistakes_figure(np.zeros((0, 1, 8, 8), np.uint8), [], 0, WHAT)
    assert title_of(figure).startswith("No mistakes")


def test_class_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    """Formulas, newlines, long names, and scripts that the font lacks."""
    num = len(HOSTILE)
    captions = [(name, HOSTILE[0], 0.5) for name in HOSTILE]
    figures = [
        confusion_figure(counts(num), HOSTILE, "$what$"),
        per_class_figure(per_class(counts(num)), HOSTILE, "$what$"),
        mistakes_figure(np.zeros((num, 3, 4, 4), np.uint8), captions, num, "$what$"),
        confusion_figure(counts(32), HOSTILE * 4, "$what$"),
    ]
    for number, figure in enumerate(figures):
        file = tmp_path / f"{number}.png"
        save_figure(figure, file)
        with Image.open(file) as picture:
            assert picture.format == "PNG"
        assert any("$x^2$" in text.get_text() for text in figure.findobj(Text))
        assert not any(text.get_parse_math() for text in figure.findobj(Text) if "$" in text.get_text())


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_figure(confusion_figure(counts(10), names(10), WHAT), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
