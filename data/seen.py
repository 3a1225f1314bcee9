"""Which samples of a split a model of another version of the dataset was fitted to, and the split without them.

A split is drawn once and kept (data.sides), and yet a picture may change sides: where groups become one, where the
source says so, where splits are drawn afresh, or as another file of a training picture that is gone. A sample counts as
seen where the other version has, outside this split, the same bytes, its group, its person (faces), or the same picture
by data.duplicates. Names of groups and people of another dataset may be others', and do not count.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.dataset import (
    NUM_AXES,
    PAIRS_FILE,
    SPLITS,
    TARGET_FIELDS,
    Dataset,
    Shard,
    Split,
    count_boxes,
    count_images,
    write_info,
)
from data.duplicates import evidence_needed, join_pictures, near_pairs, same_pairs
from data.files import file_sha256
from data.measurement import measure
from data.report import read_report

MOST_LOOKED_AT = 2000  # samples that tell how alike unrelated pictures of this dataset are


def seen_samples(dataset: Dataset, split: Split, other: Dataset) -> np.ndarray:
    """The samples of a split that another version of the dataset has on another side: (N,) bool, by their indices."""
    sides = [side for side in SPLITS if side != split]
    own, fitted = known(dataset, split), pa.concat_tables([known(other, side) for side in sides])
    seen = is_among(own["sha256"], fitted["sha256"])
    if other.info.name == dataset.info.name:
        for name in {"group", "person"} & set(own.column_names):
            seen |= is_among(own[name], fitted[name])
    if dataset.info.family not in NUM_AXES:
        seen |= shown_again(dataset, split, own, other, fitted)
    return seen


def known(dataset: Dataset, split: Split) -> pa.Table:
    """What tells the samples of a split from others, without the pictures."""
    columns = ["sha256", "group", "phash"]
    if dataset.info.family != "faces":
        return dataset.table(split, columns)
    table = dataset.table(split, [*columns, "label"])
    people = [dataset.info.classes[label] for label in table["label"].to_pylist()]
    return table.drop_columns("label").append_column("person", pa.array(people, pa.string()))


def is_among(values: pa.ChunkedArray, others: pa.ChunkedArray) -> np.ndarray:
    """Whether each of N values is one of the others: (N,) bool."""
    return np.asarray(pc.is_in(values, others.combine_chunks()).to_numpy(), bool)


def shown_again(
    dataset: Dataset, split: Split, own: pa.Table, other: Dataset, fitted: pa.Table
) -> np.ndarray:
    """The samples that show the same picture as one of `fitted` whose file is gone: (N,) bool.

    A file that is still there shares its group with all that show the same, see data.ingest.
    """
    shown = np.zeros(len(own), bool)
    here = pa.concat_tables([dataset.table(side, ["sha256"]) for side in SPLITS])["sha256"]
    gone = fitted.filter(pa.array(~is_among(fitted["sha256"], here)))
    hashes, lost = (np.asarray(table["phash"].to_numpy(), np.uint64) for table in (own, gone))
    distance = read_report(dataset.path).near_duplicate_distance
    near = [np.stack(pair) for pair in near_pairs(hashes, distance, lost)] if len(gone) else []
    if not near:
        return shown
    i, j = np.concatenate(near, axis=1)
    # rows lie in an order of chance, so that the first are a sample of all
    places, wanted = np.union1d(np.arange(min(len(own), MOST_LOOKED_AT)), i), np.unique(j)
    labelled = "label" in TARGET_FIELDS[dataset.info.family].names
    rows = dataset.rows(split, places.tolist(), ["image", *(["label"] if labelled else [])])
    labels = np.asarray(rows["label"].to_numpy(), np.int64) if labelled else np.zeros(len(rows), np.int64)
    pictures = measure(rows["image"].to_pylist()).pictures
    keys = gone["sha256"].take(pa.array(wanted)).to_pylist()
    both = join_pictures([pictures, measure(images_of(other, keys)).pictures])
    same = same_pairs(
        both,
        np.searchsorted(places, i),
        len(places) + np.searchsorted(wanted, j),
        evidence_needed(pictures, labels),
    )
    shown[i[same]] = True
    return shown


def images_of(dataset: Dataset, sha256: list[str]) -> list[bytes]:
    """The encoded images of these hashes, in their order."""
    found: dict[str, bytes] = {}
    for shard in dataset.info.shards:
        table = pq.read_table(
            dataset.path / shard.file, columns=["sha256", "image"], filters=[("sha256", "in", set(sha256))]
        )
        found.update(zip(table["sha256"].to_pylist(), table["image"].to_pylist(), strict=True))
    return [found[key] for key in sha256]


def write_kept(dataset: Dataset, split: Split, kept: np.ndarray, folder: Path) -> Dataset:
    """Write to an empty folder a dataset that has of a split the samples `kept` (N,) bool, and of other splits none."""
    info, family = dataset.info, dataset.info.family
    shards = list(write_shards(dataset, split, kept, folder))
    rest = Dataset(folder, info.model_copy(update={"shards": tuple(shards)}))
    rows = rest.table(split, ["id", *TARGET_FIELDS[family].names]).to_pylist()
    splits = [split] * len(rows)
    changes = {
        "shards": rest.info.shards,
        "counts": count_images(family, splits, rows, info.classes),
        "num_boxes": count_boxes(splits, rows, info.classes) if family == "detection" else {},
        "files_sha256": write_pairs(dataset, {row["id"] for row in rows}, folder),
    }
    write_info(folder, info.model_copy(update=changes))
    return Dataset.open(folder)


def write_shards(dataset: Dataset, split: Split, kept: np.ndarray, folder: Path) -> Iterator[Shard]:
    """Write the shards of a split with the kept rows, a row group at a time."""
    start = 0
    for shard in (each for each in dataset.info.shards if each.split == split):
        rows = kept[start : start + shard.rows]
        start += shard.rows
        if not rows.any():
            continue
        file, first = folder / shard.file, 0
        with (
            pq.ParquetFile(dataset.path / shard.file) as source,
            pq.ParquetWriter(file, source.schema_arrow, compression="none") as target,
        ):
            for number in range(source.num_row_groups):
                table = source.read_row_group(number)
                inside = rows[first : first + len(table)]
                first += len(table)
                if inside.any():
                    target.write_table(table.filter(pa.array(inside)))
        yield Shard(file=file.name, split=split, rows=int(rows.sum()), sha256=file_sha256(file))


def write_pairs(dataset: Dataset, ids: set[str], folder: Path) -> dict[str, str]:
    """Write the pairs of the source whose pictures are both there; the file's SHA-256 by its name, {} for none."""
    if PAIRS_FILE not in dataset.info.files_sha256:
        return {}
    table = pq.read_table(dataset.path / PAIRS_FILE)
    names = pa.array(sorted(ids))
    table = table.filter(pc.and_(pc.is_in(table["id_a"], names), pc.is_in(table["id_b"], names)))
    if not len(table):
        return {}
    pq.write_table(table, folder / PAIRS_FILE)
    return {PAIRS_FILE: file_sha256(folder / PAIRS_FILE)}
