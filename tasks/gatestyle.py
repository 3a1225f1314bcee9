"""Networks that stylise against each other: what J is of each picture, by a paired bootstrap of pictures.

    total_share     J of what a network made of a picture, as a share of J of the picture as it was
    content_share   the content cost of it, with its weight, as a share of the same
    style_share     the style cost of it, as a share of the style cost of the picture as it was

Each is the mean over the styles of the model. Less is better. As shares they need no unit, so a margin means the same
whatever the weights of J. The judge of J travels with a model (models.stylizer): two models can be compared only
where J is the same of both. Slices by style, by the size of pictures, and by source. Pictures of one group are drawn
together.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from data.dataset import Dataset, Split
from tasks.gate import GateConfig, Incomparable, metric_alphas
from tasks.pairing import Paired, cluster_counts, group_notes, guard, mean_gains, mean_part, weigh
from tasks.slices import picture_slices
from tasks.stylizerreport import Rendered, Report

METRICS = ("total_share", "content_share", "style_share")
SAME_J = 1e-3  # relative, of J of the same untouched picture: rounding, of another precision too


def pair(champion: Report, challenger: Report, dataset: Dataset, split: Split, config: GateConfig) -> Paired:
    """What the two reports, of one split of `dataset`, say together.

    Raises ValueError where they are of other pictures or styles, Incomparable where J is not the same of both.
    """
    ids = list(dict.fromkeys(row.id for row in champion.rows))
    if [(row.id, row.style) for row in champion.rows] != [(row.id, row.style) for row in challenger.rows]:
        raise ValueError(
            f"the two models were not looked at on the same {split} pictures of {dataset.info.name}, in the same styles"
        )
    require_same_judge(champion, challenger)
    rules = config.rules(dataset.info.family)
    table = dataset.table(split, ["id", "group", "width", "height"])
    assert table["id"].to_pylist() == ids
    groups = table["group"].to_pylist()
    counts = np.array(list(cluster_counts(groups, config.num_draws, config.seed)))
    metrics = []
    for name, alpha in metric_alphas(rules.metrics, METRICS, config).items():
        first, second = shares(champion, name).mean(1), shares(challenger, name).mean(1)
        rule = rules.metrics[name]
        metrics.append(
            weigh(
                name, (float(first.mean()), float(second.mean())), mean_gains(first - second, counts),
                primary=rule.primary, margin=rule.margin, alpha=alpha, power=config.power, test="paired bootstrap",
                less_is_better=True,
            )
        )  # fmt: skip
    parts = [
        part
        for kind, name, first, second in slices_of(champion, challenger, table)
        if (part := mean_part(kind, name, first, second, counts, config.alpha)) is not None
    ]
    notes = group_notes(groups, "pictures")
    return Paired(
        num_samples=len(ids), unit="pictures", metric="total_share",
        same=[row.costs for row in champion.rows] == [row.costs for row in challenger.rows],
        metrics=tuple(metrics), slices=guard(parts, config.alpha, rules.slice_margin, rules.slice_fewest), notes=notes,
    )  # fmt: skip


def require_same_judge(champion: Report, challenger: Report) -> None:
    """Raise Incomparable unless J has the same parts, and is the same of every picture as it was."""
    if champion.about["cost"] != challenger.about["cost"]:
        raise Incomparable(
            f"the champion was made for {champion.about['cost']}, the challenger for {challenger.about['cost']}"
        )
    before = np.array([[row.untouched, row.untouched_style] for row in champion.rows])
    now = np.array([[row.untouched, row.untouched_style] for row in challenger.rows])
    if not np.allclose(before, now, rtol=SAME_J, atol=0):
        raise Incomparable(
            "the judges differ: another feature network, or other pictures behind the names of styles (J of the "
            f"untouched pictures is {before[:, 0].mean():.4g} by the champion's, {now[:, 0].mean():.4g} by the "
            "challenger's)"
        )


def shares(report: Report, name: str) -> np.ndarray:
    """A metric of each picture in each style: (N, S)."""
    num_styles = len(report.styles)
    return np.array([share(row, name, report) for row in report.rows]).reshape(-1, num_styles)


def share(row: Rendered, name: str, report: Report) -> float:
    """A metric of one picture in one style."""
    if name == "style_share":
        return row.costs["style"] / row.untouched_style
    if name == "content_share":
        return float(report.about["content_weight"]) * row.costs["content"] / row.untouched
    return row.costs["total"] / row.untouched


def slices_of(
    champion: Report, challenger: Report, table: pa.Table
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Kind and name of each slice, and J's share (N,) of both models in it; NaN outside."""
    first, second = shares(champion, "total_share"), shares(challenger, "total_share")
    if len(champion.styles) > 1:
        for i, (name, _picture) in enumerate(champion.styles):
            yield "style", name, first[:, i], second[:, i]
    for kind, name, inside in picture_slices(table, "style"):
        yield kind, name, np.where(inside, first.mean(1), np.nan), np.where(inside, second.mean(1), np.nan)
