"""Which split an image belongs to: what its source says, what it was before, else a hash of its group.

So a split never depends on the order of files or on neighbours, and no group stands on two sides. One thing is left to
more than a hash: a class that chance would leave out of validation or test altogether gets a group there.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from typing import Protocol

import numpy as np

from data.dataset import SPLITS, Split

RANK: dict[Split, int] = {"train": 0, "val": 1, "test": 2}  # the greater wins where groups merge


class Fractions(Protocol):
    """Shares of the groups, as ingest's parameters have them."""

    @property
    def val_fraction(self) -> float: ...

    @property
    def test_fraction(self) -> float: ...


def assign_splits(
    from_source: Sequence[Split | None],
    groups: Sequence[str],
    config: Fractions,
    known: Sequence[Split | None] | None = None,
    labels: Sequence[int] | np.ndarray | None = None,
) -> list[Split]:
    """The split of each image, by its group alone: order and neighbours do not matter.

    Splits that the source has stay as they are, except that validation and test are taken out of train where it has
    none. Elsewhere a group stays where its images stood before (`known`), and a hash of the group decides if it is new.
    With `labels` a class that chance leaves out of a split gets a group there: see fill_classes.
    """
    given = {split for split in from_source if split}
    left_open, in_train = sides_of_groups(from_source, groups, known or [None] * len(groups))
    of_group: dict[str, Split] = {}
    for side in SPLITS:  # where a group was given to several, an image without a split follows test, then val
        of_group.update(
            {group: side for split, group in zip(from_source, groups, strict=True) if split == side}
        )
    fractions = config.val_fraction, config.test_fraction
    splits: list[Split] = [
        side_of(
            split,
            of_group.get(group),
            (in_train if split else left_open).get(group),
            given,
            group,
            *fractions,
        )
        for split, group in zip(from_source, groups, strict=True)
    ]
    if labels is not None:
        wanted: dict[Split, float] = {"test": config.test_fraction, "val": config.val_fraction}
        carved = [side for side, fraction in wanted.items() if fraction and side not in given]
        fixed = {
            group
            for group, split, before in zip(groups, from_source, known or [None] * len(groups), strict=True)
            if before or split in ("val", "test")
        }
        splits = fill_classes(splits, groups, labels, carved, fixed)
    if "train" not in splits:
        raise ValueError(
            f"no image is left for training: {len(splits)} images in {len(set(groups))} groups; add images, or lower "
            f"ingest.val_fraction (={config.val_fraction:g}) and ingest.test_fraction (={config.test_fraction:g})"
        )
    return splits


def sides_of_groups(
    from_source: Sequence[Split | None], groups: Sequence[str], known: Sequence[Split | None]
) -> tuple[dict[str, Split], dict[str, Split]]:
    """The side that each group has from earlier: for images that the source leaves open, and for those in its train.

    What the source itself puts into val or test does not count. Out of train the latter go only to a side that the
    source does not have: of its own sides it has said that they are not there.
    """
    given = set(from_source)
    rows = [
        (group, before)
        for split, group, before in zip(from_source, groups, known, strict=True)
        if before and split in (None, "train")
    ]
    return strongest_by(rows), strongest_by(
        (group, "train" if side in given else side) for group, side in rows
    )


def side_of(
    split: Split | None,
    of_group: Split | None,
    before: Split | None,
    given: set[Split],
    group: str,
    val_fraction: float,
    test_fraction: float,
) -> Split:
    """The side of one image: its `split` in the source, else that `of_group`; that of its group `before`; else by hash.

    `given` are all splits that the source has: those that it lacks are taken out of train.
    """
    if split is None and before:
        return strongest((before, of_group)) or before
    given_side = split or of_group
    if given_side in ("val", "test"):
        return given_side
    share = share_of(group)
    if given_side is None:
        return "test" if share < test_fraction else "val" if share < test_fraction + val_fraction else "train"
    if before:
        return before
    if "val" not in given and share < val_fraction:
        return "val"
    return "test" if "test" not in given and share >= 1 - test_fraction else "train"


def share_of(group: str) -> float:
    """A number in [0, 1) that belongs to a group."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64


def fill_classes(
    splits: Sequence[Split],
    groups: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    carved: Sequence[Split],
    fixed: Set[str],
) -> list[Split]:
    """Move a group out of train for each class that one of the `carved` splits lacks, as chance has it in small sets.

    It is the group with the least hash of those in train that hold images of the class, are not `fixed`, and leave
    something of each of their classes in train. Where every class is everywhere, nothing moves.
    """
    held: dict[tuple[int, Split], set[str]] = defaultdict(set)
    classes_of: dict[str, set[int]] = defaultdict(set)
    for split, group, label in zip(splits, groups, labels, strict=True):
        held[int(label), split].add(group)
        classes_of[group].add(int(label))
    moved: dict[str, Split] = {}
    for label in sorted({label for label, _ in held}):
        for side in carved:
            if held[label, side]:
                continue
            movable = [
                group
                for group in held[label, "train"] - fixed
                if all(len(held[other, "train"]) > 1 for other in classes_of[group])
            ]
            if movable:
                group = min(movable, key=lambda group: (share_of(group), group))
                moved[group] = side
                for other in classes_of[group]:
                    held[other, "train"].discard(group)
                    held[other, side].add(group)
    return [
        moved.get(group, split) if split == "train" else split
        for split, group in zip(splits, groups, strict=True)
    ]


def strongest(splits: Iterable[Split | None]) -> Split | None:
    """Test before val before train; None where there is none."""
    return max((split for split in splits if split), key=RANK.__getitem__, default=None)


def strongest_by(pairs: Iterable[tuple[str, Split | None]]) -> dict[str, Split]:
    """The strongest side of each name; a name without a side is left out."""
    sides: dict[str, Split] = {}
    for name, split in pairs:
        side = strongest((sides.get(name), split))
        if side:
            sides[name] = side
    return sides
