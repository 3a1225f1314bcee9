"""Ingest: from files as they come to a dataset of shards, checked, deduplicated and split.

The source is read twice: once to decode and hash every image (in worker processes), once to write the shards in
order of id. So memory holds what is known of each image, not the images. The same source gives the same bytes,
and the dataset appears under its name only when it is whole.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from data.archive import FileTree, open_tree
from data.dataset import SCHEMA, SCHEMA_VERSION, SPLITS, DatasetInfo, Shard, Split, write_info
from data.duplicates import MAX_DISTANCE, cluster, join, perceptual_hashes, roots
from data.formats import Listing, RawItem, list_source, table_tree
from data.inspection import ODDITIES, Inspection, Rejection, inspect_many
from data.parameters import Parameters
from data.samples import SAMPLES, sample_tree

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
MAX_SOURCE_BYTES = 1 << 40
CHUNK_IMAGES, CHUNK_BYTES = 512, 32 << 20  # what one task of a worker process is given: the lesser of both
SHARD_ROWS, SHARD_BYTES = 16_384, 64 << 20
MIN_SHARDS, MANY_IMAGES = 4, 8_000  # a larger split has at least four shards, for several readers
MANY_FOR_PROCESSES = 2_000  # below this, starting processes costs more than it brings
MAX_EXAMPLES = 20


class IngestConfig(Parameters):
    """How a source without splits of its own is split, and when two images count as one picture."""

    val_fraction: float = Field(ge=0, lt=1, description="share of the groups that become validation images")
    test_fraction: float = Field(ge=0, lt=1, description="share of the groups that become test images")
    near_duplicate_distance: int = Field(
        ge=0, le=MAX_DISTANCE, description="bits of the perceptual hash in which near-duplicates may differ"
    )


class SetAside(Parameters):
    """An image that is not in the dataset, and why."""

    id: str
    sha256: str
    reason: str


class IngestReport(Parameters):
    """What ingest found. `report.json` in the dataset's folder has all of it but the times."""

    name: str
    family: str
    path: str
    source: str
    counts: dict[Split, dict[str, int]]  # images by split and class
    num_images: int
    total_bytes: int
    width_px: tuple[int, int, int]  # least, median, greatest
    height_px: tuple[int, int, int]
    set_aside: tuple[SetAside, ...]
    ignored: dict[str, int]  # files that are no images of a class, by reason
    oddities: dict[str, int]  # images that were accepted with a remark
    exact_duplicates: int  # images beyond the first of each set with the same bytes
    near_duplicate_clusters: int  # sets of two or more that show the same picture, exact ones included
    near_duplicate_images: int  # images in them
    across_splits: int  # test images that show the same picture as a training or validation image
    across_examples: tuple[tuple[str, str], ...]  # (test id, other id)
    label_conflicts: int  # sets that show the same picture under several labels
    label_examples: tuple[tuple[str, str], ...]  # (id, id)
    time_s: float
    images_per_s: float


@dataclass(frozen=True)
class Found:
    """The images of a source that decode, in order of id, and those that do not."""

    items: list[RawItem]
    inspections: list[Inspection]
    set_aside: list[SetAside]


