"""From a source of images to a stored dataset: every image checked, duplicates found, split, written as shards.

The same source gives the same bytes, file by file: the order of rows follows from their ids, and nothing in the
folder tells the time or the place. Beside `dataset.json` and the shards (see data.dataset) it holds `report.json`, the
`IngestReport` without what differs from run to run.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from data import aligned, arrays
from data.address import Fetched
from data.archive import FileTree, narrow_tree, open_tree
from data.dataset import SPLITS, Shard, Split, classifies, one_of, schema_of, write_info
from data.description import describe_dataset
from data.duplicates import (
    MAX_DISTANCE,
    affordable_distance,
    cluster,
    evidence_needed,
    join_groups,
    take_pictures,
)
from data.formats import SPLIT_NAMES, Listing, RawItem, list_source, table_tree
from data.formats.landmarks import mirrored_names
from data.formats.likeness import hinting
from data.formats.listing import read_file
from data.measurement import measure_all
from data.parameters import Parameters
from data.report import VOLATILE, Duplicates, Fault, Found, IngestReport, SetAside, fault_of, make_report
from data.samples import SAMPLES, sample_tree
from data.sides import Earlier, compare_sides, know_again, write_earlier
from data.splits import assign_splits
from data.storage import (
    check_name,
    move_into_place,
    partial_folder,
    stored_order,
    write_pairs,
    write_shards,
)
from data.targets import check_pairs, check_targets

MAX_IMAGE_BYTES = 256 << 20
LONE_FILES = (".csv", ".npz", ".ts")  # that hold, or name, a whole dataset


class IngestConfig(Parameters):
    """How a source becomes a dataset."""

    val_fraction: float = Field(
        ge=0, lt=1, description="share for validation, where the source has no such split"
    )
    test_fraction: float = Field(
        ge=0, lt=1, description="share for testing, where the source has no such split"
    )
    near_duplicate_distance: int = Field(
        ge=0, le=MAX_DISTANCE, description="bits of the perceptual hash in which near-duplicates may differ"
    )
    max_source_gb: float = Field(
        gt=0, description="an archive that is larger, packed or unpacked, is refused"
    )

    @model_validator(mode="after")
    def _leaves_training(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction + test_fraction (={self.val_fraction + self.test_fraction:g}) must be below 1, "
                "to leave images for training"
            )
        return self


def ingest(
    source: str | Path | Fetched,
    *,
    name: str,
    family: str,
    store: Path,
    config: IngestConfig,
    licence: str = "not stated",
    progress: Callable[[int, int | None], None] | None = None,
    workers: int | None = None,
    subset: str = "",
    earlier: Earlier | None = None,
    fresh_splits: bool = False,
) -> IngestReport:
    """Bring `source` into `store`/`name` and report; an older dataset of that name and family is replaced.

    `source` is a folder, a tar or zip archive, a CSV table, the name of a built-in dataset, see data.formats, or what
    data.download brought. Of a source that holds several datasets, `subset` names the folder that counts. Groups of
    images in `earlier` keep their sides; with `fresh_splits` they are only compared, see data.sides. `progress` hears
    (images done, all images). Raises FileNotFoundError, or a ValueError of one line.
    """
    laps = [("", time.perf_counter())]
    check_name(name, family, store)
    if licence == "not stated" and str(source) in SAMPLES:
        licence = SAMPLES[str(source)].licence
    with partial_folder(store, name) as partial:
        with open_source(source, partial, config) as tree:
            tree = narrow_tree(tree, subset) if subset else tree
            with hinting(tree, family):
                listing = list_source(tree, family)
                tree = listing.tree or tree
                classes = check_classes(tree.name, family, listing)
                alignment = read_alignment(tree) if family == "faces" else None
                laps.append(("list", time.perf_counter()))
                found = measure_items(tree, listing, family, classes, progress, workers)
            laps.append(("decode and measure", time.perf_counter()))
            duplicates = find_duplicates(found, config.near_duplicate_distance)
            laps.append(("find duplicates", time.perf_counter()))
            groups = join_groups([item.group for item in found.items], duplicates.cluster_ids)
            known = know_again(found, duplicates.distance, earlier)
            labels = found.targets.labels if classifies(family) else None
            splits = assign_splits(
                [item.split for item in found.items],
                groups,
                config,
                None if fresh_splits else known.sides,
                labels,
            )
            shards = store_rows(partial, tree, family, found, groups, splits)
        pairs, issues = check_pairs(listing.pairs, found.items, splits)
        found.targets.issues.update(issues)
        files = write_pairs(partial, pairs) if listing.pairs else {}
        if earlier and not fresh_splits:
            files |= write_earlier(partial, earlier, found.measured.sha256, known.thumbs)
        info = describe_dataset(name, family, licence, tree.name, found, splits, shards)
        info = info.model_copy(
            update={
                "points": listing.points, "mirror_pairs": mirrored_names(listing.points), "files_sha256": files,
                "alignment": alignment,
            }
        )  # fmt: skip
        laps.append(("write", time.perf_counter()))
        report = make_report(info, str(store / name), listing, found, duplicates, laps)
        report = report.model_copy(update=compare_sides(found, known, splits, fresh_splits))
        values = report.model_dump(mode="json", exclude=VOLATILE, exclude_defaults=True)
        (partial / "report.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        write_info(partial, info)
        move_into_place(store, name, family, partial)
    return report


def read_alignment(tree: FileTree) -> aligned.FaceAlignment | None:
    """How the faces of a source were aligned, as ./convoy align left it; None where nothing says so.

    Raises ValueError for a file that says it in no way that we know, or for several.
    """
    files = [name for name in tree.sizes if name.rpartition("/")[2] == aligned.FILE]
    if len(files) > 1:
        raise ValueError(f"{tree.name} has several {aligned.FILE}: {', '.join(sorted(files)[:5])}; leave one")
    return aligned.parse(read_file(tree, files[0]), f"{tree.name}: {files[0]}") if files else None


def open_source(
    source: str | Path | Fetched, spool: Path, config: IngestConfig
) -> AbstractContextManager[FileTree]:
    """Open whatever `source` names; raises FileNotFoundError or a ValueError saying what may be given."""
    if isinstance(source, Fetched):
        return _under_its_address(source, spool, config)
    path = Path(source)
    if re.fullmatch(r"\w+:\w+", str(source)) and not path.exists():
        return nullcontext(sample_tree(str(source)))
    if not path.exists():
        raise FileNotFoundError(
            f"no such source: {source}; give a folder, a tar or zip archive, a .csv table, an .npz or .ts file, "
            f"or {', '.join(SAMPLES)}"
        )
    if path.suffix.lower() in LONE_FILES and path.is_file():
        return nullcontext(table_tree(path))
    return open_tree(path, spool=spool, max_total_bytes=int(config.max_source_gb * 1e9))


@contextmanager
def _under_its_address(source: Fetched, spool: Path, config: IngestConfig) -> Iterator[FileTree]:
    with open_source(source.path, spool, config) as tree:
        yield replace(tree, name=str(source))


def check_classes(source: str, family: str, listing: Listing) -> tuple[str, ...]:
    """The classes of a listing, sorted where the source has no order; a ValueError where there is nothing to tell."""
    if family in ("detection", "landmarks"):
        if family == "detection" and not listing.classes and not any(item.fault for item in listing.items):
            raise ValueError(f"{source}: no box of any class; a detector needs annotated images")
        return listing.classes
    one = one_of(family)
    classes = sorted({item.targets["label"] for item in listing.items} | set(listing.empty_classes))
    if family == "style":
        return tuple(sorted(set(classes) - set(listing.empty_classes)))
    if len(classes) > 1 and {name.lower() for name in classes} <= set(SPLIT_NAMES):
        raise ValueError(
            f"{source}: its folders are splits ({', '.join(classes)}), and no folders of classes are in them"
        )
    if family == "faces":
        if len(classes) < 2:
            raise ValueError(
                f"{source}: only one person ({classes[0]!r}); faces need two or more, each in a folder"
            )
        return tuple(classes)
    if len(listing.items) == 1:
        raise ValueError(
            f"{source}: only one {one} ({listing.items[0].id}); a dataset needs several of each class"
        )
    if len(classes) == 1:
        raise ValueError(
            f"{source}: only one class ({classes[0]!r}); a classifier needs two or more, each in a folder of its own"
        )
    if listing.empty_classes:
        raise ValueError(
            f"{source}: no {one} in the class folders {', '.join(listing.empty_classes)}; fill or remove them"
        )
    return tuple(classes)


def measure_items(
    tree: FileTree,
    listing: Listing,
    family: str,
    classes: tuple[str, ...],
    progress: Callable[[int, int | None], None] | None,
    workers: int | None,
) -> Found:
    """Read and decode every image of the listing once, and check its targets.

    Raises a ValueError if no image can be used, or none of a class. A person without usable image is left out.
    """
    items = sorted(listing.items, key=lambda item: item.id)
    unreadable: dict[int, str] = {}
    sizes: list[int] = []
    report = progress or (lambda done, total: None)
    report(0, len(items))
    blobs = _read_all(tree, items, unreadable, sizes)
    measured = measure_all(blobs, len(items), workers, lambda done: report(done, len(items)), family)
    for i, reason in arrays.other_channels(measured.facts).items():
        measured.reason[i] = reason
    reasons = [unreadable.get(i) or reason or items[i].fault for i, reason in enumerate(measured.reason)]
    keep = np.array([i for i, reason in enumerate(reasons) if not reason], np.int64)
    one = one_of(family)
    _require_usable(tree, one, items, reasons)
    kept, usable = [items[i] for i in keep], measured.take(keep)
    if "label" in items[0].targets:
        there = {item.targets["label"] for item in kept}
        unusable = [label for label in classes if label not in there and family != "faces"]
        classes = tuple(label for label in classes if label in there)
        if unusable:
            example = next(i for i, item in enumerate(items) if item.targets["label"] == unusable[0])
            raise ValueError(
                f"{tree.name}: no usable {one} in the classes {', '.join(unusable[:5])}; for instance "
                f"{items[example].id}: {reasons[example]}"
            )
    targets = check_targets(family, kept, usable, classes)
    if targets.lost:
        for place, reason in targets.lost.items():
            reasons[keep[place]] = reason
        _require_usable(tree, one, items, reasons)
        left = np.array([place for place in range(len(kept)) if place not in targets.lost], np.int64)
        keep, kept = keep[left], [kept[i] for i in left]
        usable, targets = usable.take(left), targets.take(left)
    set_aside = tuple(
        SetAside(
            id=items[i].id,
            reason=reason,
            sha256="" if i in unreadable else measured.sha256[i],
            fault=_kind_of_fault(i in unreadable, measured.reason[i]),
        )
        for i, reason in enumerate(reasons)
        if reason
    )
    return Found(kept, usable, targets, classes, [sizes[i] for i in keep], set_aside)


def _require_usable(tree: FileTree, one: str, items: Sequence[RawItem], reasons: Sequence[str]) -> None:
    """Raise a ValueError where there is a reason against each item."""
    if all(reasons):
        raise ValueError(f"{tree.name}: no usable {one}; for instance {items[0].id}: {reasons[0]}")


def _kind_of_fault(unread: bool, undecodable: str) -> Fault:
    """Which kind of reason an image is set aside for: not read, not decoded, or else its annotation."""
    if unread:
        return "unreadable"
    return fault_of(undecodable) if undecodable else "annotation-unreadable"


def _read_all(
    tree: FileTree, items: Sequence[RawItem], unreadable: dict[int, str], sizes: list[int]
) -> Iterator[bytes]:
    """Yield each image's bytes, and note why where there are none."""
    for i, item in enumerate(items):
        data = b""
        try:
            if tree.sizes.get(item.path, 0) > MAX_IMAGE_BYTES:
                raise ValueError(f"larger than {MAX_IMAGE_BYTES >> 20} MiB")
            data = tree.read(item.path)
        except OSError as error:
            unreadable[i] = f"cannot be read: {error.strerror or error}"
        except ValueError as error:
            unreadable[i] = str(error)
        sizes.append(len(data))
        yield data


