"""Which side of the split an image stood on in earlier versions of a dataset, and so stands on in the next one.

A model is compared with its predecessor on the test images: were they drawn anew for each version, the older model
would have trained on some of them. So a group whose images stood in test stays in test, one in val in val, one in
train in train, whatever the fractions are now. Where groups with several sides become one, test wins over val and
val over train. What the source itself says about an image counts more.

Beside its shards a dataset keeps `earlier.parquet`, the sides of images that earlier versions held and it does not
hold: they may come back. An image is known by its bytes, else by its id where those bytes are gone, else by the name
of a group that the source gives (a person, a patient) where none of that group's images is known.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.checks import file_sha256
from data.dataset import EARLIER_FILE, EARLIER_SCHEMA, SPLITS, Dataset, Split
from data.report import MAX_EXAMPLES, Found, Moved

RANK: dict[Split, int] = {"train": 0, "val": 1, "test": 2}  # the greater wins where groups merge


@dataclass(frozen=True, slots=True)
class Earlier:
    """The images that earlier versions of a dataset held: four lists of one length, one row for each image."""

    ids: list[str]
    sha256: list[str]
    groups: list[str]
    splits: list[Split]


def read_earlier(dataset: Dataset) -> Earlier:
    """The images of a stored dataset, and those that it remembers."""
    columns = ["id", "sha256", "group"]
    parts = [(dataset.table(split, columns), [split] * dataset.info.num_images(split)) for split in SPLITS]
    file = dataset.path / EARLIER_FILE
    if file.is_file():
        remembered = pq.read_table(file, schema=EARLIER_SCHEMA)
        parts.append((remembered.select(columns), remembered["split"].to_pylist()))
    table = pa.concat_tables([rows for rows, _ in parts])
    ids, sha256, groups = (table[name].to_pylist() for name in columns)
    return Earlier(ids, sha256, groups, [split for _, splits in parts for split in splits])


def join_earlier(parts: Sequence[Earlier]) -> Earlier:
    """All of them; an image may stand there several times."""
    return Earlier(
        [id for part in parts for id in part.ids],
        [key for part in parts for key in part.sha256],
        [group for part in parts for group in part.groups],
        [split for part in parts for split in part.splits],
    )


def strongest(splits: Iterable[Split | None]) -> Split | None:
    """Test before val before train; None where there is none."""
    return max((split for split in splits if split), key=RANK.__getitem__, default=None)


def known_images(earlier: Earlier, ids: Sequence[str], sha256: Sequence[str]) -> list[Split | None]:
    """The side on which each image stood, None for a new one."""
    here = set(sha256)
    by_bytes: dict[str, Split] = {}
    by_id: dict[str, Split] = {}
    for id, key, split in zip(earlier.ids, earlier.sha256, earlier.splits, strict=True):
        by_bytes[key] = strongest((by_bytes.get(key), split)) or split
        if key not in here:  # else its id now belongs to another image
            by_id[id] = strongest((by_id.get(id), split)) or split
    return [by_bytes.get(key) or by_id.get(id) for id, key in zip(ids, sha256, strict=True)]


def known_groups(
    earlier: Earlier, given: Sequence[str | None], known: Sequence[Split | None]
) -> list[Split | None]:
    """`known`, and for images of a group that the source gives, without any known image, the side of its name."""
    by_name: dict[str, Split] = {}
    for group, split in zip(earlier.groups, earlier.splits, strict=True):
        by_name[group] = strongest((by_name.get(group), split)) or split
    familiar = {group for group, split in zip(given, known, strict=True) if group and split}
    return [
        split or (by_name.get(group) if group and group not in familiar else None)
        for group, split in zip(given, known, strict=True)
    ]


def sides_of_groups(
    from_source: Sequence[Split | None], groups: Sequence[str], known: Sequence[Split | None]
) -> dict[str, Split]:
    """The side of each group that has one from earlier; what the source puts into val or test itself does not count."""
    sides: dict[str, Split] = {}
    for split, group, before in zip(from_source, groups, known, strict=True):
        side = strongest((sides.get(group), before)) if split in (None, "train") else None
        if side:
            sides[group] = side
    return sides


def side_of(
    split: Split | None,
    of_group: Split | None,
    before: Split | None,
    given: set[Split],
    group: str,
    val_fraction: float,
    test_fraction: float,
) -> Split:
    """The side of one image: its `split` in the source, else that `of_group`; its group's side `before`; else by hash.

    `given` are all splits that the source has: those that it lacks are taken out of train.
    """
    if split is None and before:
        return strongest((before, of_group)) or before
    given_side = split or of_group
    if given_side in ("val", "test"):
        return given_side
    share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64
    if given_side is None:
        return "test" if share < test_fraction else "val" if share < test_fraction + val_fraction else "train"
    if before:
        return "train" if before in given else before
    if "val" not in given and share < val_fraction:
        return "val"
    return "test" if "test" not in given and share >= 1 - test_fraction else "train"


@dataclass(frozen=True, slots=True)
class Known:
    """What earlier versions say of N images."""

    images: list[Split | None]  # the side on which the image itself stood
    sides: list[Split | None]  # the same, and for some new images the side of their group's name


def know_again(found: Found, earlier: Earlier | None) -> Known:
    """The sides on which images stood in earlier versions."""
    if earlier is None:
        return Known([None] * len(found.items), [None] * len(found.items))
    images = known_images(earlier, [item.id for item in found.items], found.measured.sha256)
    return Known(images, known_groups(earlier, [item.group for item in found.items], images))


def compare_sides(found: Found, known: Known, splits: Sequence[Split], fresh_splits: bool) -> dict[str, Any]:
    """What the report says of earlier versions."""
    ids, given = [item.id for item in found.items], [item.split for item in found.items]
    return {
        "known_images": sum(side is not None for side in known.images),
        "moved": count_moved(ids, known.images, splits, given),
        "fresh_splits": fresh_splits,
    }


def count_moved(
    ids: Sequence[str],
    known: Sequence[Split | None],
    splits: Sequence[Split],
    from_source: Sequence[Split | None],
) -> tuple[Moved, ...]:
    """The images that stand on another side than before, and whether the source or a merged group moved them."""
    moved = []
    for before in reversed(SPLITS):
        for after in SPLITS:
            for by_source in (True, False):
                there = [
                    id
                    for id, old, new, given in zip(ids, known, splits, from_source, strict=True)
                    if (old, new, given == new) == (before, after, by_source) and before != after
                ]
                if there:
                    examples = tuple(sorted(there)[:MAX_EXAMPLES])
                    moved.append(
                        Moved(
                            before=before,
                            after=after,
                            by_source=by_source,
                            images=len(there),
                            examples=examples,
                        )
                    )
    return tuple(moved)


def write_earlier(folder: Path, earlier: Earlier, sha256: Sequence[str]) -> dict[str, str]:
    """Keep the sides of images that the new version, of these `sha256`, does not hold; the file's SHA-256 by its name.

    The same rows give the same bytes. No file where every earlier image is there.
    """
    here = set(sha256)
    rows = sorted(
        (key, id, group, split)
        for id, key, group, split in zip(
            earlier.ids, earlier.sha256, earlier.groups, earlier.splits, strict=True
        )
        if key not in here
    )
    rows = list(dict.fromkeys(rows))
    if not rows:
        return {}
    columns = dict(zip(("sha256", "id", "group", "split"), np.array(rows, object).T.tolist(), strict=True))
    file = folder / EARLIER_FILE
    pq.write_table(
        pa.table({name: columns[name] for name in EARLIER_SCHEMA.names}, EARLIER_SCHEMA),
        file,
        compression="zstd",
    )
    return {file.name: file_sha256(file)}
