"""Networks for landmarks against each other: the normalised mean error by a paired bootstrap of pictures.

Slices by landmark, and those of tasks.gatemeans.
"""

import numpy as np

from data.dataset import Dataset, Split
from tasks.gate import GateConfig
from tasks.gatemeans import pair_means
from tasks.landmarkmetrics import FAILURES, nan_mean
from tasks.landmarkreport import Report
from tasks.pairing import Paired


def pair(champion: Report, challenger: Report, dataset: Dataset, split: Split, config: GateConfig) -> Paired:
    """What the two reports, of one split of `dataset`, say together; raises ValueError where they are of others."""
    if champion.ids != challenger.ids or champion.names != challenger.names:
        raise ValueError(
            f"the two models were not looked at on the same {split} pictures of {dataset.info.name}"
        )
    first, second = nan_mean(champion.errors, 1), nan_mean(challenger.errors, 1)
    failed = {
        f"failures_at_{limit:g}": (failures(first, limit), failures(second, limit)) for limit in FAILURES
    }
    points = [
        ("point", name, champion.errors[:, i], challenger.errors[:, i])
        for i, name in enumerate(champion.names)
    ]
    same = bool(np.array_equal(champion.found_xy, challenger.found_xy))
    values = {"nme": (first, second), **failed}
    return pair_means(values, points, dataset, split, config, metric="NME", same=same)


def failures(errors: np.ndarray, limit: float) -> np.ndarray:
    """1 for an error above the limit, else 0; NaN where there is none."""
    return np.where(np.isnan(errors), np.nan, (errors > limit).astype(np.float64))
