"""What ingest found in a source: the report that a person reads, and `report.json` beside the dataset."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from data import arrays
from data.dataset import NUM_AXES, SPLITS, DatasetInfo, Split, noun_of, way_back
from data.decode import EXTENSIONS
from data.files import read_object
from data.formats import Listing, RawItem
from data.measurement import ODDITIES, Measured
from data.parameters import Parameters
from data.targets import LeftOut, Targets

MAX_EXAMPLES = 10
WRONG_EXTENSION = "with another extension than their content"
Fault = Literal[
    "unreadable", "truncated", "not-an-image", "decompression-bomb", "annotation-unreadable",
    "not-numeric", "not-finite", "no-values", "wrong-shape",
]  # fmt: skip
# of the reasons that decoders give, as patterns; the first counts
BEGINNINGS: tuple[tuple[Fault, str], ...] = (
    ("decompression-bomb", r"decompression bomb"),
    ("not-an-image", r"empty file|not an image|unsupported format|not a signal: neither"),
    ("not-an-image", r"[^:]*: not a (signal|volume) \(supported|unsupported (WAV|NIfTI)|no numbers in it"),
    ("not-numeric", r"NPY holds Python objects|not numbers: "),
    ("not-finite", r"[\d,]+ of [\d,]+ values are |channel \d+ has no value"),
    ("no-values", r"no values: |damaged WAV: no samples"),
    (
        "wrong-shape",
        r"not a (signal|volume): (shape|NIfTI)|[\d,]+ channels, |CSV has rows of different|NPZ must",
    ),
    ("truncated", r"(?i).*truncat"),  # Pillow's word for it, and ours
)


class SetAside(Parameters):
    """A file that is no usable image."""

    id: str
    reason: str
    sha256: str  # of its bytes, "" if they could not be read
    fault: Fault = "unreadable"  # which kind of reason it is


def fault_of(reason: str) -> Fault:
    """The kind of reason why the bytes of an image, a signal or a volume could not be decoded."""
    return next((fault for fault, begins in BEGINNINGS if re.match(begins, reason)), "unreadable")


@dataclass(frozen=True, slots=True)
class Found:
    """The usable images of a source, in order of id."""

    items: list[RawItem]
    measured: Measured
    targets: Targets
    classes: tuple[str, ...]
    sizes: list[int]  # bytes
    set_aside: tuple[SetAside, ...]

    def row(self, i: int) -> dict[str, Any]:
        """The target columns of one image."""
        return {name: values[i] for name, values in self.targets.columns.items()}


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Which images are the same: `cluster_ids` (N,) are the least SHA-256 of each image's cluster."""

    cluster_ids: list[str]
    distance: int  # bits, as used
    wished_distance: int


class Issue(Parameters):
    """One kind of fault in targets: how often, and where for instance."""

    what: str
    count: int
    examples: tuple[str, ...]


class Moved(Parameters):
    """Images that stand on another side of the split than in the version before."""

    before: Split
    after: Split
    by_source: bool  # the source's own splits say so; else a group of theirs was joined with one of `after`
    images: int
    examples: tuple[str, ...]


