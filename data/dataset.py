"""The dataset format: a folder of Parquet shards and one `dataset.json`.

    data/store/cifar10/
        dataset.json                what the dataset is: `DatasetInfo`
        train-00000.parquet ...     encoded images and their targets: `DatasetInfo.columns`
        pairs.parquet               faces, where the source has pairs to compare: `PAIR_SCHEMA`
        earlier.parquet             images that only earlier versions had, with their sides, see data.sides

Few large files, since DVC and object stores are slow on many small ones. A row is one image, exactly as it came
(encoded bytes), with the target columns of the dataset's family. In the families signals and volumes
`image` is one of these, as its file has it; out of a file that holds many, as the bytes of an `.npy`. Rows are in a
fixed order, by a hash of the id, so that any run of them is a random sample; the place of a row in its split is the
sample's index everywhere: in shuffling, augmentation, predictions.

Coordinates are pixels of the upright image (turned by EXIF), x to the right and y down. Boxes are edges: the image
reaches from 0 to its width, so a box around the first pixel is 0, 0, 1, 1. Points are counted from the centre of the
first pixel: (0, 0) is that centre, the image reaches from -0.5 to its width - 0.5, and an edge is a point plus 0.5.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from data.aligned import FaceAlignment
from data.counting import singular
from data.files import read_object, require_plain
from data.parameters import Parameters, did_you_mean

SCHEMA_VERSION = 1
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

FamilyName = Literal["classification", "detection", "landmarks", "faces", "style", "signals", "volumes"]
FAMILY_NAMES: tuple[FamilyName, ...] = get_args(FamilyName)
NUM_AXES: dict[str, int] = {"signals": 1, "volumes": 3}  # of the families whose items are no pictures

COMMON_FIELDS = pa.schema(
    [
        ("id", pa.string()),  # path inside the source, '/'-separated: unique in the dataset
        ("image", pa.binary()),  # the encoded file, byte for byte
        ("format", pa.string()),  # what the bytes are, by their content: JPEG, PNG, ...
        # pixels, after the EXIF orientation is applied; the last axis of signals, volumes
        ("width", pa.int32()),
        ("height", pa.int32()),  # 1 of signals; the axis before the last of volumes
        ("sha256", pa.string()),  # of `image`, hex
        ("phash", pa.uint64()),  # perceptual hash, see data.duplicates; 0 of signals and volumes
        ("group", pa.string()),  # what must not stand on two sides of a split
    ]
)
DIFFICULT, CROWD, TRUNCATED = 1, 2, 4  # bits of `box_flags`
_LABEL = [("label", pa.int32())]  # index into DatasetInfo.classes
TARGET_FIELDS: dict[str, pa.Schema] = {
    "classification": pa.schema(_LABEL),
    "detection": pa.schema(
        [
            ("boxes_xyxy", pa.list_(pa.float32())),  # 4 a box: x0 < x1 and y0 < y1, inside the image
            ("box_labels", pa.list_(pa.int32())),  # 1 a box, index into DatasetInfo.classes
            ("box_flags", pa.list_(pa.uint8())),  # 1 a box: bits as above
        ]
    ),
    "landmarks": pa.schema(
        [
            ("points_xy", pa.list_(pa.float32())),  # 2 a point, in order of DatasetInfo.points
            ("visible", pa.list_(pa.bool_())),  # 1 a point; of one that is not given, x and y are 0
        ]
    ),
    "faces": pa.schema(_LABEL),  # the classes are the identities
    "style": pa.schema(_LABEL),  # the classes are the top folders: content and style, or pictures
    "signals": pa.schema(
        [
            *_LABEL,
            ("shape", pa.list_(pa.int32())),  # channels, samples
            ("rate_hz", pa.float64()),  # samples a second, 0 where the file does not say
        ]
    ),
    "volumes": pa.schema(
        [
            *_LABEL,
            ("shape", pa.list_(pa.int32())),  # channels, then the three sides
            ("spacing_mm", pa.list_(pa.float64())),  # sides of a voxel, empty where the file does not say
        ]
    ),
}
# beside detection's, only where the source gives areas that are not its boxes' (COCO's JSON: of masks): 1 a box, square
# pixels of the upright image, at least 0
BOX_AREAS = pa.field("box_areas", pa.list_(pa.float64()))
PAIRS_FILE = "pairs.parquet"
PAIR_SCHEMA = pa.schema(
    [("id_a", pa.string()), ("id_b", pa.string()), ("same", pa.bool_()), ("fold", pa.int32())]
)
EARLIER_FILE = "earlier.parquet"
EARLIER_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "sha256", "group", "split")),
        ("thumb", pa.binary()),  # of val and test images: grey, 32×32, to tell a near-duplicate; else empty
    ]
)


def way_back(folder: Path) -> str:
    """What to do about a damaged dataset in `folder`; DVC itself refuses to replace a file that it does not know."""
    return (
        f"move {folder} away and fetch it again (./convoy data pull {folder.name}), or add its source again"
    )


def noun_of(family: str) -> str:
    """What the items of a dataset of this family are called, wherever a person reads of them."""
    return family if family in NUM_AXES else "pictures"


def one_of(family: str) -> str:
    """What one of them is called."""
    return singular(noun_of(family))


def in_words_of(family: str, text: str) -> str:
    """A text with the family's word in place of `{items}`, `{Items}` and `{item}`."""
    items = noun_of(family)
    return text.format(items=items, Items=items.capitalize(), item=one_of(family))


