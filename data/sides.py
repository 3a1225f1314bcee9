"""Which side of the split an image stood on in earlier versions of a dataset, and so stands on in the next one.

A model is compared with its predecessor on the test images: were they drawn anew for each version, the older model
would have trained on some of them. So a group whose images stood in test stays in test, one in val in val, one in
train in train, whatever the fractions are now. Where groups with several sides become one, test wins over val and
val over train. What the source itself says about an image counts more.

Beside its shards a dataset keeps `earlier.parquet`, the sides of images that earlier versions held and it does not
hold: they may come back. An image is known by its bytes; else by its id where those bytes are gone; else because it
shows the same picture as a val or test image that is gone, encoded again say; else by the name of a group that the
source gives (a person, a patient) where none of that group's images is known.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.dataset import EARLIER_FILE, EARLIER_SCHEMA, SPLITS, Dataset, Split, noun_of
from data.duplicates import (
    THUMB_PX,
    describe,
    evidence_needed,
    join_pictures,
    near_pairs,
    perceptual_hashes,
    same_pairs,
    take_pictures,
)
from data.files import file_sha256
from data.measurement import measure
from data.report import MAX_EXAMPLES, Found, Moved
from data.splits import strongest, strongest_by

GONE_SHARE = 0.9  # of an earlier version's images: where more are gone, it may be another dataset


@dataclass(frozen=True, slots=True)
class Earlier:
    """The images that earlier versions of a dataset held: lists of one length, one row for each image."""

    ids: list[str]
    sha256: list[str]
    groups: list[str]
    splits: list[Split]
    thumbs: dict[str, bytes]  # by SHA-256: of val and test images that the last version did not hold either
    shards: list[Path]  # of val and test: where the others are


def read_earlier(dataset: Dataset) -> Earlier:
    """The images of a stored dataset, and those that it remembers. Its shards must be there while this is used."""
    columns = ["id", "sha256", "group"]
    parts = [(dataset.table(split, columns), [split] * dataset.info.num_images(split)) for split in SPLITS]
    thumbs: dict[str, bytes] = {}
    file = dataset.files / EARLIER_FILE
    if file.is_file():
        remembered = pq.read_table(file, schema=EARLIER_SCHEMA)
        parts.append((remembered.select(columns), remembered["split"].to_pylist()))
        found = zip(remembered["sha256"].to_pylist(), remembered["thumb"].to_pylist(), strict=True)
        thumbs = {key: thumb for key, thumb in found if thumb}
    table = pa.concat_tables([rows for rows, _ in parts])
    ids, sha256, groups = (table[name].to_pylist() for name in columns)
    splits: list[Split] = [split for _, part in parts for split in part]
    return Earlier(ids, sha256, groups, splits, thumbs, [*dataset.shards("val"), *dataset.shards("test")])


def join_earlier(parts: Sequence[Earlier]) -> Earlier:
    """All of them; an image may stand there several times."""
    return Earlier(
        [id for part in parts for id in part.ids],
        [key for part in parts for key in part.sha256],
        [group for part in parts for group in part.groups],
        [split for part in parts for split in part.splits],
        {key: thumb for part in parts for key, thumb in part.thumbs.items()},
        [shard for part in parts for shard in part.shards],
    )


def lost_thumbs(earlier: Earlier, sha256: Iterable[str]) -> dict[str, bytes]:
    """Thumbnails of val and test images that are not among `sha256`, by SHA-256, sorted."""
    here = set(sha256)
    thumbs = {key: thumb for key, thumb in earlier.thumbs.items() if key not in here}
    lost = {
        key
        for key, split in zip(earlier.sha256, earlier.splits, strict=True)
        if split != "train" and key not in here and key not in thumbs
    }
    for shard in earlier.shards if lost else []:
        table = pq.read_table(shard, columns=["sha256", "image"], filters=[("sha256", "in", lost)])
        measured = measure(table["image"].to_pylist()) if table.num_rows else None
        for i, key in enumerate(table["sha256"].to_pylist()):
            if measured and not measured.reason[i]:  # else it is no picture
                thumbs[key] = measured.pictures.thumbs[i].tobytes()
    return dict(sorted(thumbs.items()))


def known_images(earlier: Earlier, ids: Sequence[str], sha256: Sequence[str]) -> list[Split | None]:
    """The side on which each image stood, None for a new one."""
    here = set(sha256)
    rows = list(zip(earlier.ids, earlier.sha256, earlier.splits, strict=True))
    by_bytes = strongest_by((key, split) for _, key, split in rows)
    # Where its bytes are here, an id belongs to another image now.
    by_id = strongest_by((id, split) for id, key, split in rows if key not in here)
    return [by_bytes.get(key) or by_id.get(id) for id, key in zip(ids, sha256, strict=True)]


def known_groups(
    earlier: Earlier, given: Sequence[str | None], known: Sequence[Split | None]
) -> list[Split | None]:
    """`known`, and for images of a group that the source gives, without any known image, the side of its name."""
    by_name = strongest_by(zip(earlier.groups, earlier.splits, strict=True))
    familiar = {group for group, split in zip(given, known, strict=True) if group and split}
    return [
        split or (by_name.get(group) if group and group not in familiar else None)
        for group, split in zip(given, known, strict=True)
    ]


def similar_images(
    found: Found, distance: int, earlier: Earlier, thumbs: dict[str, bytes]
) -> list[Split | None]:
    """The side of the lost image that each image shows again, None where it shows none; as data.duplicates tells."""
    num = len(found.items)
    sides: list[Split | None] = [None] * num
    if not thumbs:
        return sides
    side_of_lost = strongest_by(zip(earlier.sha256, earlier.splits, strict=True))
    lost = np.frombuffer(b"".join(thumbs.values()), np.uint8).reshape(-1, THUMB_PX, THUMB_PX)
    pictures = join_pictures([found.measured.pictures, describe(lost)])
    hashes, lost_hashes = found.measured.phash, perceptual_hashes(lost)
    _, first = np.unique(found.measured.sha256, return_index=True)
    evidence = evidence_needed(take_pictures(pictures, first), found.targets.labels[first])
    is_clear = pictures.root_independent > 0  # a flat picture is like no other
    clear, clear_lost = np.flatnonzero(is_clear[:num]), np.flatnonzero(is_clear[num:])
    keys = list(thumbs)
    for block_lost, block_i in near_pairs(lost_hashes[clear_lost], distance, hashes[clear]):
        i, j = clear[block_i], clear_lost[block_lost]
        same = same_pairs(pictures, i, num + j, evidence)
        for image, key in zip(i[same].tolist(), j[same].tolist(), strict=True):
            sides[image] = strongest((sides[image], side_of_lost[keys[key]]))
    return sides


def without_copies(
    earlier: Earlier,
    ids: Sequence[str],
    sha256: Sequence[str],
    known: Sequence[Split | None],
    from_source: Sequence[Split | None],
) -> list[Split | None]:
    """`known`, less new copies: an earlier image counts once, under its own id or, where that left, under another.

    Of several others it is one that the source moves to another side, if there is one: that must be told.
    """
    before, here = set(zip(earlier.ids, earlier.sha256, strict=True)), set(sha256)
    changed = {id for id, key in before if key not in here}
    renamed = Counter(key for _, key in before - set(zip(ids, sha256, strict=True)))
    sides = list(known)
    for i in sorted(range(len(ids)), key=lambda i: from_source[i] in (None, known[i])):
        id, key = ids[i], sha256[i]
        if (id, key) in before or id in changed:
            continue
        if renamed[key]:
            renamed[key] -= 1
        else:
            sides[i] = None
    return sides


@dataclass(frozen=True, slots=True)
class Known:
    """What earlier versions say of N images."""

    images: list[Split | None]  # the side on which the image itself stood; None for a new copy of one
    # the same, and for some new images that of a lost one, or of their group's name
    sides: list[Split | None]
    thumbs: dict[str, bytes]  # of lost val and test images


def know_again(found: Found, distance: int, earlier: Earlier | None) -> Known:
    """The sides on which images stood in earlier versions; near-duplicates differ in up to `distance` bits."""
    num = len(found.items)
    if earlier is None:
        return Known([None] * num, [None] * num, {})
    sha256 = found.measured.sha256
    images = known_images(earlier, [item.id for item in found.items], sha256)
    thumbs = lost_thumbs(earlier, sha256)
    similar = similar_images(found, distance, earlier, thumbs)
    rows = zip(earlier.ids, earlier.sha256, earlier.splits, strict=True)
    of_itself = strongest_by((f"{id}\0{key}", split) for id, key, split in rows)
    itself = [of_itself.get(f"{item.id}\0{key}") for item, key in zip(found.items, sha256, strict=True)]
    given = {item.split for item in found.items if item.split}
    sides = [own or other for own, other in zip(images, similar, strict=True)]
    for i, item in enumerate(found.items):
        # a copy stands there, or stood: the source parts them
        if item.split == "train" and sides[i] in given:
            sides[i] = "train" if itself[i] in given else itself[i] or "train"
    return Known(
        without_copies(
            earlier,
            [item.id for item in found.items],
            sha256,
            [exact or own for exact, own in zip(itself, images, strict=True)],
            [item.split for item in found.items],
        ),
        known_groups(earlier, [item.group for item in found.items], sides),
        thumbs,
    )


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


def losses(before: Dataset, after: Dataset, name: str) -> tuple[str, ...]:
    """What an earlier version called `name` had and the next one lacks, where that may be a mistake."""
    texts, noun = [], noun_of(after.info.family)
    gone = sorted(_classes(before) - _classes(after))
    if gone:
        more = f" and {len(gone) - MAX_EXAMPLES:,} more" if len(gone) > MAX_EXAMPLES else ""
        kind, verb = ("classes", "are") if len(gone) > 1 else ("class", "is")
        texts.append(f"{kind} {', '.join(gone[:MAX_EXAMPLES])}{more} of {name} {verb} gone")
    old, new = _images(before), _images(after)
    ids, keys = {id for id, _ in new}, {key for _, key in new}
    lost = sum(id not in ids and key not in keys for id, key in old)
    if lost > GONE_SHARE * len(old):
        share = f"{lost:,} of the {len(old):,}" if lost < len(old) else f"all {lost:,}"
        texts.append(f"{share} {noun} of {name} are gone")
    for split in SPLITS:
        number = before.info.num_images(split)
        if number and not after.info.num_images(split):
            texts.append(f"no {split} {noun} are left; {name} had {number:,}")
    return tuple(texts)


def _classes(dataset: Dataset) -> set[str]:
    """Those that have an image or a box; of faces the people."""
    by_split = dataset.info.num_boxes or dataset.info.counts
    return {name for counts in by_split.values() for name, number in counts.items() if number}


def _images(dataset: Dataset) -> list[tuple[str, str]]:
    """The id and SHA-256 of each."""
    tables = [dataset.table(split, ["id", "sha256"]) for split in SPLITS]
    return [row for table in tables for row in zip(*table.to_pydict().values(), strict=True)]


def write_earlier(
    folder: Path, earlier: Earlier, sha256: Iterable[str], thumbs: dict[str, bytes]
) -> dict[str, str]:
    """Keep the sides of images that the new version, of these `sha256`, does not hold; the file's SHA-256 by its name.

    The same rows give the same bytes. No file where every earlier image is there.
    """
    here = set(sha256)
    columns = (earlier.ids, earlier.sha256, earlier.groups, earlier.splits)
    rows = sorted({row for row in zip(*columns, strict=True) if row[1] not in here})
    if not rows:
        return {}
    table = pa.Table.from_pylist(
        [
            dict(
                zip(
                    EARLIER_SCHEMA.names,
                    (*row, thumbs.get(row[1]) if row[3] != "train" else None),
                    strict=True,
                )
            )
            for row in rows
        ],
        EARLIER_SCHEMA,
    )
    file = folder / EARLIER_FILE
    pq.write_table(table, file, compression="zstd")
    return {file.name: file_sha256(file)}
