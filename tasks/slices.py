"""How good a model is on parts of a split: by class, size, source and group.

- class: the true class.
- size: thirds of the split by the pixels of a picture, the samples of a signal or the voxels of a volume.
- source: the first folder in an image's id that names neither its split nor its class.
- group: the groups that the source names (a person, a patient); group size: how many images of the split share one,
  near-duplicates too.

A kind that would be one slice, or a slice for each image, is left out. Slices are in the order of the upper end of
their 95% interval (Clopper and Pearson's, which is exact), the lowest first: a bad slice of few images comes after an
equally bad one of many. One whose interval lies below the accuracy of the whole split is marked: of images of that
accuracy, so many would have so few right at most 2.5% of the time. Of forty slices that are as good as the whole, at
most one is by chance.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data.dataset import NUM_AXES, SPLIT_NAMES
from tasks.metrics import exact_interval

FEW = 30  # images below which a slice says little
SHA256 = re.compile(r"[0-9a-f]{64}")  # the name of a group that ingest made, of near-duplicates
# greatest size of each; then "more than 5 alike"
GROUP_SIZES = ((1, "alone"), (2, "2 alike"), (5, "3 to 5 alike"))
SIZE_UNITS = {1: "samples", 3: "voxels"}  # by the number of axes; of pictures px


@dataclass(frozen=True)
class Slice:
    """Some images of a split."""

    kind: str
    name: str
    num_images: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    few: bool  # fewer images than FEW
    below: bool  # the whole interval lies below the accuracy of the split


def columns_of(family: str) -> tuple[str, ...]:
    """Of a dataset's rows: what slices are made of."""
    return ("id", "group", "shape") if family in NUM_AXES else ("id", "group", "width", "height")


def find_slices(
    about: pa.Table, family: str, classes: Sequence[str], labels: np.ndarray, right: np.ndarray
) -> list[Slice]:
    """The slices of N images, the worst first; `about` has `columns_of(family)`, `right` (N,) says which are right."""
    accuracy = float(right.mean())
    found = [
        measure(kind, name, members, right, accuracy)
        for kind, name, members in members_of_slices(
            about, family, [classes[label] for label in labels.tolist()]
        )
    ]
    return sorted(found, key=lambda each: (each.accuracy_high, each.accuracy_low, each.kind, each.name))


def members_of_slices(
    about: pa.Table, family: str, names: Sequence[str]
) -> Iterator[tuple[str, str, list[int]]]:
    """Kind and name of each slice of N images, and the places of its members; `names` (N,) are the true classes."""
    groups = about["group"].to_pylist()
    given = ["" if SHA256.fullmatch(group) else group for group in groups]
    kinds = {
        "class": names,
        "size": size_names(about, family),
        "source": [source_of(name, true) for name, true in zip(about["id"].to_pylist(), names, strict=True)],
        "group": given if all(given) else [],
        "group size": group_sizes(groups),
    }
    for kind, values in kinds.items():
        if 1 < len(set(values)) < len(names):
            for name, members in places_of(values).items():
                yield kind, name, members


def picture_slices(about: pa.Table, family: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """Kind and name of each slice of N pictures without classes, by size and source, and who is in it: (N,) bool."""
    sources = [source_of(id, "") for id in about["id"].to_pylist()]
    for kind, values in (("size", size_names(about, family)), ("source", sources)):
        members = places_of(values)
        for name, places in members.items() if 1 < len(members) < len(values) else ():
            inside = np.zeros(len(values), bool)
            inside[places] = True
            yield kind, name, inside


def places_of(values: Sequence[str]) -> dict[str, list[int]]:
    """Where each value stands."""
    places: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    return places


def measure(kind: str, name: str, members: list[int], right: np.ndarray, accuracy: float) -> Slice:
    """One slice: the images at the places `members`."""
    n, num_right = len(members), int(right[members].sum())
    low, high = exact_interval(num_right, n)
    return Slice(kind, name, n, num_right / n, low, high, few=n < FEW, below=high < accuracy)


def size_names(about: pa.Table, family: str) -> list[str]:
    """The third of the split that each image is in by its size, named with its limits; fewer where sizes are equal."""
    sizes = sizes_of(about, family)
    N = len(sizes)
    ends = np.unique(np.sort(sizes)[[-(-N * k // 3) - 1 for k in (1, 2, 3)]])
    thirds = np.searchsorted(ends, sizes)
    unit = SIZE_UNITS[NUM_AXES[family]] if family in NUM_AXES else "px"
    limits = [(sizes[thirds == third].min(), sizes[thirds == third].max()) for third in range(len(ends))]
    names = [f"{low:,} {unit}" if low == high else f"{low:,} to {high:,} {unit}" for low, high in limits]
    return [names[third] for third in thirds.tolist()]


def sizes_of(about: pa.Table, family: str) -> np.ndarray:
    """Pixels, samples or voxels of each image: (N,) int64."""
    if family in NUM_AXES:
        return np.array([np.prod(shape[1:], dtype=np.int64) for shape in about["shape"].to_pylist()])
    return about["width"].to_numpy().astype(np.int64) * about["height"].to_numpy()


def source_of(name: str, true: str) -> str:
    """The first folder of an id that is neither a split's name nor the class `true`; "" if there is none."""
    folders = [folder for folder in name.split("/")[:-1] if folder != true]
    if folders and folders[0].lower() in SPLIT_NAMES:
        folders = folders[1:]
    return folders[0] if folders else ""


def group_sizes(groups: Sequence[str]) -> list[str]:
    """How many images of the split share each image's group, in words."""
    sizes = Counter(groups)
    words = {
        group: next((word for most, word in GROUP_SIZES if size <= most), "more than 5 alike")
        for group, size in sizes.items()
    }
    return [words[group] for group in groups]


def mark(each: Slice) -> str:
    """What is to be known of a slice."""
    notes = ["below all"] * each.below + [f"fewer than {FEW} images"] * each.few
    return ", ".join(notes)