def classifies(family: str) -> bool:
    """Whether an image of the family belongs to one of the classes that a model is to tell apart."""
    return "label" in TARGET_FIELDS[family].names and family not in ("faces", "style")


def schema_of(family: str, box_areas: bool = False) -> pa.Schema:
    """The columns of a dataset of this family, with or without `BOX_AREAS`."""
    return pa.schema([*COMMON_FIELDS, *TARGET_FIELDS[family], *([BOX_AREAS] if box_areas else [])])


SCHEMA = schema_of("classification")


class Shard(Parameters):
    """One Parquet file of a split."""

    file: str
    split: Split
    rows: int
    sha256: str

    @field_validator("file")
    @classmethod
    def _lies_here(cls, file: str) -> str:
        return require_plain(file)


class DatasetInfo(Parameters):
    """`dataset.json`. Channel statistics are over train pixels in [0, 1], RGB or grey; of signals and volumes over
    their values as they are.

    `counts` are images by split and class; of detection those with boxes and without, of landmarks all as
    "pictures". Fields with a default are left out of the file where they have it.
    """

    schema_version: int
    name: str
    family: str
    classes: tuple[str, ...]
    channels: int = Field(ge=1)  # of pictures 1 or 3
    counts: dict[Split, dict[str, int]]
    width_px: tuple[int, int, int]  # least, median, greatest
    height_px: tuple[int, int, int]
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    source: str
    source_sha256: str  # over the ids and bytes of all images, in order of id: where they lay does not matter
    licence: str
    set_aside: int
    shards: tuple[Shard, ...]
    num_boxes: dict[Split, dict[str, int]] = Field(default={})  # detection: by split and class
    box_areas: bool = False  # detection: whether its boxes have areas of their own, `BOX_AREAS`
    points: tuple[str, ...] = ()  # landmarks: their names, in order
    # landmarks that change places in a mirror, by number; () unknown
    mirror_pairs: tuple[tuple[int, int], ...] = ()
    # of pixels, in grey levels squared: up to COLOUR_PIXELS of each train image; colour images only
    colour_covariance: tuple[tuple[float, ...], ...] = ()
    files_sha256: dict[str, str] = Field(default={})  # of what lies beside the shards, by file name
    # signals, volumes: least, median, greatest length of each axis
    axes: tuple[tuple[int, int, int], ...] = ()
    rate_hz: float = 0.0  # signals: the most common rate, 0 where no file says
    spacing_mm: tuple[float, ...] = ()  # volumes: the median sides of a voxel, () where no file says
    alignment: FaceAlignment | None = None  # faces: how they were cut out, where the source says so

    @field_validator("files_sha256")
    @classmethod
    def _lie_here(cls, files: dict[str, str]) -> dict[str, str]:
        return {require_plain(name): sha256 for name, sha256 in files.items()}

    @property
    def picture_channels(self) -> Literal[1, 3]:
        """1 for grey, 3 for RGB; of a dataset of pictures."""
        assert self.channels in (1, 3) and self.family not in NUM_AXES
        return 1 if self.channels == 1 else 3

    @property
    def columns(self) -> pa.Schema:
        """Those of its shards."""
        return schema_of(self.family, self.box_areas)

    @property
    def target_names(self) -> list[str]:
        """Names of its target columns."""
        return list(self.columns.names[len(COMMON_FIELDS) :])

    def num_images(self, split: Split) -> int:
        return sum(self.counts.get(split, {}).values())


def read_rows(shard: Path | bytes, columns: Sequence[str]) -> pa.Table:
    """These columns of a Parquet shard, a file or its bytes."""
    source = pa.BufferReader(shard) if isinstance(shard, bytes) else shard
    return pq.read_table(source, columns=list(columns))


