"""How each fault of a stored dataset is found: functions from the evidence to how many, of how many, and which.

`data.findings` names them, says how grave each is, and runs them.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.dataset import SPLITS, Split
from data.evidence import Evidence, groups_of, named
from data.report import Fault
from data.targets import DUPLICATE, EMPTY, INVERTED, NOT_FINITE, OUTSIDE, UNKNOWN_CLASS

MAX_EXAMPLES = 24  # of a fault, in reports
MAX_NAMED = 10  # classes named in one line
FEWEST_TO_STOP = 5  # a handful of faults stops nothing by its share: one bad picture of twelve is 8%

FEW_PER_CLASS = 20  # training pictures; with fewer, a class is learnt from its accidents
# Test pictures; with fewer, the 95% interval of an accuracy is wider than 10 points to either side.
FEW_TESTED = 100
IMBALANCE = 10.0  # times that the most frequent class outnumbers the rarest
TINY_PX = 8  # shorter side, in pixels
TINY_SHARE = 1 / 8  # of the median shorter side: such a picture is enlarged to a blur
LONG_ASPECT = 3.0  # longer over shorter side: a square from its middle loses two thirds
UNEVEN_TIMES = 8  # longer or shorter than the median: most of it is cut away, or most of it is filling
TINY_BOX_SHARE = 0.01  # of the picture's longer side: 4 pixels where a detector sees 416
LEFT_OUT = (NOT_FINITE, UNKNOWN_CLASS, INVERTED, EMPTY, OUTSIDE, DUPLICATE)  # boxes that are not stored


@dataclass(frozen=True, slots=True)
class Found:
    """One fault: `count` of `of` (0: a share has no meaning) `unit`s, and examples, each of ids to look at together."""

    count: int
    of: int
    unit: str
    examples: tuple[tuple[str, ...], ...] = ()
    detail: str = ""


Find = Callable[[Evidence], Found]


# ------------------------------------------------------------------------------- what ingest reported


def set_aside(fault: Fault) -> Find:
    """Files of one kind of fault."""

    def find(evidence: Evidence) -> Found:
        ids = [(file.id,) for file in evidence.report.set_aside if file.fault == fault]
        num_files = len(evidence) + len(evidence.report.set_aside)
        return Found(len(ids), num_files, "files", tuple(ids[:MAX_EXAMPLES]))

    return find


def odd(what: str) -> Find:
    """Pictures that are used, with an oddity of this name."""

    def find(evidence: Evidence) -> Found:
        examples = evidence.report.oddity_examples.get(what, ())
        count = evidence.report.oddities.get(what, 0)
        return Found(count, len(evidence), evidence.noun, tuple((id,) for id in examples))

    return find


def reported(whats: Sequence[str], unit: str, of: Callable[[Evidence], int] | None = None) -> Find:
    """Issues of targets, by the names that readers and `data.targets` give them."""

    def find(evidence: Evidence) -> Found:
        issues = [issue for issue in evidence.report.issues if issue.what in whats]
        examples = tuple((example,) for issue in issues for example in issue.examples)
        detail = "; ".join(f"{issue.count:,} {issue.what}" for issue in issues) if len(issues) > 1 else ""
        count = sum(issue.count for issue in issues)
        return Found(count, of(evidence) if of else 0, unit, examples[:MAX_EXAMPLES], detail)

    return find


def unnamed(known: Collection[str]) -> Find:
    """Issues of targets that no check has a name for."""

    def find(evidence: Evidence) -> Found:
        others = [issue.what for issue in evidence.report.issues if issue.what not in known]
        found = reported(others, unit="entries")(evidence)
        return replace(found, detail=found.detail or "; ".join(others))

    return find


def num_boxes(evidence: Evidence) -> int:
    """Boxes that are stored and boxes that were left out."""
    left_out = sum(issue.count for issue in evidence.report.issues if issue.what in LEFT_OUT)
    return len(evidence.boxes.labels) + left_out


def outdated_report(evidence: Evidence) -> Found:
    """Clusters of near-duplicates that are counted and not listed."""
    missing = evidence.report.near_duplicate_clusters - len(evidence.report.near_duplicates)
    return Found(missing, 0, "clusters")


# ------------------------------------------------------------------------------- the same picture twice


def duplicates(evidence: Evidence) -> Found:
    """Pictures beyond the first of the same bytes, within a split."""
    groups = [g for split in SPLITS for g in groups_of(evidence.content, evidence.inside(split))]
    extra = sum(len(group) - 1 for group in groups)
    return Found(extra, len(evidence), evidence.noun, named(evidence, groups, MAX_EXAMPLES))


def near_duplicates(evidence: Evidence) -> Found:
    """Pictures beyond the first that look the same and differ in their bytes, within a split."""
    groups = []
    for split in SPLITS:
        for group in groups_of(evidence.cluster, evidence.inside(split) & (evidence.cluster >= 0)):
            _, first = np.unique(evidence.content[group], return_index=True)
            groups += [group[np.sort(first)]] if len(first) > 1 else []
    extra = sum(len(group) - 1 for group in groups)
    return Found(extra, len(evidence), evidence.noun, named(evidence, groups, MAX_EXAMPLES))


def duplicates_across_splits(evidence: Evidence) -> Found:
    """Held-out pictures that stand in another split too, byte for byte."""
    everywhere = np.ones(len(evidence), bool)
    return _leaks(evidence, evidence.content, everywhere)


def near_duplicates_across_splits(evidence: Evidence) -> Found:
    """Held-out pictures that look like one of another split, and are none of it byte for byte."""
    copies = _leaked(evidence, evidence.content, np.ones(len(evidence), bool))
    return _leaks(evidence, evidence.cluster, (evidence.cluster >= 0) & ~copies)


def groups_across_splits(evidence: Evidence) -> Found:
    """Held-out pictures whose group (a person, a video) another split holds, and that are no duplicates."""
    everywhere = np.ones(len(evidence), bool)
    same = _leaked(evidence, evidence.content, everywhere)
    same |= _leaked(evidence, evidence.cluster, evidence.cluster >= 0)
    return _leaks(evidence, evidence.group, ~same)


_HELD_OUT: tuple[tuple[Split, tuple[Split, ...]], ...] = (("test", ("train", "val")), ("val", ("train",)))


def _leaked(evidence: Evidence, numbers: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Held-out pictures in `where` whose number a split to learn from has too: (N,) bool."""
    leaked = np.zeros(len(evidence), bool)
    for split, others in _HELD_OUT:
        inside = evidence.inside(split) & where
        learnt = np.isin(evidence.split, [SPLITS.index(other) for other in others]) & (numbers >= 0)
        leaked |= inside & np.isin(numbers, numbers[learnt])
    return leaked


