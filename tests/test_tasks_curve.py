"""Learning curves: which pictures a cell sees, how long it trains, and that a finished one is not run again."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as property_of
from hypothesis import strategies

from data.dataset import Dataset
from data.stream import layout_of
from tasks import cluster, curve, features
from tasks.classification import changing, without_chance
from tasks.curve import best_at, measure, points_of
from tasks.curveplan import Cell, CellResult, CurveConfig, choose_rows
from tasks.curvereport import curve_figure, write_curve
from tasks.loop import BatchPlan
from tasks.train import train
from tasks.transfer import Weights
from tests.test_tasks_transfer import config_of, given
from tests.tiny import tiny_dataset

FAMILY = "classification"
QUICK = {"shots": [1, 3], "modes": ["head", "all"], "num_seeds": 2, "num_steps": 3, "num_stages": 1}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(FAMILY, tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of features for each test alone."""
    monkeypatch.setattr(features, "features", lambda: tmp_path / "features")
    return tmp_path / "features"


@pytest.fixture(scope="module")
def weights() -> Weights:
    return given(10)


def quick(**changes: Any) -> CurveConfig:
    return CurveConfig.parse({**QUICK, **changes}, "learning_curve")


def run(
    dataset: Dataset,
    weights: Weights,
    folder: Path,
    wanted: CurveConfig,
    executor: Any = "in_process",
    **changes: Any,
) -> list[CellResult]:
    return measure(
        config_of(**changes), wanted, dataset, weights, folder, executor, lambda _done, _total, _result: None
    )


def timeless(results: list[CellResult]) -> list[dict[str, Any]]:
    return [{**vars(result), "time_s": 0.0} for result in results]


# --- which pictures ----------------------------------------------------------------------------------------------


@property_of(
    strategies.lists(strategies.integers(0, 4), min_size=1, max_size=60),
    strategies.integers(1, 12),
    strategies.integers(0, 3),
)
def test_fewer_pictures_are_among_more_and_no_class_is_left_out(
    labels: list[int], shots: int, seed: int
) -> None:
    all_labels = np.array(labels)
    few, more = choose_rows(all_labels, shots, seed), choose_rows(all_labels, shots + 1, seed)
    assert set(few.tolist()) <= set(more.tolist())
    assert len(few) == len(set(few.tolist())) and (np.diff(few) > 0).all()
    for label in set(labels):
        assert (all_labels[few] == label).sum() == min(shots, labels.count(label))


def test_a_seed_chooses_its_pictures_again_and_another_one_others() -> None:
    labels = np.arange(1000) % 2
    assert np.array_equal(choose_rows(labels, 20, 0), choose_rows(labels, 20, 0))
    assert not np.array_equal(choose_rows(labels, 20, 0), choose_rows(labels, 20, 1))


def test_a_class_with_too_few_pictures_is_named(digits: Dataset) -> None:
    least = min(digits.info.counts["train"].items(), key=lambda item: item[1])
    assert curve.scarce(digits.info, least[1]) == ""
    assert f"{least[0]} {least[1]}" in curve.scarce(digits.info, least[1] + 1)


# --- how a cell trains -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_images", [2, 10, 63, 64, 65, 640])
def test_every_cell_takes_the_same_number_of_steps(num_images: int) -> None:
    config = curve.config_of(config_of(), quick(num_steps=37), Cell("all", 1, 0), num_images, 37)
    plan = BatchPlan.of(config.train, curve.Layout((num_images,), 0), 0, 1)
    assert plan.num_steps == 37
    assert plan.batch_size == min(num_images, 64)


def test_a_cell_of_a_recipe_for_several_workers_runs_in_one_process_to_its_end() -> None:
    recipe = config_of(
        train__num_workers=4, train__min_workers=2, train__augment_workers=2, train__batch_size=48,
        train__time_budget_s=9.0, train__validate_every_epochs=1, train__patience=2,
    )  # fmt: skip
    settings = curve.config_of(recipe, quick(), Cell("all", 3, 5), 30, 7).train
    assert (settings.num_workers, settings.min_workers, settings.augment_workers) == (1, 0, 0)
    assert (settings.time_budget_s, settings.patience, settings.seed) == (0, 0, 5)