def find_duplicates(found: Found, distance: int) -> Duplicates:
    """Cluster the images that show the same picture; signals and volumes by their bytes alone."""
    sha256 = found.measured.sha256
    if found.measured.facts[0] is not None:
        return Duplicates(list(sha256), distance, distance)
    first: dict[str, int] = {}
    for i, key in enumerate(sha256):
        first.setdefault(key, i)
    different = np.array(list(first.values()), np.int64)  # one image for each SHA-256
    hashes = found.measured.phash[different]
    pictures = take_pictures(found.measured.pictures, different)
    used = affordable_distance(hashes, distance)
    roots = cluster(hashes, pictures, used, evidence_needed(pictures, found.targets.labels[different]))
    least: dict[int, str] = {}
    for root, key in zip(roots.tolist(), first, strict=True):
        least[root] = min(least.get(root, key), key)
    cluster_of = {key: least[root] for root, key in zip(roots.tolist(), first, strict=True)}
    return Duplicates([cluster_of[key] for key in sha256], used, distance)


def store_rows(
    folder: Path,
    tree: FileTree,
    family: str,
    found: Found,
    groups: Sequence[str],
    splits: Sequence[Split],
) -> tuple[Shard, ...]:
    """Write the shards of all splits, reading every image again from the source."""
    measured = found.measured
    shards: list[Shard] = []
    for split in SPLITS:
        inside = [i for i, side in enumerate(splits) if side == split]
        places = [inside[i] for i in stored_order([found.items[i].id for i in inside])]
        rows = [
            {
                "id": found.items[i].id,
                "format": measured.format[i],
                "width": int(measured.width_px[i]),
                "height": int(measured.height_px[i]),
                "sha256": measured.sha256[i],
                "phash": int(measured.phash[i]),
                "group": groups[i],
                **found.row(i),
            }
            for i in places
        ]

        def read(row: int, places: list[int] = places) -> bytes:
            data = tree.read(found.items[places[row]].path)
            if hashlib.sha256(data).hexdigest() != measured.sha256[places[row]]:
                raise ValueError(
                    f"{tree.name}: {found.items[places[row]].id} changed while it was ingested; try again"
                )
            return data

        sizes = [found.sizes[i] for i in places]
        schema = schema_of(family, box_areas="box_areas" in found.targets.columns)
        shards += write_shards(folder, split, schema, rows, sizes, read)
    return tuple(shards)
