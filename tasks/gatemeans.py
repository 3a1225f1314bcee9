"""Two models against each other by a figure of each picture of which less is better: a paired bootstrap of the means.

Slices by what a family adds, by the size of pictures, and by source. Pictures of one group are drawn together.
"""

from collections.abc import Sequence

import numpy as np

from data.dataset import Dataset, Split
from tasks.gate import GateConfig, metric_alphas
from tasks.pairing import Paired, cluster_counts, group_notes, guard, mean_gains, mean_part, weigh
from tasks.slices import picture_slices

Both = tuple[np.ndarray, np.ndarray]  # (N,) of champion and challenger; NaN where there is none
Slice = tuple[str, str, np.ndarray, np.ndarray]  # kind, name, and `Both`, NaN outside


def pair_means(
    values: dict[str, Both], slices: Sequence[Slice], dataset: Dataset, split: Split,
    config: GateConfig, *, metric: str, same: bool,
) -> Paired:  # fmt: skip
    """What `values` of each metric say, by picture; slices are of the first metric, which people call `metric`.

    `slices` are what the family adds, `same` says whether the outputs of both are the same.
    """
    rules = config.rules(dataset.info.family)
    table = dataset.table(split, ["id", "group", "width", "height"])
    groups = table["group"].to_pylist()
    counts = np.array(list(cluster_counts(groups, config.num_draws, config.seed)))
    metrics = []
    for name, alpha in metric_alphas(rules.metrics, tuple(values), config).items():
        (first, second), rule = values[name], rules.metrics[name]
        metrics.append(
            weigh(
                name, (float(np.nanmean(first)), float(np.nanmean(second))), mean_gains(first - second, counts),
                primary=rule.primary, margin=rule.margin, alpha=alpha, power=config.power, test="paired bootstrap",
                less_is_better=True,
            )
        )  # fmt: skip
    first, second = next(iter(values.values()))
    own = [
        (kind, name, np.where(inside, first, np.nan), np.where(inside, second, np.nan))
        for kind, name, inside in picture_slices(table, dataset.info.family)
    ]
    parts = [mean_part(*each, counts, config.alpha) for each in (*slices, *own)]
    known = [part for part in parts if part is not None]
    return Paired(
        num_samples=int((~np.isnan(first)).sum()), unit="pictures", metric=metric, same=same, metrics=tuple(metrics),
        slices=guard(known, config.alpha, rules.slice_margin, rules.slice_fewest),
        notes=group_notes(groups, "pictures"),
    )  # fmt: skip
