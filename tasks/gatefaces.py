"""Embedders of faces against each other: TAR at each stated FAR on the same pairs, people drawn, not pairs.

Pairs that share a person depend on each other, so the bootstrap draws people (tasks.personbootstrap); both embedders
see the same draws. Slices are the pairs whose pictures are both of one size, or both from one source; a slice's samples
are its pairs of one person. A slice that no FAR can be measured on is left out.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from data.dataset import Dataset, Split
from tasks.facereport import Report
from tasks.faces import far_of
from tasks.gate import FamilyRules, GateConfig, Incomparable, MetricRule, metric_alphas
from tasks.pairing import Paired, Part, drawn_part, guard, weigh
from tasks.personbootstrap import FEWEST_PEOPLE, paired_gains
from tasks.slices import places_of, size_names, source_of
from tasks.verification import auc, far_name, roc, supported_fars, tar_at_far

TAR = "tar_at_far"  # a rule of this name is for every FAR of the evaluation that the pairs can show


def pair(champion: Report, challenger: Report, dataset: Dataset, split: Split, config: GateConfig) -> Paired:
    """What the two reports, of one split of `dataset`, say together.

    Raises ValueError where they are of other pairs, Incomparable where these are too few, or of too few people.
    """
    if champion.ids != challenger.ids or not np.array_equal(champion.places, challenger.places):
        raise ValueError(
            f"the two models were not looked at on the same {split} pairs of {dataset.info.name}"
        )
    table = dataset.table(split, ["id", "label", "width", "height"])
    people = table["label"].to_numpy()[champion.places]
    if len(np.unique(people)) < FEWEST_PEOPLE:
        raise Incomparable(
            f"the {split} pairs of {dataset.info.name} are of {len(np.unique(people))} people; a comparison draws "
            f"people, and needs {FEWEST_PEOPLE} or more"
        )
    fars = supported_fars(stated_fars(champion), int((~champion.same).sum()))
    rules = expanded(config.rules(dataset.info.family), fars)
    sides = (champion.looks[0].distances, challenger.looks[0].distances)
    draws = paired_gains(*sides, people, fars, config.seed, config.num_draws)
    values = [figures(side, champion.same, fars) for side in sides]
    metrics = [
        weigh(
            name, (values[0][name], values[1][name]), draws[name],
            primary=rules[name].primary, margin=rules[name].margin, alpha=alpha, power=config.power,
            test="paired bootstrap of people",
        )
        for name, alpha in metric_alphas(rules, tuple(draws), config).items()
    ]  # fmt: skip
    far = fars[-1]
    parts = [
        part
        for kind, name, chosen in slices_of(table, dataset.info.classes, champion.places)
        if (part := slice_part(kind, name, sides, champion.same, people, chosen, far, config)) is not None
    ]
    own = config.rules(dataset.info.family)
    return Paired(
        num_samples=len(champion.same), unit="pairs", metric=f"TAR at FAR {far:g}",
        same=bool(np.array_equal(*sides)), metrics=tuple(metrics),
        slices=guard(parts, config.alpha, own.slice_margin, own.slice_fewest),
        notes=(f"{len(np.unique(people)):,} people are drawn, with all pairs of theirs",),
    )  # fmt: skip


def stated_fars(report: Report) -> list[float]:
    """The false-accept rates of an evaluation, the highest first; raises Incomparable where the pairs show none."""
    names = [name.removeprefix("tar_at_") for name in report.looks[0].figures if name.startswith(TAR)]
    if not names:
        raise Incomparable(
            f"{int((~report.same).sum()):,} pairs of two people can show no stated false-accept rate: "
            "set evaluate.false_accept_rates higher, or give more people"
        )
    return sorted((far_of(name) for name in names), reverse=True)


def expanded(rules: FamilyRules, fars: list[float]) -> dict[str, MetricRule]:
    """The rules by the metrics' full names."""
    named = {name: rule for name, rule in rules.metrics.items() if name != TAR}
    if TAR in rules.metrics:
        named |= {f"{TAR}_{far_name(far)}": rules.metrics[TAR] for far in fars}
    return named


def figures(distances: np.ndarray, same: np.ndarray, fars: list[float]) -> dict[str, float]:
    """AUC and TAR at each FAR."""
    curve = roc(distances, same)
    return {"auc": auc(curve)} | {f"{TAR}_{far_name(far)}": tar_at_far(curve, far) for far in fars}


def slices_of(
    table: pa.Table, names: Sequence[str], places: np.ndarray
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Kind and name of each slice, and which pairs (P,) lie in it with both pictures; `names` are all people's."""
    ids, people = table["id"].to_pylist(), [names[label] for label in table["label"].to_pylist()]
    kinds = {
        "size": size_names(table, "faces"),
        "source": [source_of(id, person) for id, person in zip(ids, people, strict=True)],
    }
    for kind, values in kinds.items():
        members = places_of(values)
        for name, pictures in members.items() if 1 < len(members) < len(ids) else ():
            inside = np.zeros(len(ids), bool)
            inside[pictures] = True
            yield kind, name, inside[places].all(1)


def slice_part(
    kind: str, name: str, sides: tuple[np.ndarray, np.ndarray], same: np.ndarray, people: np.ndarray,
    chosen: np.ndarray, far: float, config: GateConfig,
) -> Part | None:  # fmt: skip
    """The pairs of a slice; None where it has too few people, or too few pairs of two for the FAR."""
    if len(np.unique(people[chosen])) < FEWEST_PEOPLE or not same[chosen].any():
        return None
    if not supported_fars([far], int((~same[chosen]).sum())):
        return None
    first, second = (side[chosen] for side in sides)
    gains = paired_gains(first, second, people[chosen], [far], config.seed, config.num_draws)
    metric = f"{TAR}_{far_name(far)}"
    values = [figures(side, same[chosen], [far])[metric] for side in (first, second)]
    num_same = int(same[chosen].sum())
    return drawn_part(
        kind, name, num_same, (values[0], values[1]), gains[metric], values[1] - values[0], config.alpha
    )
