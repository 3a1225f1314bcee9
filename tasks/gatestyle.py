"""Networks that stylise against each other: what J is of each picture, by a paired bootstrap of pictures.

    total_share     J of what a network made of a picture, as a share of J of the picture as it was
    content_share   the content cost of it, with its weight, as a share of the same
    style_share     the style cost of it, as a share of the style cost of the picture as it was

Each is the mean over the styles of the model. Less is better. As shares they need no unit, so a margin means the same
whatever the weights of J. The judge of J travels with a model (models.stylizer): two models can be compared only
where J is the same of both. Slices by style, where there are several, and those of tasks.gatemeans.
"""

import numpy as np

from data.dataset import Dataset, Split
from tasks.gate import GateConfig, Incomparable
from tasks.gatemeans import pair_means
from tasks.pairing import Paired
from tasks.stylizerreport import Rendered, Report

METRICS = ("total_share", "content_share", "style_share")
SAME_J = 1e-3  # relative, of J of the same untouched picture: rounding, of another precision too


def pair(champion: Report, challenger: Report, dataset: Dataset, split: Split, config: GateConfig) -> Paired:
    """What the two reports, of one split of `dataset`, say together.

    Raises ValueError where they are of other pictures or styles, Incomparable where J is not the same of both.
    """
    if [(row.id, row.style) for row in champion.rows] != [(row.id, row.style) for row in challenger.rows]:
        raise ValueError(
            f"the two models were not looked at on the same {split} pictures of {dataset.info.name}, in the same styles"
        )
    require_same_judge(champion, challenger)
    ids = list(dict.fromkeys(row.id for row in champion.rows))
    assert dataset.table(split, ["id"])["id"].to_pylist() == ids
    values = {name: (shares(champion, name), shares(challenger, name)) for name in METRICS}
    first, second = values[METRICS[0]]
    styles = [
        ("style", name, first[:, i], second[:, i]) for i, (name, _picture) in enumerate(champion.styles)
    ]
    means = {name: (one.mean(1), other.mean(1)) for name, (one, other) in values.items()}
    same = [row.costs for row in champion.rows] == [row.costs for row in challenger.rows]
    more = styles if len(styles) > 1 else []
    return pair_means(means, more, dataset, split, config, metric=METRICS[0], same=same)


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