@dataclass(frozen=True)
class Dataset:
    """An ingested dataset on disk."""

    path: Path
    info: DatasetInfo
    held: Path | None = None  # links to its files, which stay when another version takes its place

    @property
    def files(self) -> Path:
        """The folder that its files are read from."""
        return self.held or self.path

    @classmethod
    def open(cls, path: Path) -> "Dataset":
        """Read `dataset.json` under `path`; raises FileNotFoundError or ValueError saying what to do."""
        file = path / "dataset.json"
        if not file.is_file():
            known = list_names(path.parent)
            raise FileNotFoundError(
                f"no dataset named {path.name!r} in {path.parent} (there: {', '.join(known) or 'none yet'}); "
                f"make it with: ./convoy data add SOURCE --name {path.name}, or fetch it with: ./convoy data pull"
                + did_you_mean(path.name, known)
            )
        values = read_object(file, way_back(path))
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{file}: schema_version (={version}) is not {SCHEMA_VERSION}; ingest the source again"
            )
        return cls(path, DatasetInfo.parse(values, str(file)))

    def require_current(self) -> None:
        """Raise a ValueError if its folder holds another version now, which was put there since it was opened."""
        if Dataset.open(self.files).info != self.info:
            raise ValueError(
                f"dataset {self.info.name!r} was replaced while it was read; bring that version back, and "
                "start again (a training run resumes)"
            )

    def shards(self, split: Split) -> list[Path]:
        return [self.files / shard.file for shard in self.info.shards if shard.split == split]

    def table(self, split: Split, columns: list[str] | None = None) -> pa.Table:
        """All rows of a split, in the order of their indices; `columns` limits what is read."""
        tables = [pq.read_table(shard, columns=columns) for shard in self.shards(split)]
        if not tables:
            schema = self.info.columns
            fields = schema if columns is None else pa.schema([schema.field(name) for name in columns])
            return fields.empty_table()
        return pa.concat_tables(tables)

    def rows(self, split: Split, indices: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """The rows at `indices` of a split, in that order; only the shards that hold one are read."""
        shards = [shard for shard in self.info.shards if shard.split == split]
        ends = np.cumsum([shard.rows for shard in shards])
        owners = np.searchsorted(ends, indices, side="right")
        tables = {
            owner: read_rows(self.files / shards[owner].file, columns)
            for owner in sorted(set(owners.tolist()))
        }
        pieces = [
            tables[owner].slice(index - (ends[owner] - shards[owner].rows), 1)
            for owner, index in zip(owners.tolist(), indices, strict=True)
        ]
        return pa.concat_tables(pieces)

    def require_family(self, family: str) -> None:
        """Raise a ValueError if the dataset is for another family."""
        if self.info.family != family:
            raise ValueError(f"dataset {self.info.name!r} is for {self.info.family}, not for {family}")

    def require(self, split: Split) -> None:
        """Raise a ValueError if the split has no image."""
        if not self.info.num_images(split):
            have = ", ".join(f"{name} {self.info.num_images(name)}" for name in SPLITS)
            raise ValueError(
                f"dataset {self.info.name!r} has no {split} {noun_of(self.info.family)} (it has: {have})"
            )


def list_names(store: Path) -> list[str]:
    """Names of the datasets below `store`, sorted."""
    return sorted(file.parent.name for file in store.glob("[!.]*/dataset.json"))


def write_info(path: Path, info: DatasetInfo) -> None:
    """Write `dataset.json`: sorted keys and a final newline, so that equal datasets are equal bytes."""
    values = info.model_dump(mode="json", exclude_defaults=True)
    (path / "dataset.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def kind_of_image(family: str, row: dict[str, Any], classes: Sequence[str]) -> str:
    """What an image counts as in DatasetInfo.counts; `row` has the target columns."""
    if family == "detection":
        return "with boxes" if row["box_labels"] else "without boxes"
    return "pictures" if family == "landmarks" else classes[row["label"]]


def count_images(
    family: str, splits: Sequence[Split], rows: Sequence[dict[str, Any]], classes: Sequence[str]
) -> dict[Split, dict[str, int]]:
    """Images by split and kind; every kind, also where there is none."""
    named: Sequence[str] = {"detection": ("with boxes", "without boxes"), "landmarks": ("pictures",)}.get(
        family, tuple(classes)
    )
    tally = Counter(
        (split, kind_of_image(family, row, classes)) for split, row in zip(splits, rows, strict=True)
    )
    return {split: {name: tally[split, name] for name in named} for split in SPLITS}


def count_boxes(
    splits: Sequence[Split], rows: Sequence[dict[str, Any]], classes: Sequence[str]
) -> dict[Split, dict[str, int]]:
    """Boxes by split and class."""
    tally: Counter[tuple[Split, int]] = Counter()
    for split, row in zip(splits, rows, strict=True):
        tally.update((split, label) for label in row["box_labels"])
    return {split: {label: tally[split, i] for i, label in enumerate(classes)} for split in SPLITS}
