"""Does a small network learn more from an ensemble than from the labels alone?

    PYTHONPATH=. .venv/bin/python benchmarks/distil.py ../shared/datasets/cifar10_mini.tar [--seeds 3]

The teacher is an ensemble of three airnets, the student resnet8_cifar, on the same few pictures; every seed trains the
student twice, by the same recipe, with and without the teacher. Accuracies are of the test split, view mirror.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from pipelines import environment

if "GOMP_SPINCOUNT" not in os.environ:  # OpenMP reads it when torch is imported
    environment.prepare()

from data.dataset import Dataset
from data.ingest import IngestConfig, ingest
from pipelines.configuration import configuration
from tasks.distil import Teacher
from tasks.ensemble import combine
from tasks.evaluate import evaluate
from tasks.train import train
from tasks.weights import read_teacher

RATES = {
    "name": "adamw",
    "lr": 0.003,
    "head_lr": 0.003,
    "bias_lr": 0.003,
    "weight_decay": 0.01,
    "label_smoothing": 0.0,
}
TRAIN = {"batch_size": 64, "growth": [], "validate_every_epochs": 0}
EVALUATE = {"views": ["mirror"], "registered_view": "mirror"}
NUM_MEMBERS = 3


def trained(dataset: Dataset, folder: Path, changes: dict[str, Any], teacher: Teacher | None = None) -> Path:
    """Train by the recipe with these changes; the model's folder."""
    base = {"optim": RATES, "evaluate": EVALUATE, "distil": {"teacher": teacher.source if teacher else ""}}
    config = configuration("classification", dataset.info.name, "cifar10_narrow", base | changes)
    result = train(
        "classification", config, dataset, folder=folder, key=folder.name, digest="", executor="in_process",
        teacher=teacher,
    )  # fmt: skip
    return result.model_folder


def accuracy(dataset: Dataset, model: Path) -> float:
    config: Any = configuration("classification", dataset.info.name, "cifar10_narrow", {"evaluate": EVALUATE})
    return evaluate([model], dataset, config=config.evaluate).metrics["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teacher-epochs", type=int, default=25)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--teacher", type=Path, help="folder of a trained teacher, to spare its training")
    options = parser.parse_args()
    values = {"val_fraction": 0.1, "test_fraction": 0.2, "near_duplicate_distance": 11, "max_source_gb": 1}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = IngestConfig.parse(values, "benchmark")
        ingest(options.archive, name="mini", family="classification", store=folder / "store", config=config)
        dataset = Dataset.open(folder / "store" / "mini")
        if options.teacher is None:
            settings = [
                TRAIN | {"epochs": options.teacher_epochs, "seed": seed} for seed in range(NUM_MEMBERS)
            ]
            members = [
                trained(dataset, folder / f"member-{i}", {"train": each}) for i, each in enumerate(settings)
            ]
            combine(members, folder / "teacher")
        teacher = read_teacher(str(options.teacher or folder / "teacher"), Path)
        print(f"teacher: {accuracy(dataset, Path(teacher.source)):.1%}")
        rows = []
        for seed in range(options.seeds):
            changes = {
                "model": {"name": "resnet8_cifar"},
                "train": TRAIN | {"epochs": options.epochs, "seed": seed},
            }
            alone = accuracy(dataset, trained(dataset, folder / f"alone-{seed}", changes))
            taught = accuracy(dataset, trained(dataset, folder / f"taught-{seed}", changes, teacher))
            rows.append((alone, taught))
            print(f"seed {seed}: alone {alone:.1%}, taught {taught:.1%}", flush=True)
    for label, column in zip(("alone", "taught"), zip(*rows, strict=True), strict=True):
        spread = statistics.stdev(column) if len(column) > 1 else 0.0
        print(f"{label}: {statistics.mean(column):.1%} ± {spread:.1%}")
    print(f"test pictures: {dataset.info.num_images('test')}")


if __name__ == "__main__":
    main()
