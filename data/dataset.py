"""The dataset format: a folder of Parquet shards and one `dataset.json`.

    data/store/cifar10/
        dataset.json                what the dataset is: `DatasetInfo`
        train-00000.parquet ...     encoded images and their targets, sorted by id, `SCHEMA`

Few large files, since DVC and object stores are slow on many small ones. A row is one image, exactly as it came
(encoded bytes); `label` is the target column of classification. Rows are in a fixed order, so that the place of
a row in its split is the sample's index everywhere: in shuffling, augmentation, predictions.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from data.parameters import Parameters

SCHEMA_VERSION = 1
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # path inside the source, '/'-separated: unique in the dataset
        ("image", pa.binary()),  # the encoded file, byte for byte
        ("format", pa.string()),  # what the bytes are, by their content: JPEG, PNG, ...
        ("width", pa.int32()),  # pixels, after the EXIF orientation is applied
        ("height", pa.int32()),
        ("sha256", pa.string()),  # of `image`, hex
        ("phash", pa.uint64()),  # perceptual hash, see data.duplicates
        ("group", pa.string()),  # what must not stand on two sides of a split
        ("label", pa.int32()),  # index into DatasetInfo.classes
    ]
)


class Shard(Parameters):
    """One Parquet file of a split."""

    file: str
    split: Split
    rows: int
    sha256: str


class DatasetInfo(Parameters):
    """`dataset.json`. Counts are images; channel statistics are over train pixels in [0, 1], RGB or grey."""

    schema_version: int
    name: str
    family: str
    classes: tuple[str, ...]
    channels: Literal[1, 3]
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

    def num_images(self, split: Split) -> int:
        return sum(self.counts.get(split, {}).values())


@dataclass(frozen=True)
class Dataset:
    """An ingested dataset on disk."""

    path: Path
    info: DatasetInfo

    @classmethod
    def open(cls, path: Path) -> "Dataset":
        """Read `dataset.json` under `path`; raises FileNotFoundError or ValueError saying what to do."""
        file = path / "dataset.json"
        if not file.is_file():
            known = ", ".join(list_names(path.parent)) or "none yet"
            raise FileNotFoundError(
                f"no dataset named {path.name!r} in {path.parent} (there: {known}); "
                f"make it with: ./convoy data add SOURCE --name {path.name}, or fetch it with: dvc pull"
            )
        values = json.loads(file.read_text())
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{file}: schema_version (={version}) is not {SCHEMA_VERSION}; ingest the source again"
            )
        return cls(path, DatasetInfo.parse(values, str(file)))

    def shards(self, split: Split) -> list[Path]:
        return [self.path / shard.file for shard in self.info.shards if shard.split == split]

    def table(self, split: Split, columns: list[str] | None = None) -> pa.Table:
        """All rows of a split, in the order of their indices; `columns` limits what is read."""
        tables = [pq.read_table(shard, columns=columns) for shard in self.shards(split)]
        if not tables:
            fields = SCHEMA if columns is None else pa.schema([SCHEMA.field(name) for name in columns])
            return fields.empty_table()
        return pa.concat_tables(tables)

    def require(self, split: Split) -> None:
        """Raise a ValueError if the split has no image."""
        if not self.info.num_images(split):
            have = ", ".join(f"{name} {self.info.num_images(name)}" for name in SPLITS)
            raise ValueError(f"dataset {self.info.name!r} has no {split} images (it has: {have})")


def list_names(store: Path) -> list[str]:
    """Names of the datasets below `store`, sorted."""
    return sorted(file.parent.name for file in store.glob("[!.]*/dataset.json"))


def write_info(path: Path, info: DatasetInfo) -> None:
    """Write `dataset.json`: sorted keys and a final newline, so that equal datasets are equal bytes."""
    (path / "dataset.json").write_text(
        json.dumps(info.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    )


def iterate_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as dictionaries, without turning the whole table into Python objects at once."""
    for piece in table.to_batches(max_chunksize=1024):
        yield from piece.to_pylist()