def _leaks(evidence: Evidence, numbers: np.ndarray, where: np.ndarray) -> Found:
    """The worse of test and validation, with pairs of (held out, learnt from), those of two labels first.

    A handful in a small split has a great share and stops nothing: it must not hide a leak in the other that does.
    """
    leaked = _leaked(evidence, numbers, where)
    sides = [
        (split, int(np.count_nonzero(leaked & evidence.inside(split))), evidence.info.num_images(split))
        for split, _ in _HELD_OUT
    ]
    split, count, num = max(sides, key=lambda side: (side[1] >= FEWEST_TO_STOP, side[1] / max(1, side[2])))
    others = dict(_HELD_OUT)[split]
    learnt = np.flatnonzero(np.isin(evidence.split, [SPLITS.index(other) for other in others]))
    # the first of each
    partner = dict(zip(numbers[learnt[::-1]].tolist(), learnt[::-1].tolist(), strict=True))
    places = np.flatnonzero(leaked & evidence.inside(split)).tolist()
    pairs = np.array([[place, partner[numbers[place].item()]] for place in places], np.int64).reshape(-1, 2)
    texts = [f"{number:,} of {of:,} in {side}" for side, number, of in sides if number and side != split]
    if evidence.labels is not None:
        differ = evidence.labels[pairs[:, 0]] != evidence.labels[pairs[:, 1]]
        pairs = pairs[np.argsort(~differ, kind="stable")]
        texts += [f"{differ.sum():,} of them under another label"] if differ.any() else []
    examples = named(evidence, list(pairs), MAX_EXAMPLES)
    return Found(count, num, f"{split} {evidence.noun}", examples, "; ".join(texts))