def test_without_a_number_the_steps_are_the_recipes_on_all_of_train(digits: Dataset) -> None:
    base = config_of(train__epochs=2.0)
    steps = BatchPlan.of(base.train, layout_of(digits, "train"), 0, 1).num_steps
    assert curve.steps_of(base, quick(num_steps=0), digits) == steps > 2


def test_the_head_sees_plain_pictures_and_stages_are_cached_only_where_nothing_is_left_to_chance() -> None:
    plain, moved = (
        config_of(),
        config_of(augment__mirror=True, augment__brightness=0.2, train__growth=[[8, 0.5]]),
    )
    assert changing(moved.augment) == ["mirror", "brightness"]
    assert changing(without_chance(moved.augment)) == []

    def of(base: Any, mode: Any) -> Any:
        return curve.config_of(base, quick(), Cell(mode, 3, 0), 30, 3)

    head = of(moved, "head")
    assert head.transfer.cache_features and not changing(head.augment) and head.train.growth == ()
    assert of(plain, "stages").transfer.cache_features
    assert not of(moved, "stages").transfer.cache_features
    mixing = config_of(augment__mixup_alpha=0.2, augment__mixing_until=0.8)  # whose end is refused without it
    assert of(mixing, "head").augment.mixing_until == 1
    assert of(moved, "stages").augment == of(moved, "all").augment == moved.augment
    assert of(plain, "scratch").transfer.weights == ""


@pytest.mark.parametrize("mode", ["head", "stages", "all", "scratch"])
def test_a_cell_with_all_pictures_is_ordinary_training(
    digits: Dataset, weights: Weights, tmp_path: Path, mode: Any
) -> None:
    wanted = quick(shots=[10_000], modes=[mode], num_seeds=1, num_steps=0)
    [cell] = run(digits, weights, tmp_path / "curve", wanted)
    frozen = {"head": ("head", 0), "stages": ("stages", 1)}.get(mode, ("all", 0))
    config = config_of(
        transfer__mode=frozen[0],
        transfer__num_stages=frozen[1],
        transfer__cache_features=mode in ("head", "stages"),
        transfer__weights="" if mode == "scratch" else "test",
    )
    alone = train(
        FAMILY, config, digits, folder=tmp_path / "alone", key="k", digest="", executor="in_process",
        weights=None if mode == "scratch" else weights,
    )  # fmt: skip
    assert cell.num_images == digits.info.num_images("train") and cell.num_steps == alone.num_steps
    assert cell.accuracy == alone.metrics["val_accuracy"]
    assert cell.loss == pytest.approx(alone.metrics["val_loss"], rel=1e-5)


def test_augmented_cells_train_on_their_own_pictures_alone(
    digits: Dataset, weights: Weights, tmp_path: Path
) -> None:
    wanted = quick(shots=[2], modes=["all"], num_seeds=1)
    changes = {"augment__random_crop": True, "input__pad_px": 2}
    [cell] = run(digits, weights, tmp_path, wanted, **changes)
    assert (
        cell.num_images == 20 and cell.num_steps == 3 and 0 <= cell.accuracy <= 1 and math.isfinite(cell.loss)
    )


def test_pictures_too_large_for_memory_are_refused(digits: Dataset, weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"take .* GB of memory, and train.data_gb is 1e-05: raise it, or lower"
    ):
        run(digits, weights, tmp_path, quick(modes=["all"]), train__data_gb=1e-5)


# --- going on ----------------------------------------------------------------------------------------------------