class IngestReport(Parameters):
    """What ingest found and wrote. Fields with a default are left out of report.json where they have it."""

    name: str
    family: str
    path: str
    counts: dict[Split, dict[str, int]]  # images by split and class
    num_images: int
    total_bytes: int
    width_px: tuple[int, int, int]  # least, median, greatest
    height_px: tuple[int, int, int]
    formats: dict[str, int]
    oddities: dict[str, int]  # images that are used all the same
    ignored: dict[str, int]  # files that are not part of the dataset, by why
    set_aside: tuple[SetAside, ...]
    exact_duplicates: int  # images beyond the first of the same bytes
    near_duplicate_images: int  # in clusters of at least two different files
    near_duplicate_clusters: int
    near_duplicate_distance: int  # as used: less than wished for where all pictures look alike
    label_conflicts: int  # pictures, by bytes, under more than one label
    label_conflict_examples: tuple[tuple[str, ...], ...]  # ids of such a picture
    source_splits: tuple[Split, ...]  # those that came with the source
    notes: tuple[str, ...]  # what a person should know
    time_s: float
    phase_s: dict[str, float]
    images_per_s: float
    num_boxes: dict[Split, dict[str, int]] = Field(default={})  # detection: by split and class
    issues: tuple[Issue, ...] = ()  # what is wrong with targets
    axes: tuple[tuple[int, int, int], ...] = ()  # signals, volumes: see DatasetInfo
    oddity_examples: dict[str, tuple[str, ...]] = Field(default={})  # ids, by the names of `oddities`
    left_out: dict[str, tuple[LeftOut, ...]] = Field(default={})  # boxes, by id: some of each fault
    # all clusters of at least two different files: their ids
    near_duplicates: tuple[tuple[str, ...], ...] = ()
    known_images: int = 0  # that earlier versions held
    moved: tuple[Moved, ...] = ()
    source: str = ""  # as dataset.json has it
    fresh_splits: bool = False  # earlier versions were left out of account on purpose


RETIRED = {"across_splits", "overlaps"}  # fields of reports of before: data.faults counts what they held
# What report.json leaves out. What an ingest moved is told of that ingest, and kept in the list of versions: the same
# source once more moves nothing, and must give the same bytes.
VOLATILE = {"path", "source", "time_s", "phase_s", "images_per_s", "known_images", "moved", "fresh_splits"}


def read_report(folder: Path) -> IngestReport:
    """`report.json` of a stored dataset; what it leaves out is empty. Raises FileNotFoundError or ValueError."""
    file = folder / "report.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; {way_back(folder)}")
    left_out = {"path": str(folder), "source": "", "time_s": 0.0, "phase_s": {}, "images_per_s": 0.0}
    values = {
        name: value for name, value in read_object(file, way_back(folder)).items() if name not in RETIRED
    }
    return IngestReport.parse({**values, **left_out}, str(file))


def make_report(
    info: DatasetInfo,
    path: str,
    listing: Listing,
    found: Found,
    duplicates: Duplicates,
    laps: Sequence[tuple[str, float]],
) -> IngestReport:
    """Count it all; `laps` are the ends of the phases, in seconds of one clock, the first being the start."""
    measured = found.measured
    members = Counter(duplicates.cluster_ids)
    files = Counter(dict(zip(measured.sha256, duplicates.cluster_ids, strict=True)).values())
    near = {cluster: list[str]() for cluster, number in files.items() if number > 1}
    for item, cluster in zip(found.items, duplicates.cluster_ids, strict=True):
        if cluster in near:
            near[cluster].append(item.id)
    oddities = _oddities(found, info.family)
    conflicts = _label_conflicts(found)
    time_s = laps[-1][1] - laps[0][1]
    return IngestReport(
        name=info.name,
        family=info.family,
        path=path,
        source=info.source,
        counts=info.counts,
        num_images=len(found.items),
        total_bytes=sum(found.sizes),
        width_px=info.width_px,
        height_px=info.height_px,
        formats=dict(sorted(Counter(measured.format).items())),
        oddities={name: len(ids) for name, ids in oddities.items()},
        ignored=listing.ignored,
        set_aside=found.set_aside,
        exact_duplicates=len(found.items) - len(set(measured.sha256)),
        near_duplicate_images=sum(members[cluster] for cluster in near),
        near_duplicate_clusters=len(near),
        near_duplicate_distance=duplicates.distance,
        label_conflicts=len(conflicts),
        label_conflict_examples=tuple(conflicts[:MAX_EXAMPLES]),
        source_splits=tuple(split for split in SPLITS if any(item.split == split for item in listing.items)),
        notes=_notes(info, duplicates, found) + listing.notes,
        num_boxes=info.num_boxes,
        axes=info.axes,
        issues=_issues(listing.issues | found.targets.issues),
        oddity_examples={name: tuple(ids[:MAX_EXAMPLES]) for name, ids in oddities.items() if ids},
        left_out={id: tuple(boxes) for id, boxes in found.targets.left_out.items()},
        near_duplicates=tuple(sorted(tuple(ids) for ids in near.values())),
        time_s=round(time_s, 3),
        phase_s={name: round(end - laps[i][1], 3) for i, (name, end) in enumerate(laps[1:])},
        images_per_s=round((len(found.items) + len(found.set_aside)) / time_s, 1),
    )


