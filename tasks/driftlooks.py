"""Looks for drift at what a registered model was asked about, and their list.

The reference is a sample of the dataset that the model was trained on: of its validation pictures, since a network that
has fitted its training pictures gives them features of their own, and fresh pictures of the same kind would seem to
have drifted. It is made at the first look and kept with the model's MLflow run, `drift/reference-<model>.parquet`, so
that later looks need no dataset.

Each look is at predictions that no look before it has seen; what it found is a line of `looks.jsonl` beside the
recordings.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.dataset import Dataset, Split
from data.files import cut_tail, read_objects, scratch
from tasks.card import ModelCard
from tasks.drift import Discrepancy, DriftConfig, Look, discrepancy, twice_running
from tasks.embedding import embed
from tasks.predictors import open_predictor
from tasks.recordings import folder_of, read_recordings
from tasks.registry import log_folder
from tasks.resolution import Resolved
from tasks.runrecords import read_artifact
from tasks.versions import open_stored, opened

LOOKS = "looks.jsonl"
NUM_SHOWN = 10  # looks
REFERENCE = "drift"


class TooFew(ValueError):
    """Fewer new predictions were recorded than a look needs."""


def look(resolved: Resolved, config: DriftConfig) -> Look:
    """Compare the newest predictions that no look has seen with the reference; raises TooFew."""
    before = [each for each in read_looks(resolved) if each.model_sha256 == resolved.sha256]
    rows = read_recordings(folder_of(resolved), resolved.sha256, before[-1].last if before else None)
    if len(rows) < config.least_recent:
        since = f" since the look of {before[-1].at:%Y-%m-%d %H:%M}" if before else ""
        raise TooFew(
            f"{len(rows)} predictions of {resolved.exact} were recorded{since}, and drift.least_recent is "
            f"{config.least_recent}: record more (./convoy serve {resolved.asked} --record)"
        )
    recent = slice(max(0, len(rows) - config.num_recent), len(rows))
    found = discrepancy(
        reference_of(resolved, config.num_reference),
        rows.embeddings[recent],
        config.permutations,
        config.seed,
    )
    times = rows.times[recent]
    seen = Look(datetime.now(UTC), resolved.sha256, moment(times[0]), moment(times[-1]), found)
    folder_of(resolved).mkdir(parents=True, exist_ok=True)
    cut_tail(folder_of(resolved) / LOOKS)
    with (folder_of(resolved) / LOOKS).open("a") as file:
        file.write(json.dumps(asdict(seen), default=lambda value: value.isoformat()) + "\n")
    return seen


def drift_document(resolved: Resolved, config: DriftConfig) -> dict[str, Any]:
    """A look, and those before it, for a person or a program; raises TooFew."""
    now = look(resolved, config)
    looks = read_looks(resolved)
    return {
        "model": resolved.asked,
        "version": resolved.exact,
        "drifted": now.drifted(config),
        "twice_running": twice_running(looks, config),
        "p_below": config.p_below,
        "effect_above": config.effect_above,
        "looks": [row_of(each, config) for each in looks[-NUM_SHOWN:]],
    }


def row_of(each: Look, config: DriftConfig) -> dict[str, Any]:
    """A look, for a table."""
    return {
        "at": f"{each.at:%Y-%m-%d %H:%M:%S}",
        "first": f"{each.first:%Y-%m-%d %H:%M:%S}",
        "last": f"{each.last:%Y-%m-%d %H:%M:%S}",
        "num_recent": each.discrepancy.num_recent,
        "num_reference": each.discrepancy.num_reference,
        "mmd2": each.discrepancy.mmd2,
        "p": each.discrepancy.p,
        "effect": each.discrepancy.effect,
        "drifted": each.drifted(config),
    }


def moment(time: np.datetime64) -> datetime:
    """A time of the log."""
    return datetime.fromtimestamp(int(time.astype("datetime64[ms]").astype(int)) / 1000, UTC)


def read_looks(resolved: Resolved) -> list[Look]:
    """Earlier looks at a registered model, all of its versions, in order of time."""
    looks = []
    for values in read_objects(folder_of(resolved) / LOOKS, "remove that line"):
        times = {name: datetime.fromisoformat(values[name]) for name in ("at", "first", "last")}
        looks.append(Look(**{**values, **times, "discrepancy": Discrepancy(**values["discrepancy"])}))
    return looks


def reference_of(resolved: Resolved, num_items: int) -> np.ndarray:
    """Features (N, D) of the dataset that the model was trained on: kept with its run, and made where they are not.

    Raises ValueError for a model that no run has registered, FileNotFoundError where the dataset is not here.
    """
    if not resolved.run_id:
        raise ValueError(
            f"{resolved.asked} is not registered: drift is looked for in models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    path = f"{REFERENCE}/reference-{resolved.sha256[:12]}.parquet"
    kept = read_artifact(resolved.run_id, path)
    if kept is None:
        kept = make_reference(resolved, num_items)
        with scratch("drift") as folder:
            file = folder / Path(path).name
            file.write_bytes(kept)
            log_folder(resolved.run_id, file, REFERENCE)
    rows = pq.read_table(io.BytesIO(kept))["embedding"].combine_chunks()
    return rows.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)


def make_reference(resolved: Resolved, num_items: int) -> bytes:
    """A Parquet file of features, float16, of the first items of a split: rows lie in random order (data.storage)."""
    predictor = open_predictor(resolved.folder)
    with dataset_of(predictor.card) as dataset:
        split: Split = "val" if dataset.info.num_images("val") >= 2 else "train"
        num_there = dataset.info.num_images(split)
        indices = list(range(min(num_items, num_there)))
        blobs = dataset.rows(split, indices, ["image"])["image"].to_pylist()
    features, _errors = embed(predictor, blobs)
    values = pa.array(features.astype(np.float16).reshape(-1))
    about = {
        "model_sha256": resolved.sha256, "dataset": predictor.card.dataset, "split": split,
        "dataset_digest": predictor.card.dataset_digest,
    }  # fmt: skip
    table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(values, features.shape[1])})
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(about), sink, compression="zstd")
    return sink.getvalue()


@contextmanager
def dataset_of(card: ModelCard) -> Iterator[Dataset]:
    """The dataset as it was when the model was trained: the version of its digest, where it has one."""
    if card.dataset_digest:
        with opened(card.dataset_digest) as dataset:
            yield dataset
    else:
        yield open_stored(card.dataset)
