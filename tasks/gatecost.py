"""What an answer of each of two models takes: latency and memory, measured in turns on the same samples.

In turns, so that whatever else this machine does falls on both; medians, so that a hiccup does not count.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from tasks.gate import Cost
from tasks.memory import PeakMemory
from tasks.modelfile import model_files
from tasks.predict import default_device
from tasks.predictors import Answering, open_predictor

MIB = 2**20


def measure_costs(
    folders: tuple[Path, Path], blobs: Sequence[bytes], rounds: int, device: torch.device | None = None
) -> tuple[Cost, Cost]:
    """The costs of the models in two folders: the median latency of single samples, and memory.

    Memory is that of the weights and the peak growth while all of `blobs` are answered at once.
    """
    device = device or default_device()
    predictors = [open_predictor(folder, device) for folder in folders]
    for predictor in predictors:  # the first pass of a shape compiles and allocates
        predictor.predict(blobs[:1])
    seconds: list[list[float]] = [[], []]
    for i in range(rounds):
        for side in (0, 1) if i % 2 else (1, 0):
            seconds[side].append(time_of(predictors[side], blobs[i % len(blobs)]))
    costs = []
    for folder, predictor, times in zip(folders, predictors, seconds, strict=True):
        with PeakMemory(device) as memory:
            predictor.predict(blobs)
        weights_mb = sum((folder / name).stat().st_size for name in model_files(predictor.card)) / MIB
        memory_mb = None if memory.megabytes is None else weights_mb + memory.megabytes
        costs.append(Cost(1000 * median(times), memory_mb, memory.unmeasured))
    return costs[0], costs[1]


def time_of(predictor: Answering, blob: bytes) -> float:
    """Seconds that one answer takes, from encoded bytes on."""
    began = time.perf_counter()
    predictor.predict([blob])
    return time.perf_counter() - began
