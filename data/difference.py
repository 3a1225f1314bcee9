"""What differs between two versions of a dataset: images added, removed, changed, renamed, relabelled, moved; groups.

An image of one version is that of the other if id and bytes are the same, else if the bytes are (renamed), else if the
id is (changed pixels). Targets are compared by the names of classes and points, so that a new class, which shifts the
numbers of the others, changes no label. Images themselves are not read.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from data.dataset import SPLITS, Dataset, DatasetInfo, Split
from data.parameters import Parameters

Kind = Literal["added", "removed", "changed pixels", "relabelled", "renamed", "moved"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_EXAMPLES = 10


class Side(Parameters):
    """An image as one version has it."""

    id: str
    sha256: str
    split: Split
    group: str
    classes: tuple[str, ...]  # that it belongs to, or that are marked in it


class Change(Parameters):
    """An image that differs: in one way or several."""

    kinds: tuple[Kind, ...]
    before: Side | None
    after: Side | None
    targets: tuple[str, ...] = ()  # relabelled: the classes or points that differ

    @property
    def id(self) -> str:
        side = self.after or self.before
        assert side
        return side.id


class GroupChange(Parameters):
    """A group that differs, named as in the later version, or as it was."""

    kind: Literal["added", "removed", "grown", "shrunk", "merged", "parted"]
    group: str
    images_before: int
    images_after: int


class Difference(Parameters):
    """Counts, and a few examples of each kind. An image that differs in several ways counts in each."""

    name: str
    before: str  # which versions
    after: str
    images_before: dict[Split, int]
    images_after: dict[Split, int]
    unchanged: int
    counts: dict[Kind, int]
    by_split: dict[Kind, dict[Split, int]]  # of removed images where they were, else where they are
    by_class: dict[Kind, dict[str, int]]
    moves: dict[str, int]  # "test → train"
    groups: dict[str, int]
    classes_added: tuple[str, ...]
    classes_removed: tuple[str, ...]
    examples: dict[Kind, tuple[Change, ...]]
    move_examples: dict[str, tuple[str, ...]]
    group_examples: dict[str, tuple[GroupChange, ...]]


@dataclass(frozen=True, slots=True)
class Seen:
    """An image of one version, with all that is said of it."""

    side: Side
    targets: dict[str, Hashable]  # by class or point


def compare(before: Dataset, after: Dataset, names: tuple[str, str]) -> tuple[Difference, list[Change]]:
    """Compare two versions, called `names`: the summary, and every image that differs, in order of id."""
    matched = list(match(read_images(before), read_images(after)))
    changes = [change for old, new in matched if (change := change_of(old, new)).kinds]
    changes.sort(key=lambda change: (change.id, change.before is None))
    groups = compare_groups(matched)
    of_kind = {kind: [change for change in changes if kind in change.kinds] for kind in KINDS}
    moved = defaultdict(list)
    for change in of_kind["moved"]:
        assert change.before and change.after
        moved[f"{change.before.split} → {change.after.split}"].append(change.id)
    old_classes, new_classes = before.info.classes, after.info.classes
    summary = Difference(
        name=after.info.name,
        before=names[0],
        after=names[1],
        images_before={split: before.info.num_images(split) for split in SPLITS},
        images_after={split: after.info.num_images(split) for split in SPLITS},
        unchanged=len(matched) - len(changes),
        counts={kind: len(found) for kind, found in of_kind.items()},
        by_split={kind: _by_split(found) for kind, found in of_kind.items()},
        by_class={kind: _by_class(kind, found) for kind, found in of_kind.items()},
        moves={way: len(ids) for way, ids in sorted(moved.items())},
        groups=dict(sorted(Counter(group.kind for group in groups).items())),
        classes_added=tuple(name for name in new_classes if name not in set(old_classes)),
        classes_removed=tuple(name for name in old_classes if name not in set(new_classes)),
        examples={kind: tuple(found[:MAX_EXAMPLES]) for kind, found in of_kind.items()},
        move_examples={way: tuple(ids[:MAX_EXAMPLES]) for way, ids in sorted(moved.items())},
        group_examples=_first_of_each(groups),
    )
    return summary, changes


def read_images(dataset: Dataset) -> list[Seen]:
    """All images of a version, in order of id, without their bytes."""
    columns = ["id", "sha256", "group", *dataset.info.target_names]
    images = []
    for split in SPLITS:
        for row in dataset.table(split, columns).to_pylist():
            targets = targets_of(row, dataset.info)
            classes = ("pictures",) if "points_xy" in row else tuple(targets) or ("without boxes",)
            side = Side(id=row["id"], sha256=row["sha256"], split=split, group=row["group"], classes=classes)
            images.append(Seen(side, targets))
    return sorted(images, key=lambda image: image.side.id)


def targets_of(row: dict[str, Any], info: DatasetInfo) -> dict[str, Hashable]:
    """What is said of an image, by the class or point that it is said of; the order of boxes does not matter."""
    if "points_xy" in row:
        xy = row["points_xy"]
        points = zip(info.points, xy[::2], xy[1::2], row["visible"], strict=True)
        return {name: (x, y, visible) for name, x, y, visible in points}
    if "box_labels" in row:
        boxes = defaultdict(list)
        for i, label in enumerate(row["box_labels"]):
            x0, y0, x1, y1 = row["boxes_xyxy"][4 * i : 4 * i + 4]
            area = row["box_areas"][i] if info.box_areas else (x1 - x0) * (y1 - y0)
            boxes[info.classes[label]].append((x0, y0, x1, y1, row["box_flags"][i], area))
        return {name: tuple(sorted(found)) for name, found in sorted(boxes.items())}
    others = {name: str(row[name]) for name in info.target_names if name != "label"}
    return {info.classes[row["label"]]: tuple(sorted(others.items()))} if "label" in row else dict(others)


def match(before: Sequence[Seen], after: Sequence[Seen]) -> Iterator[tuple[Seen | None, Seen | None]]:
    """Pair the images of two versions; every one comes once, with None where the other version lacks it."""
    left, right = list(before), list(after)
    keys: tuple[Any, ...] = (
        lambda side: (side.id, side.sha256),
        lambda side: (side.sha256, side.split),  # of copies, those that stand on the same side
        lambda side: side.sha256,
        lambda side: side.id,
    )
    for key in keys:
        waiting: dict[Hashable, list[Seen]] = defaultdict(list)
        for image in reversed(right):
            waiting[key(image.side)].append(image)
        rest = []
        taken = set()
        for image in left:
            there = waiting[key(image.side)]
            if there:
                partner = there.pop()
                taken.add(partner.side.id)
                yield image, partner
            else:
                rest.append(image)
        left, right = rest, [image for image in right if image.side.id not in taken]
    yield from ((image, None) for image in left)
    yield from ((None, image) for image in right)


def change_of(before: Seen | None, after: Seen | None) -> Change:
    """In which ways an image differs; in none if it does not."""
    if before is None or after is None:
        kind: Kind = "removed" if after is None else "added"
        return Change(kinds=(kind,), before=before and before.side, after=after and after.side)
    old, new = before.side, after.side
    differing = tuple(
        name
        for name in dict.fromkeys([*before.targets, *after.targets])
        if before.targets.get(name) != after.targets.get(name)
    )
    differs = {
        "changed pixels": old.sha256 != new.sha256,
        "relabelled": bool(differing),
        "renamed": old.id != new.id,
        "moved": old.split != new.split,
    }
    kinds = tuple(kind for kind in KINDS if differs.get(kind))
    return Change(kinds=kinds, before=old, after=new, targets=differing)


def compare_groups(matched: Iterable[tuple[Seen | None, Seen | None]]) -> list[GroupChange]:
    """Which groups differ. A group is known by its images, since a cluster's name is that of its least member."""
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    # group of the later version: those that its images had before
    sources: dict[str, set[str]] = defaultdict(set)
    targets: dict[str, set[str]] = defaultdict(set)
    for old, new in matched:
        before.update([old.side.group] if old else [])
        after.update([new.side.group] if new else [])
        if old and new:
            sources[new.side.group].add(old.side.group)
            targets[old.side.group].add(new.side.group)
    found = [
        GroupChange(kind="removed", group=group, images_before=number, images_after=0)
        for group, number in before.items()
        if group not in targets
    ]
    found += [
        GroupChange(
            kind="parted",
            group=group,
            images_before=before[group],
            images_after=sum(after[part] for part in parts),
        )
        for group, parts in targets.items()
        if len(parts) > 1
    ]
    for group, number in after.items():
        old_number = sum(before[source] for source in sources[group])
        alone = all(len(targets[source]) == 1 for source in sources[group])
        if not sources[group]:
            found.append(GroupChange(kind="added", group=group, images_before=0, images_after=number))
        elif len(sources[group]) > 1:
            found.append(
                GroupChange(kind="merged", group=group, images_before=old_number, images_after=number)
            )
        elif alone and number != old_number:
            kind: Literal["grown", "shrunk"] = "grown" if number > old_number else "shrunk"
            found.append(GroupChange(kind=kind, group=group, images_before=old_number, images_after=number))
    return sorted(found, key=lambda group: (group.kind, group.group))


