"""Classifiers against each other on the same samples: pictures, signals, volumes.

Accuracy by McNemar's exact test, which the bootstrap of groups must agree with; macro-F1 and ECE by the bootstrap.
Slices by class, size and source: Tango's bound of the difference of two paired shares; harm by the exact sign test.
"""

import numpy as np

from data.dataset import Dataset, Split
from tasks.compare import PAIRED, Resampled, mcnemar
from tasks.gate import GateConfig, metric_alphas
from tasks.pairing import (
    Paired,
    Part,
    cluster_counts,
    detectable_by_mcnemar,
    group_notes,
    guard,
    share_part,
    weigh,
)
from tasks.report import Report
from tasks.slices import members_of_slices

LESS_IS_BETTER = ("nll", "brier", "ece")
SLICES = ("class", "size", "source")


def pair(champion: Report, challenger: Report, dataset: Dataset, split: Split, config: GateConfig) -> Paired:
    """What the two reports, of one split of `dataset`, say together; raises ValueError where they are of others."""
    if champion.ids != challenger.ids or not np.array_equal(champion.labels, challenger.labels):
        raise ValueError(
            f"the two models were not looked at on the same {split} samples of {dataset.info.name}"
        )
    rules, groups = config.rules(dataset.info.family), champion.rows["group"].to_pylist()
    alphas = metric_alphas(rules.metrics, PAIRED, config)
    sides = [Resampled(report.probabilities, report.labels) for report in (champion, challenger)]
    places = np.arange(len(groups))
    values = np.array([side.metrics(places) for side in sides])
    drawn = []
    for counts in cluster_counts(groups, config.num_draws, config.seed):
        chosen = np.repeat(places, counts)
        first, second = (side.metrics(chosen) for side in sides)
        drawn.append(second - first)
    draws = np.array(drawn)
    metrics = []
    for name, alpha in alphas.items():
        i, less = PAIRED.index(name), name in LESS_IS_BETTER
        exact = None
        if name == "accuracy":
            split_by = mcnemar(sides[0].right, sides[1].right)
            discordant = (split_by.only_first + split_by.only_second) / len(places)
            exact = (split_by.p_value, detectable_by_mcnemar(len(places), discordant, alpha, config.power))
        metrics.append(
            weigh(
                name, (values[0, i], values[1, i]), -draws[:, i] if less else draws[:, i],
                primary=rules.metrics[name].primary, margin=rules.metrics[name].margin, alpha=alpha,
                power=config.power, test="McNemar's exact test" if exact else "paired bootstrap",
                less_is_better=less, exact=exact,
            )
        )  # fmt: skip
    parts = slice_parts(champion, challenger, config.alpha)
    notes = group_notes(groups, "samples")
    return Paired(
        num_samples=len(places), unit="samples", metric="accuracy",
        same=bool(np.array_equal(champion.probabilities, challenger.probabilities)),
        metrics=tuple(metrics), slices=guard(parts, config.alpha, rules.slice_margin, rules.slice_fewest),
        notes=notes,
    )  # fmt: skip


def slice_parts(champion: Report, challenger: Report, alpha: float) -> list[Part]:
    """The slices by class, size and source."""
    first, second = champion.predicted == champion.labels, challenger.predicted == challenger.labels
    names = [champion.classes[label] for label in champion.labels.tolist()]
    return [
        share_part(kind, name, first[members], second[members], alpha)
        for kind, name, members in members_of_slices(champion.rows, champion.family, names)
        if kind in SLICES
    ]