# ------------------------------------------------------------------------------- labels


def conflicting_labels(evidence: Evidence) -> Found:
    """Pictures whose bytes stand under several labels, or with several sets of boxes or points."""
    same = groups_of(evidence.content, np.ones(len(evidence), bool))
    groups = [g for g in same if len({evidence.targets(int(place)) for place in g}) > 1]
    count = sum(len(group) for group in groups)
    return Found(count, len(evidence), evidence.noun, named(evidence, groups, MAX_EXAMPLES))


def conflicting_near_duplicates(evidence: Evidence) -> Found:
    """Pictures that look the same, differ in their bytes, and are of several classes."""
    assert evidence.labels is not None
    groups = []
    for group in groups_of(evidence.cluster, evidence.cluster >= 0):
        ordered = group[np.argsort(evidence.labels[group], kind="stable")]
        by_content = dict(
            zip(evidence.content[ordered].tolist(), evidence.labels[ordered].tolist(), strict=True)
        )
        if len(set(by_content.values())) > 1:
            groups.append(ordered)
    count = sum(len(group) for group in groups)
    ends = [group[[0, -1]] for group in groups]  # of two classes
    return Found(count, len(evidence), evidence.noun, named(evidence, ends, MAX_EXAMPLES))


def training_counts(evidence: Evidence) -> dict[str, int]:
    """By class: training pictures, or boxes of a detector."""
    info = evidence.info
    return (info.num_boxes if info.family == "detection" else info.counts)["train"]


def no_box_in_training(evidence: Evidence) -> Found:
    """A detector's training without a box."""
    return Found(int(not any(training_counts(evidence).values())), 0, "split")


def class_missing(evidence: Evidence) -> Found:
    """Classes without a training picture."""
    missing = [name for name, number in training_counts(evidence).items() if not number]
    return Found(len(missing), len(evidence.info.classes), "classes", detail=_listed(missing))


def class_untrained(evidence: Evidence) -> Found:
    """Test boxes of classes that no training box has."""
    train, test = training_counts(evidence), evidence.info.num_boxes["test"]
    missing = [name for name, number in train.items() if not number and test[name]]
    count = sum(test[name] for name in missing)
    return Found(count, sum(test.values()), "test boxes", detail=_listed(missing))


def class_unused(evidence: Evidence) -> Found:
    """Classes without any box."""
    boxes = evidence.info.num_boxes
    unused = [name for name in evidence.info.classes if not any(boxes[split][name] for split in SPLITS)]
    return Found(len(unused), len(evidence.info.classes), "classes", detail=_listed(unused))


def class_not_in(split: Split) -> Find:
    """Finds classes that are trained and of which the split holds nothing, though it has pictures."""

    def find(evidence: Evidence) -> Found:
        info = evidence.info
        held = (info.num_boxes if info.family == "detection" else info.counts)[split]
        train = training_counts(evidence) if info.num_images(split) else dict.fromkeys(held, 0)
        missing = [name for name, number in held.items() if not number and train[name]]
        return Found(len(missing), len(info.classes), "classes", detail=_listed(missing))

    return find


def class_imbalance(evidence: Evidence) -> Found:
    """Classes that the most frequent one outnumbers tenfold."""
    counts = {name: number for name, number in training_counts(evidence).items() if number}
    top = max(counts, key=lambda name: counts[name], default="")
    rare = [name for name, number in counts.items() if number * IMBALANCE < counts[top]]
    detail = f"{counts[top]:,} of {top!r}, against {_counted(rare, counts)}" if rare else ""
    return Found(len(rare), len(evidence.info.classes), "classes", detail=detail)