def _first_of_each(groups: Sequence[GroupChange]) -> dict[str, tuple[GroupChange, ...]]:
    first: dict[str, list[GroupChange]] = defaultdict(list)
    for group in groups:
        if len(first[group.kind]) < MAX_EXAMPLES:
            first[group.kind].append(group)
    return {kind: tuple(found) for kind, found in sorted(first.items())}


def _by_split(changes: Sequence[Change]) -> dict[Split, int]:
    counts = Counter(side.split for change in changes if (side := change.after or change.before))
    return {split: counts[split] for split in SPLITS}


def _by_class(kind: Kind, changes: Sequence[Change]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for change in changes:
        side = change.after or change.before
        assert side
        counts.update(_relabelled_classes(change) if kind == "relabelled" else side.classes)
    return dict(sorted(counts.items()))


def _relabelled_classes(change: Change) -> tuple[str, ...]:
    """`cat → dog` where an image has one class, else the classes or points of which something differs."""
    assert change.before and change.after
    old, new = change.before.classes, change.after.classes
    if len(old) == len(new) == 1 and old != new:
        return (f"{old[0]} → {new[0]}",)
    return change.targets


def change_line(change: Change) -> str:
    """A change as a person reads it: `a/1.png, was b/1.png; cat → dog; test → train`."""
    old, new = change.before, change.after
    side = new or old
    assert side
    if not (old and new):
        return f"{side.id} ({side.split}, {', '.join(side.classes)})"
    parts = [f"{new.id}, was {old.id}" if new.id != old.id else new.id]
    if "relabelled" in change.kinds:
        parts.append(", ".join(_relabelled_classes(change)))
    parts.append(f"{old.split} → {new.split}" if new.split != old.split else new.split)
    return "; ".join(parts)


COLUMNS = (
    "change", "id", "id_before", "split_before", "split_after", "classes_before", "classes_after", "targets",
    "group_before", "group_after", "sha256_before", "sha256_after",
)  # fmt: skip


def changes_csv(changes: Iterable[Change]) -> str:
    """All changes as CSV, one a line: an image that differs in two ways has two."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for change in changes:
        old, new = change.before, change.after
        for kind in change.kinds:
            writer.writerow([
                kind, change.id, old.id if old else "", old.split if old else "", new.split if new else "",
                ";".join(old.classes) if old else "", ";".join(new.classes) if new else "",
                ";".join(change.targets) if kind == "relabelled" else "", old.group if old else "",
                new.group if new else "", old.sha256 if old else "", new.sha256 if new else "",
            ])  # fmt: skip
    return text.getvalue()