def test_a_finished_cell_is_not_run_again_and_features_are_computed_once(
    digits: Dataset, weights: Weights, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(digits, weights, tmp_path, quick())
    assert len(first) == len(list((tmp_path / "cells").iterdir())) == 8
    assert len(list(cache.glob("*.parquet"))) == 2
    (tmp_path / "cells" / "all-3-1.json").unlink()
    ran: list[Cell] = []
    real = curve.run_cell

    def watched(cell: Cell, *arguments: Any) -> CellResult:
        ran.append(cell)
        return real(cell, *arguments)

    monkeypatch.setattr(curve, "run_cell", watched)
    assert timeless(run(digits, weights, tmp_path, quick())) == timeless(first)
    assert ran == [Cell("all", 3, 1)]


def test_features_are_told_of_while_they_are_computed_and_before_any_cell(
    digits: Dataset, weights: Weights, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []

    def measured(folder: str) -> None:
        measure(
            config_of(), quick(modes=["head"]), digits, weights, tmp_path / folder, "in_process",
            lambda done, total, _result: told.append(("cells", done, total)),
            lambda done, total: told.append(("features", done, total)),
        )  # fmt: skip

    measured("first")
    num = digits.info.num_images("train") + digits.info.num_images("val")
    heard = [each for each in told if each[0] == "features"]
    assert heard[0] == ("features", 0, num) and heard[-1] == ("features", num, num)
    assert told == [("cells", 0, 4), *heard, *(("cells", done, 4) for done in range(1, 5))]
    told.clear()
    measured("second")  # they are read
    assert told == [("cells", done, 4) for done in range(5)]


def test_a_loss_that_is_not_finite_names_its_cell(digits: Dataset, weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"^cell all-1-0: the loss is not finite"):
        run(
            digits,
            weights,
            tmp_path,
            quick(modes=["all"], num_steps=30),
            optim__lr=1e30,
            optim__clip_norm=0.0,
        )


@pytest.mark.slow
def test_ray_gives_the_same_cells(digits: Dataset, weights: Weights, tmp_path: Path) -> None:
    here = run(digits, weights, tmp_path / "here", quick(modes=["head", "all", "scratch"]))
    try:
        there = run(digits, weights, tmp_path / "ray", quick(modes=["head", "all", "scratch"]), "ray")
    finally:
        cluster.disconnect()
    for one, two in zip(timeless(here), timeless(there), strict=True):
        assert one.pop("loss") == pytest.approx(two.pop("loss"), rel=1e-4)
        assert one == two


# --- what is told ------------------------------------------------------------------------------------------------


def results() -> list[CellResult]:
    found = {("head", 1): (0.5, 0.7), ("all", 1): (0.4, 0.6), ("head", 5): (0.8, 0.8), ("all", 5): (0.9, 0.8)}
    return [
        CellResult(mode, shots, seed, 2 * shots, 3, accuracy, 1.0, 0.1)  # type: ignore[arg-type]
        for (mode, shots), accuracies in found.items()
        for seed, accuracy in enumerate(accuracies)
    ]


def test_points_are_means_and_sample_deviations_of_seeds() -> None:
    points = points_of(results())
    assert [point.mean for point in points] == pytest.approx([0.6, 0.5, 0.8, 0.85])
    assert [point.deviation for point in points] == pytest.approx([0.02**0.5, 0.02**0.5, 0, 0.005**0.5])
    assert best_at(points, 1).mode == "head" and best_at(points, 5).mode == "all"
    assert math.isnan(points_of(results()[:1])[0].deviation)


def test_the_files_hold_every_cell_and_the_figure_a_line_a_mode(tmp_path: Path) -> None:
    points = points_of(results())
    table, document, picture = write_curve(tmp_path, results(), points, {"dataset": "x"}, "x")
    assert len(table.read_text().splitlines()) == 9
    written = json.loads(document.read_text())
    assert [row["best"] for row in written["points"]] == [True, False, False, True]
    assert len(written["cells"]) == 8 and picture.stat().st_size > 10_000
    axes = curve_figure(points, "x").axes[0]
    assert [float(y) for y in axes.get_lines()[0].get_ydata()] == pytest.approx([0.6, 0.8])
    assert axes.get_xscale() == "log"


def test_the_labels_of_the_accuracy_axis_are_its_ticks() -> None:
    pair = [
        CellResult("head", shots, 0, 2 * shots, 5, accuracy, 1.0, 1.0)
        for shots, accuracy in ((1, 0.542), (5, 0.719))
    ]
    figure = curve_figure(points_of(pair), "x")
    figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    labels = [float(label.get_text().rstrip("%")) for label in axis.get_ticklabels()]
    assert labels == pytest.approx([100 * tick for tick in axis.get_ticklocs()])
