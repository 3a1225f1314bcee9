"""What accuracy costs: the table of models, views and ensembles, and its fronts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from tasks.evaluate import evaluate
from tasks.pareto import Comparison, Row, draw_panel, front, names_of, table_rows
from tasks.predict import load_predictor
from tasks.settings import EvaluateConfig
from tests.handmade import write_dataset, write_model

CPU = torch.device("cpu")
POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)
CLASSES = ["a", "b", "c"]


@given(POINTS)
def test_every_point_off_the_front_is_beaten_by_one_on_it_and_none_on_it_is_beaten(
    points: list[tuple[int, int]],
) -> None:
    on = front(points)
    kept = [point for point, is_on in zip(points, on, strict=True) if is_on]
    for point, is_on in zip(points, on, strict=True):
        beaten = any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in kept)
        assert beaten != is_on


@example(83.2, 2.27, 3)  # between ticks at 50 and 200 there is 100 alone
@example(609.0, 1.63, 4)
@given(st.floats(1e-2, 1e5), st.floats(1.01, 1e3), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_the_axis_of_costs_has_at_least_two_labels(slowest: float, ratio: float, num: int) -> None:
    figure = Figure()
    axes = figure.add_subplot()
    speeds = np.geomspace(slowest, slowest * ratio, num).tolist()
    rows = [
        Row(f"m{i}", "single", 1, 0.9, 0.8, 0.95, speed, 1.0, True, True) for i, speed in enumerate(speeds)
    ]
    draw_panel(axes, rows, {}, [(speed, 0.9, True) for speed in speeds], "pre", "images/s")
    low, high = axes.get_xlim()
    figure.draw_without_rendering()
    labels = [
        label.get_text()
        for place, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        if low <= place <= high and label.get_text()
    ]
    assert len(labels) >= 2 and len(set(labels)) == len(labels)


def test_what_was_not_measured_is_on_no_front() -> None:
    assert front([(float("nan"), 1.0), (2.0, 0.5)]) == [False, True]


def test_models_are_told_apart_by_number_only_where_they_must_be(tmp_path: Path) -> None:
    folders = [
        write_model(tmp_path / "a", CLASSES, seed=1),
        write_model(tmp_path / "b", CLASSES, architecture="lenet5", stored_px=16, crop_px=16),
        write_model(tmp_path / "c", CLASSES, seed=2),
    ]
    predictors = [load_predictor(folder, CPU) for folder in folders]
    assert names_of(predictors) == ["resnet8_cifar #0", "lenet5", "resnet8_cifar #2"]


def test_models_together_take_the_sum_of_times_and_weights_and_the_highest_peak(tmp_path: Path) -> None:
    """Worked by hand: of four pictures, A and B are wrong on one each, and right on it together."""
    folders = [write_model(tmp_path / name, CLASSES[:2], seed=seed) for seed, name in enumerate("ab")]
    predictors = [load_predictor(folder, CPU) for folder in folders]
    comparison = Comparison(predictors, ("single",))
    labels = np.array([0, 0, 1, 1])
    a = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]], np.float32)
    b = np.array([[0.7, 0.3], [0.8, 0.2], [0.6, 0.4], [0.1, 0.9]], np.float32)
    for start in (0, 2):  # two pieces
        rows = slice(start, start + 2)
        comparison.see("single", 0, a[rows], labels[rows], 0.5, 30.0)
        comparison.see("single", 1, b[rows], labels[rows], 1.5, 20.0 + start)
    one, two, both = comparison.rows()
    assert (one.accuracy, two.accuracy, both.accuracy) == (0.75, 0.75, 1.0)
    assert (one.images_per_s, two.images_per_s, both.images_per_s) == (4.0, pytest.approx(4 / 3), 1.0)
    weights = one.memory_mb - 30
    num_values = sum(
        value.numel() * value.element_size() for value in predictors[0].members[0].state_dict().values()
    )
    assert weights == pytest.approx(num_values / 2**20)
    assert two.memory_mb == pytest.approx(22 + weights)
    assert both.memory_mb == pytest.approx(30 + 2 * weights)
    assert [row.fast_front for row in (one, two, both)] == [True, False, True]
    assert (both.model, both.num_networks) == ("2 together", 2)


def test_evaluation_compares_each_model_each_view_and_the_first_n_together(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (8, 8), dtype=np.uint8) for _ in range(30)]
    dataset = write_dataset(tmp_path / "made", pictures, [i % 3 for i in range(30)], CLASSES)
    folders = [write_model(tmp_path / str(seed), CLASSES, seed=seed, sharpness=20) for seed in range(3)]
    config = EvaluateConfig(views=("single", "mirror"), registered_view="single", batch_size=8, num_worst=0)
    report = evaluate(folders, dataset, config=config, device=CPU)
    rows = {(row.model, row.view): row for row in report.comparison.rows()}
    assert len(rows) == 2 * (3 + 2)
    for view in config.views:
        assert rows["3 together", view].accuracy == pytest.approx(report.metrics[f"{view}.accuracy"])
        assert rows["3 together", view].images_per_s == pytest.approx(report.metrics[f"{view}.images_per_s"])
    alone = evaluate(folders[1:2], dataset, config=config, device=CPU)
    assert rows["resnet8_cifar #1", "mirror"].accuracy == alone.metrics["mirror.accuracy"]
    pair = evaluate(folders[:2], dataset, config=config, device=CPU)
    assert rows["2 together", "single"].accuracy == pair.metrics["accuracy"]
    accuracies = [row["accuracy"] for row in table_rows(report.comparison.rows())]
    assert accuracies == sorted(accuracies, reverse=True)
    report.write(tmp_path / "out")
    assert (tmp_path / "out" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "out" / "pareto.csv").read_text().splitlines()) == 1 + len(rows)
