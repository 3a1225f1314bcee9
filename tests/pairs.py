"""Reports of two models on the same samples, made up: what tests of the gate compare."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.dataset import Dataset
from tasks.gate import Cost, GateConfig
from tasks.report import Report
from tests.recording import paper_dataset

NUM_CLASSES = 3
CHEAP = Cost(2.0, 10.0)
GATE: dict[str, Any] = {
    "alpha": 0.05, "power": 0.8, "num_draws": 200, "seed": 0, "latency_ratio": 1.5, "latency_floor_ms": 1,
    "memory_ratio": 1.5, "memory_floor_mb": 1, "cost_rounds": 3, "most_uses": 0, "approval": "none",
    "approval_timeout_h": 1,
    "families": {
        "classification": {
            "metrics": {
                "accuracy": {"margin": 0.02, "primary": True},
                "macro_f1": {"margin": 0.02, "primary": True},
                "ece": {"margin": 0.05, "primary": False},
            },
            "slice_margin": 0.05, "slice_fewest": 100,
        },
        "detection": {
            "metrics": {"ap": {"margin": 0.02, "primary": True}, "ap50": {"margin": 0.05, "primary": False}},
            "slice_margin": 0.1, "slice_fewest": 30,
        },
        "faces": {
            "metrics": {"tar_at_far": {"margin": 0.02, "primary": True}, "auc": {"margin": 0.02, "primary": False}},
            "slice_margin": 0.1, "slice_fewest": 50,
        },
        "landmarks": {
            "metrics": {"nme": {"margin": 0.005, "primary": True}},
            "slice_margin": 0.02, "slice_fewest": 20,
        },
        "style": {
            "metrics": {
                "total_share": {"margin": 0.01, "primary": True},
                "content_share": {"margin": 0.02, "primary": False},
                "style_share": {"margin": 0.02, "primary": False},
            },
            "slice_margin": 0.05, "slice_fewest": 20,
        },
    },
}  # fmt: skip


def gate_config(**changes: Any) -> GateConfig:
    return GateConfig.parse({**GATE, **changes}, "gate")


def paired_dataset() -> Dataset:
    return paper_dataset(Path("pets"))


def answers(labels: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Probabilities (N, 3) of a calibrated model that is right where it is said to be, else for the next class."""
    confidence = float(np.clip(right.mean(), 0.4, 0.99))
    predicted = np.where(right, labels, (labels + 1) % NUM_CLASSES)
    rest = (1 - confidence) / (NUM_CLASSES - 1)
    probabilities = np.full((len(labels), NUM_CLASSES), rest, np.float32)
    probabilities[np.arange(len(labels)), predicted] = confidence
    return probabilities


def report(labels: np.ndarray, probabilities: np.ndarray, groups: list[str] | None = None) -> Report:
    """A report of these answers; each sample is a group of its own unless `groups` says which it belongs to."""
    N = len(labels)
    rows = pa.table({
        "id": [f"{i}.png" for i in range(N)], "group": groups or [f"{i:064x}" for i in range(N)],
        "width": [8] * N, "height": [8] * N,
    })  # fmt: skip
    none: Any = None
    return Report(
        metrics={}, about={"device": "cpu"}, view_names=("single",), registered_view="single",
        family="classification", classes=("cat", "dog", "ship"), rows=rows, labels=labels,
        probabilities=probabilities, uncalibrated=probabilities, comparison=none,
        worst=np.empty(0, np.int64), worst_pictures=np.empty((0, 1, 1, 1), np.uint8),
    )  # fmt: skip


def with_groups(given: Report, groups: list[str]) -> Report:
    return replace(given, rows=given.rows.set_column(1, "group", pa.array(groups)))


def two_models(
    generator: np.random.Generator, num: int, first: float, second: float, shared: float = 0.5
) -> tuple[Report, Report]:
    """Reports of two models with these chances to be right; with chance `shared` a sample is equally hard for both."""
    labels = np.arange(num) % NUM_CLASSES
    common = generator.random(num) < shared
    one, other = generator.random(num), generator.random(num)
    other = np.where(common, one, other)
    return report(labels, answers(labels, one < first)), report(labels, answers(labels, other < second))