def few_pictures(evidence: Evidence) -> Found:
    """Classes with few training pictures."""
    counts = training_counts(evidence)
    if evidence.info.family == "detection":  # several boxes of one picture are one accident
        boxes = evidence.boxes
        train = evidence.inside("train")[boxes.image]
        of_pictures = np.unique(np.stack([boxes.labels, boxes.image])[:, train], axis=1)[0]
        classes = evidence.info.classes
        counts = dict(zip(classes, np.bincount(of_pictures, minlength=len(classes)).tolist(), strict=True))
    few = [name for name, number in counts.items() if 0 < number < FEW_PER_CLASS]
    return Found(len(few), len(evidence.info.classes), "classes", detail=_counted(few, counts))


def single_picture_identities(evidence: Evidence) -> Found:
    """People with one picture."""
    assert evidence.labels is not None
    people, first, number = np.unique(evidence.labels, return_index=True, return_counts=True)
    places = [np.array([place]) for place in first[number == 1]]
    return Found(len(places), len(people), "identities", named(evidence, places, MAX_EXAMPLES))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _counted(names: Sequence[str], counts: dict[str, int]) -> str:
    ordered = sorted(names, key=lambda name: counts[name])
    return _listed([f"{name} {counts[name]:,}" for name in ordered])


# ------------------------------------------------------------------------------- splits, sizes, boxes


def no_split(split: Split) -> Find:
    """A split without pictures: one, or none."""
    return lambda evidence: Found(int(not evidence.info.num_images(split)), 0, "split")


def few_tested(evidence: Evidence) -> Found:
    """Test pictures, where there are few."""
    num = evidence.info.num_images("test")
    return Found(num if num < FEW_TESTED else 0, 0, f"test {evidence.noun}")


def tiny_pictures(evidence: Evidence) -> Found:
    """Pictures far smaller than the others, or than anything can be seen on."""
    shorter = np.minimum(evidence.ints("width"), evidence.ints("height"))
    return _pictures(evidence, shorter < max(TINY_PX, TINY_SHARE * float(np.median(shorter))), shorter)


def extreme_aspect(evidence: Evidence) -> Found:
    """Pictures much longer than wide, or wider than long."""
    width, height = evidence.ints("width"), evidence.ints("height")
    aspect = np.maximum(width, height) / np.minimum(width, height)
    return _pictures(evidence, aspect > LONG_ASPECT, -aspect)


def uneven_lengths(evidence: Evidence) -> Found:
    """Signals or volumes far shorter or longer than the others."""
    length = np.maximum(evidence.ints("width"), 1)
    times = np.abs(np.log(length / float(np.median(length))))
    return _pictures(evidence, times > np.log(UNEVEN_TIMES), -times)


def without_boxes(evidence: Evidence) -> Found:
    """Pictures without a box."""
    boxes = np.bincount(evidence.boxes.image, minlength=len(evidence))
    return _pictures(evidence, boxes == 0, boxes)


def tiny_boxes(evidence: Evidence) -> Found:
    """Boxes of which a detector sees a few pixels."""
    boxes = evidence.boxes
    longer = np.maximum(evidence.ints("width"), evidence.ints("height"))[boxes.image]
    shorter = (boxes.boxes_xyxy[:, 2:] - boxes.boxes_xyxy[:, :2]).min(1, initial=np.inf)
    tiny = shorter < TINY_BOX_SHARE * longer
    places = [np.array([place]) for place in np.unique(boxes.image[tiny])]
    return Found(int(tiny.sum()), len(tiny), "boxes", named(evidence, places, MAX_EXAMPLES))


def _pictures(evidence: Evidence, bad: np.ndarray, order: np.ndarray) -> Found:
    """Pictures in `bad` (N,), those of the least `order` first."""
    places = np.flatnonzero(bad)
    places = places[np.argsort(order[places], kind="stable")]
    examples = named(evidence, [np.array([place]) for place in places[:MAX_EXAMPLES]], MAX_EXAMPLES)
    return Found(len(places), len(evidence), evidence.noun, examples)