def _issues(found: dict[str, list[str]]) -> tuple[Issue, ...]:
    return tuple(
        Issue(what=what, count=len(where), examples=tuple(sorted(set(where))[:MAX_EXAMPLES]))
        for what, where in sorted(found.items())
    )


def _oddities(found: Found, family: str) -> dict[str, list[str]]:
    """Ids of the items of each oddity."""
    items, flags = found.items, found.measured.oddities
    names, extensions = (arrays.ODDITIES, arrays.EXTENSIONS) if family in NUM_AXES else (ODDITIES, EXTENSIONS)
    odd = {name: [items[i].id for i in np.flatnonzero(flags >> bit & 1)] for bit, name in enumerate(names)}
    odd[WRONG_EXTENSION] = [
        item.id
        for item, name in zip(items, found.measured.format, strict=True)
        if not item.path.lower().endswith(extensions[name])
    ]
    return odd


def _label_conflicts(found: Found) -> list[tuple[str, ...]]:
    """Ids of the same bytes under several labels, or with several sets of boxes or points."""
    labels = defaultdict(set)
    ids = defaultdict(list)
    for i, (item, key) in enumerate(zip(found.items, found.measured.sha256, strict=True)):
        labels[key].add(str(found.row(i)))
        ids[key].append(item.id)
    return sorted(tuple(ids[key]) for key in ids if len(labels[key]) > 1)


def _notes(info: DatasetInfo, duplicates: Duplicates, found: Found) -> tuple[str, ...]:
    noun = noun_of(info.family)
    notes = [f"no {split} {noun}" for split in SPLITS if not info.num_images(split)]
    by_class = dict.fromkeys(("classification", *NUM_AXES), info.counts)
    counts = (by_class | {"detection": info.num_boxes}).get(info.family, {})
    for split in ("train", "test") if counts else ():
        without = [name for name, number in counts[split].items() if not number]
        if without and info.num_images(split):
            more = f" and {len(without) - MAX_EXAMPLES:,} more" if len(without) > MAX_EXAMPLES else ""
            number = f"{len(without):,} {'class' if len(without) == 1 else 'classes'}"
            notes.append(f"no {split} {noun} of {number}: {', '.join(without[:MAX_EXAMPLES])}{more}")
    if duplicates.distance < duplicates.wished_distance:
        notes.append(
            f"near-duplicates were sought within {duplicates.distance} bits, not {duplicates.wished_distance}: in "
            f"this dataset unrelated "
            "pictures are too much alike"
        )
    if info.family in NUM_AXES:
        notes.append(f"{info.family} are compared byte for byte: near-duplicates are not sought")
        notes += _mixture_notes(info, [fact for fact in found.measured.facts if fact is not None])
    return tuple(notes)


def _mixture_notes(info: DatasetInfo, facts: Sequence[arrays.Facts]) -> list[str]:
    """Signals of several rates, and volumes whose voxels are of several sizes by more than a hundredth."""
    notes = []
    rates = sum(fact.rate_hz not in (0, info.rate_hz) for fact in facts)
    if rates:
        notes.append(f"{rates:,} of other rates than {info.rate_hz:g} Hz: resampled when they are decoded")
    voxels = sum(
        bool(fact.spacing_mm) and not np.allclose(fact.spacing_mm, info.spacing_mm, rtol=0.01)
        for fact in facts
    )
    if voxels:
        sides = " × ".join(f"{side:g}" for side in info.spacing_mm)
        notes.append(
            f"{voxels:,} with voxels of other sides than {sides} mm: input.spacing_mm makes them alike in training"
        )
    return notes
