"""Networks for landmarks against each other: the normalised mean error by a paired bootstrap of pictures.

Less is better. Slices by landmark, by the size of pictures, and by source. Pictures of one group are drawn together.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from data.dataset import Dataset, Split
from tasks.gate import GateConfig, metric_alphas
from tasks.landmarkmetrics import FAILURES, nan_mean
from tasks.landmarkreport import Report
from tasks.pairing import Paired, cluster_counts, group_notes, guard, mean_gains, mean_part, weigh
from tasks.slices import picture_slices

FAILED = {f"failures_at_{limit:g}": limit for limit in FAILURES}
METRICS = ("nme", *FAILED)


def pair(champion: Report, challenger: Report, dataset: Dataset, split: Split, config: GateConfig) -> Paired:
    """What the two reports, of one split of `dataset`, say together; raises ValueError where they are of others."""
    if champion.ids != challenger.ids or champion.names != challenger.names:
        raise ValueError(
            f"the two models were not looked at on the same {split} pictures of {dataset.info.name}"
        )
    rules = config.rules(dataset.info.family)
    table = dataset.table(split, ["id", "group", "width", "height"])
    groups = table["group"].to_pylist()
    counts = np.array(list(cluster_counts(groups, config.num_draws, config.seed)))
    own = (nan_mean(champion.errors, 1), nan_mean(challenger.errors, 1))
    metrics = []
    for name, alpha in metric_alphas(rules.metrics, METRICS, config).items():
        sides = own if name == "nme" else (failures(own[0], FAILED[name]), failures(own[1], FAILED[name]))
        rule = rules.metrics[name]
        metrics.append(
            weigh(
                name, (float(np.nanmean(sides[0])), float(np.nanmean(sides[1]))),
                mean_gains(sides[0] - sides[1], counts), primary=rule.primary, margin=rule.margin, alpha=alpha,
                power=config.power, test="paired bootstrap", less_is_better=True,
            )
        )  # fmt: skip
    parts = [
        part
        for kind, name, first, second in slices_of(champion, challenger, table)
        if (part := mean_part(kind, name, first, second, counts, config.alpha)) is not None
    ]
    notes = group_notes(groups, "pictures")
    return Paired(
        num_samples=int((~np.isnan(own[0])).sum()), unit="pictures", metric="NME",
        same=bool(np.array_equal(champion.found_xy, challenger.found_xy)), metrics=tuple(metrics),
        slices=guard(parts, config.alpha, rules.slice_margin, rules.slice_fewest), notes=notes,
    )  # fmt: skip


def failures(errors: np.ndarray, limit: float) -> np.ndarray:
    """1 for an error above the limit, else 0; NaN where there is none."""
    return np.where(np.isnan(errors), np.nan, (errors > limit).astype(np.float64))


def slices_of(
    champion: Report, challenger: Report, table: pa.Table
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Kind and name of each slice, and the errors (N,) of both models in it; NaN outside."""
    for i, name in enumerate(champion.names):
        yield "point", name, champion.errors[:, i], challenger.errors[:, i]
    own = (nan_mean(champion.errors, 1), nan_mean(challenger.errors, 1))
    for kind, name, inside in picture_slices(table, "landmarks"):
        yield kind, name, np.where(inside, own[0], np.nan), np.where(inside, own[1], np.nan)