def ingest(
    source: str | Path,
    *,
    name: str,
    family: str,
    store: Path,
    config: IngestConfig,
    licence: str = "not stated",
    progress: Callable[[int, int | None], None] | None = None,
    workers: int | None = None,
) -> IngestReport:
    """Make the dataset `store`/`name` from a folder, an archive, a CSV of path,label, or a built-in sample.

    `progress` is told images done and in all; `workers` None means one process a core. Raises FileNotFoundError,
    or ValueError with one line that says what is wrong with the source.
    """
    began = time.perf_counter()
    check_name(name, family, store)
    store.mkdir(parents=True, exist_ok=True)
    with lock(store, name), ExitStack() as stack:
        clean_up(store, name)
        tree = open_source(str(source), stack, store)
        listing = list_source(tree, family)
        found = inspect_all(tree, listing, progress, workers)
        check_usable(tree.name, listing, found)
        partial = store / f".{name}.partial-{os.getpid()}"
        partial.mkdir()
        try:
            report = write_dataset(
                tree, listing, found, partial, name, family, config, licence_of(source, licence)
            )
            replace_folder(partial, store / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    time_s = time.perf_counter() - began
    times = {"time_s": time_s, "images_per_s": len(listing.items) / time_s, "path": str(store / name)}
    return report.model_copy(update=times)


def check_name(name: str, family: str, store: Path) -> None:
    """Raise ValueError for a name that cannot be used, or that a dataset of another family has."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"name {name!r} must be lower-case letters, digits, - and _, and begin with none of - and _"
        )
    file = store / name / "dataset.json"
    if file.is_file():
        taken_by = json.loads(file.read_text()).get("family")
        if taken_by != family:
            raise ValueError(
                f"the name {name!r} is taken by a {taken_by} dataset; choose another with --name"
            )


def open_source(source: str, stack: ExitStack, store: Path) -> FileTree:
    """The files of a source, open as long as `stack` is; raises FileNotFoundError or ValueError."""
    if source in SAMPLES or source.startswith("sklearn:"):
        return sample_tree(source)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"no file or folder {source!r}; give a folder, a tar or zip archive, a .csv, or: {', '.join(SAMPLES)}"
        )
    if path.is_file() and path.suffix.lower() == ".csv":
        return table_tree(path)
    return stack.enter_context(open_tree(path, spool=store, max_total_bytes=MAX_SOURCE_BYTES))


def licence_of(source: str | Path, licence: str) -> str:
    sample = SAMPLES.get(str(source))
    return sample.licence if sample is not None and licence == "not stated" else licence


# --- reading ---------------------------------------------------------------------------------------------------


def inspect_all(
    tree: FileTree, listing: Listing, progress: Callable[[int, int | None], None] | None, workers: int | None
) -> Found:
    """Decode every image once; results are in order of id."""
    items = sorted(listing.items, key=lambda item: item.id)
    results: list[tuple[RawItem, Inspection | Rejection]] = []
    for batch, outcomes in inspect_pieces(tree, items, workers or os.cpu_count() or 1):
        results += zip(batch, outcomes, strict=True)
        if progress is not None:
            progress(len(results), len(items))
    results.sort(key=lambda result: result[0].id)
    good = [(item, outcome) for item, outcome in results if isinstance(outcome, Inspection)]
    set_aside = [
        SetAside(id=item.id, sha256=outcome.sha256, reason=outcome.reason)
        for item, outcome in results
        if isinstance(outcome, Rejection)
    ]
    return Found([item for item, _ in good], [outcome for _, outcome in good], set_aside)


Outcomes = list[Inspection | Rejection]


def inspect_pieces(
    tree: FileTree, items: list[RawItem], workers: int
) -> Iterator[tuple[list[RawItem], Outcomes]]:
    """Yield pieces of the items with what was found of each; in worker processes where that pays."""
    if workers == 1 or len(items) < MANY_FOR_PROCESSES:
        for batch, blobs, unreadable in read_pieces(tree, items):
            yield from both(batch, inspect_many([item.path for item in batch], blobs), unreadable)
        return
    # spawn: a forked copy of a process with threads (Prefect, Ray) may hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        pending: list[tuple[list[RawItem], Future[Outcomes]]] = []
        for batch, blobs, unreadable in read_pieces(tree, items):
            pending.append((batch, pool.submit(inspect_many, [item.path for item in batch], blobs)))
            yield from both([], [], unreadable)
            if len(pending) > 2 * workers:  # bounds what is read ahead
                batch, future = pending.pop(0)
                yield batch, future.result()
        for batch, future in pending:
            yield batch, future.result()


def both(
    batch: list[RawItem], outcomes: Outcomes, unreadable: list[tuple[RawItem, Rejection]]
) -> Iterator[tuple[list[RawItem], Outcomes]]:
    if batch:
        yield batch, outcomes
    if unreadable:
        yield [item for item, _ in unreadable], [outcome for _, outcome in unreadable]


def read_pieces(
    tree: FileTree, items: list[RawItem]
) -> Iterator[tuple[list[RawItem], list[bytes], list[tuple[RawItem, Rejection]]]]:
    """Yield (items, their bytes, items that cannot be read), a bounded piece at a time."""
    batch: list[RawItem] = []
    blobs: list[bytes] = []
    unreadable: list[tuple[RawItem, Rejection]] = []
    num_bytes = 0
    for item in items:
        try:
            blob = tree.read(item.path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            unreadable.append((item, Rejection("", f"cannot be read: {reason}")))
            continue
        batch.append(item)
        blobs.append(blob)
        num_bytes += len(blob)
        if len(batch) == CHUNK_IMAGES or num_bytes >= CHUNK_BYTES:
            yield batch, blobs, unreadable
            batch, blobs, unreadable, num_bytes = [], [], [], 0
    yield batch, blobs, unreadable


def check_usable(where: str, listing: Listing, found: Found) -> None:
    """Raise a ValueError if no classifier could be trained on what was found."""
    if not found.items:
        first = f", the first because: {found.set_aside[0].reason}" if found.set_aside else ""
        raise ValueError(f"{where}: no usable image; {len(found.set_aside)} were set aside{first}")
    listed = {item.targets["label"] for item in listing.items} | set(listing.empty_classes)
    usable = {item.targets["label"] for item in found.items}
    if lost := sorted(listed - usable):
        raise ValueError(
            f"{where}: no usable image in {', '.join(repr(label) for label in lost[:5])}; "
            "every class needs images: add some, or remove the folder"
        )
    if len(usable) < 2:
        raise ValueError(
            f"{where}: only one class ({', '.join(usable)}); classification needs two or more, "
            "each in a folder of its own"
        )


# --- groups and splits -----------------------------------------------------------------------------------------


def group_images(items: list[RawItem], found: Found, hashes: np.ndarray, distance: int) -> np.ndarray:
    """Join what must not be split: equal bytes, near-duplicates, and the source's own groups.

    Returns (N,) int64: the least index of each image's group.
    """
    parent = cluster(hashes, np.stack([inspection.thumb for inspection in found.inspections]), distance)
    first: dict[str, int] = {}
    for i, (item, inspection) in enumerate(zip(items, found.inspections, strict=True)):
        keys = [f"sha256 {inspection.sha256}"] + ([f"group {item.group}"] if item.group else [])
        for key in keys:
            j = first.setdefault(key, i)
            if i != j:
                join(parent, np.array([i]), np.array([j]))
    return roots(parent, parent)


def name_groups(groups: np.ndarray, found: Found) -> list[str]:
    """Each image's group by a name that does not depend on order: the least sha256 in it."""
    least: dict[int, str] = {}
    for group, inspection in zip(groups.tolist(), found.inspections, strict=True):
        least[group] = min(least.get(group, inspection.sha256), inspection.sha256)
    return [least[group] for group in groups.tolist()]


def place(group: str) -> float:
    """A group's place in [0, 1), a function of its name alone: other images never move it."""
    return int(hashlib.sha256(f"split {group}".encode()).hexdigest()[:15], 16) / 16**15


def choose_split(own: Split | None, present: set[Split], group: str, config: IngestConfig) -> Split:
    """The source's own split stands; what it lacks is carved from its training images, whole groups at a time."""
    if own in ("val", "test"):
        return own
    where = place(group)
    test = 0.0 if "test" in present else config.test_fraction
    val = 0.0 if "val" in present else config.val_fraction
    return "test" if where < test else "val" if where < test + val else "train"


# --- writing ---------------------------------------------------------------------------------------------------


def write_dataset(
    tree: FileTree,
    listing: Listing,
    found: Found,
    folder: Path,
    name: str,
    family: str,
    config: IngestConfig,
    licence: str,
) -> IngestReport:
    """Write shards, `dataset.json` and `report.json`; returns the report without times."""
    items, inspections = found.items, found.inspections
    classes = tuple(sorted({item.targets["label"] for item in items}))
    hashes = perceptual_hashes(np.stack([inspection.thumb for inspection in inspections]))
    groups = group_images(items, found, hashes, config.near_duplicate_distance)
    names = name_groups(groups, found)
    present: set[Split] = {item.split for item in items if item.split is not None}
    splits = [
        choose_split(item.split, present, group, config) for item, group in zip(items, names, strict=True)
    ]
    if "train" not in splits:
        raise ValueError(
            f"{tree.name}: no image is left for training: {len(items)} images in {len(set(names))} groups; "
            "add images, or lower ingest.test_fraction and ingest.val_fraction"
        )
    labels = [classes.index(item.targets["label"]) for item in items]
    shards, total_bytes, source_sha256 = write_shards(tree, found, folder, splits, labels, names, hashes)
    counts = count(splits, labels, classes)
    mean, std, channels = channel_statistics(inspections, splits)
    widths, heights = [i.width for i in inspections], [i.height for i in inspections]
    info = DatasetInfo(
        schema_version=SCHEMA_VERSION, name=name, family=family, classes=classes, channels=channels,
        counts=counts, width_px=spread(widths), height_px=spread(heights), channel_mean=mean, channel_std=std,
        source=Path(tree.name).name, source_sha256=source_sha256, licence=licence,
        set_aside=len(found.set_aside), shards=shards,
    )  # fmt: skip
    across, conflicts = find_across(items, groups, splits), find_conflicts(items, groups, labels)
    sizes = Counter(groups.tolist())
    report = IngestReport(
        name=name, family=family, path="", source=info.source, counts=counts, num_images=len(items),
        total_bytes=total_bytes, width_px=info.width_px, height_px=info.height_px,
        set_aside=tuple(found.set_aside), ignored=dict(sorted(listing.ignored.items())),
        oddities={kind: sum(kind in i.oddities for i in inspections) for kind in ODDITIES},
        exact_duplicates=len(items) - len({i.sha256 for i in inspections}),
        near_duplicate_clusters=sum(size > 1 for size in sizes.values()),
        near_duplicate_images=sum(size for size in sizes.values() if size > 1),
        across_splits=len(across), across_examples=tuple(across[:MAX_EXAMPLES]),
        label_conflicts=len(conflicts), label_examples=tuple(conflicts[:MAX_EXAMPLES]),
        time_s=0.0, images_per_s=0.0,
    )  # fmt: skip
    write_info(folder, info)
    stable = report.model_dump(mode="json", exclude={"time_s", "images_per_s", "path"})
    (folder / "report.json").write_text(json.dumps(stable, indent=2, sort_keys=True) + "\n")
    return report


def write_shards(
    tree: FileTree,
    found: Found,
    folder: Path,
    splits: list[Split],
    labels: list[int],
    groups: list[str],
    hashes: np.ndarray,
) -> tuple[tuple[Shard, ...], int, str]:
    """Write every split in order of id; returns the shards, the images' bytes, and the source's hash."""
    shards: list[Shard] = []
    total_bytes = 0
    for split in SPLITS:
        members = [i for i, own in enumerate(splits) if own == split]
        most = SHARD_ROWS if len(members) <= MANY_IMAGES else min(SHARD_ROWS, -(-len(members) // MIN_SHARDS))
        rows: list[dict[str, object]] = []
        num_bytes = 0
        for position, i in enumerate(members):
            item, seen = found.items[i], found.inspections[i]
            blob = tree.read(item.path)
            if hashlib.sha256(blob).hexdigest() != seen.sha256:
                raise ValueError(
                    f"{tree.name}: {item.id} changed while it was ingested; run the command again"
                )
            rows.append({
                "id": item.id, "image": blob, "format": seen.format, "width": seen.width, "height": seen.height,
                "sha256": seen.sha256, "phash": int(hashes[i]), "group": groups[i], "label": labels[i],
            })  # fmt: skip
            num_bytes += len(blob)
            total_bytes += len(blob)
            if len(rows) == most or num_bytes >= SHARD_BYTES or position == len(members) - 1:
                file = f"{split}-{sum(shard.split == split for shard in shards):05d}.parquet"
                shards.append(write_shard(folder, file, split, rows))
                rows, num_bytes = [], 0
    together = hashlib.sha256()
    for item, seen in zip(found.items, found.inspections, strict=True):
        together.update(f"{item.id}\0{seen.sha256}\n".encode())
    return tuple(shards), total_bytes, together.hexdigest()


def write_shard(folder: Path, file: str, split: Split, rows: list[dict[str, object]]) -> Shard:
    """Write one Parquet file. Images are not compressed again; what is written depends on the rows alone."""
    columns = {name: "NONE" if name == "image" else "ZSTD" for name in SCHEMA.names}
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(
        table, folder / file,
        compression=columns, use_dictionary=["format"], row_group_size=2048, write_statistics=False,
    )  # fmt: skip
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    return Shard(file=file, split=split, rows=len(rows), sha256=digest)


def count(splits: list[Split], labels: list[int], classes: tuple[str, ...]) -> dict[Split, dict[str, int]]:
    """Images by split and class; every class is named in every split."""
    pairs = Counter(zip(splits, labels, strict=True))
    return {split: {name: pairs[split, k] for k, name in enumerate(classes)} for split in SPLITS}


def channel_statistics(
    inspections: list[Inspection], splits: list[Split]
) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Mean and standard deviation of the training pixels in [0, 1], and the number of channels.

    Summed in whole numbers, so that they do not depend on order. One channel if every image is grey.
    """
    channels = 1 if all(inspection.grey for inspection in inspections) else 3
    levels, squares, num_pixels = [0] * channels, [0] * channels, 0
    for inspection, split in zip(inspections, splits, strict=True):
        if split != "train":
            continue
        num_pixels += inspection.width * inspection.height
        for k in range(channels):
            level, square = inspection.sums[k if len(inspection.sums) == channels else 0]
            levels[k] += level
            squares[k] += square
    mean = [level / num_pixels for level in levels]
    variance = [square / num_pixels - m * m for square, m in zip(squares, mean, strict=True)]
    # a floor of one grey level: pictures of one flat colour must not be divided by zero
    std = [max(v, 1.0) ** 0.5 for v in variance]
    return tuple(round(m / 255, 6) for m in mean), tuple(round(s / 255, 6) for s in std), channels


def spread(values: list[int]) -> tuple[int, int, int]:
    """Least, median (the lower of two) and greatest."""
    ordered = sorted(values)
    return ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1]


def find_across(items: list[RawItem], groups: np.ndarray, splits: list[Split]) -> list[tuple[str, str]]:
    """Test images whose group has an image in another split: (test id, the other's id), in order of id."""
    other: dict[int, str] = {}
    for item, group, split in zip(items, groups.tolist(), splits, strict=True):
        if split != "test":
            other.setdefault(group, item.id)
    return [
        (item.id, other[group])
        for item, group, split in zip(items, groups.tolist(), splits, strict=True)
        if split == "test" and group in other
    ]


def find_conflicts(items: list[RawItem], groups: np.ndarray, labels: list[int]) -> list[tuple[str, str]]:
    """One pair of ids for each group that shows the same picture under several labels."""
    first: dict[int, int] = {}
    found: dict[int, tuple[str, str]] = {}
    for i, group in enumerate(groups.tolist()):
        j = first.setdefault(group, i)
        if labels[i] != labels[j] and not (items[i].group and items[i].group == items[j].group):
            found.setdefault(group, (items[j].id, items[i].id))
    return list(found.values())


# --- the store -------------------------------------------------------------------------------------------------


@contextmanager
def lock(store: Path, name: str) -> Iterator[None]:
    """One ingest of a name at a time: the second waits. The lock goes with its process, however that ends."""
    with (store / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clean_up(store: Path, name: str) -> None:
    """Put right what a killed ingest left behind; called under the lock."""
    for old in store.glob(f".{name}.old-*"):
        if not (store / name).exists():  # killed between two renames: the old version is the newest whole one
            old.rename(store / name)
        else:
            shutil.rmtree(old)
    for partial in store.glob(f".{name}.partial-*"):
        shutil.rmtree(partial)


def replace_folder(partial: Path, target: Path) -> None:
    """Put the new version in the place of the old one."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
