"""Predictions for all files of a folder or bucket, into one Parquet file: `./convoy predict MODEL FOLDER --out FILE`.

The files are listed once, and cut into parts of at most `part_images` files and `part_mb`. Beside the file that is to
be, `.FILE.parts/` holds the plan (model, source, list) and a Parquet file for each part that is done; each of them
appears whole. So whatever stops it, the same command goes on, and ends with the same bytes. A part is predicted by
itself: which parts were predicted before a stop changes nothing.

    image          name below the folder or prefix
    input_sha256   of its bytes; null where they could not be read
    ...            what the family's predictor gives (tasks.predictors): label, confidence, probabilities …
    error          why it has no prediction; null where it has one
    model_version  models:/NAME/VERSION
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from data.files import scratch, whole, write_whole
from data.parameters import Parameters
from data.storage import cut_rows
from tasks.embedding import embed
from tasks.folders import Place, Source, read_items
from tasks.modelfile import load_card, model_files
from tasks.predictors import SCHEMAS, Answering, open_predictor
from tasks.recordings import Recorder
from tasks.resolution import Resolved

PLAN, LISTING = "plan.json", "listing.parquet"
ModelFiles = dict[str, bytes]  # by name: what a process needs to predict, wherever it runs
# what a part gives: a table as bytes, and where they are recorded its features with the hashes of their inputs
PartAnswer = tuple[bytes, np.ndarray | None, list[str]]
# (function, its calls) -> (place of the call, what it gave), in any order
Call = Callable[[Callable[..., PartAnswer], Iterable[tuple[Any, ...]]], Iterator[tuple[int, PartAnswer]]]


class PredictConfig(Parameters):
    """How many files are predicted on Ray."""

    part_images: int = Field(ge=1, description="files of a part at most: what is redone after a stop")
    part_mb: int = Field(ge=1, description="and their MiB at most, unless one file alone is larger")
    threads: int = Field(ge=1, description="CPUs that a part is predicted on")
    gpus: float = Field(ge=0, description="GPUs that a part is predicted on; 0: on CPUs")


@dataclass(frozen=True)
class Plan:
    """What a file of predictions is made of, fixed when it is begun."""

    asked: str  # the model as it was given
    model: str  # models:/NAME/VERSION, or as it was given
    model_sha256: str
    family: str
    dataset: str  # that the model was trained on
    dataset_digest: str
    source: str
    listing_sha256: str  # of names and sizes
    num_files: int
    num_parts: int


@dataclass(frozen=True)
class Done:
    """What came of it."""

    plan: Plan
    num_errors: int
    num_before: int  # parts that were there already


def parts_folder(out: Path) -> Path:
    """Where parts lie until `out` is whole."""
    return out.with_name(f".{out.name}.parts")


def begun(out: Path) -> Plan | None:
    """The plan of a file that was begun and is not done."""
    file = parts_folder(out) / PLAN
    return Plan(**json.loads(file.read_text())) if file.is_file() else None


def finished(out: Path) -> Plan | None:
    """The plan of a file that is done; raises ValueError for a file that is none of ours."""
    if not out.exists():
        return None
    metadata = (pq.read_schema(out).metadata or {}) if out.suffix == ".parquet" else {}
    if b"convoy.plan" not in metadata:
        raise ValueError(f"{out} is there and holds no predictions of ours; give another file")
    return Plan(**json.loads(metadata[b"convoy.plan"]))


def count_errors(out: Path) -> int:
    """How many files of a file that is done have no prediction."""
    errors = pq.read_table(out, columns=["error"])["error"]
    return len(errors) - errors.null_count


def begin(out: Path, resolved: Resolved, source: Source, places: list[Place], config: PredictConfig) -> Plan:
    """Write the plan of a new file, the list of what is to be predicted first."""
    folder = parts_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [place.size for place in places]
    bounds = cut_rows(sizes, config.part_images, config.part_mb << 20)
    digest = hashlib.sha256()
    with whole(folder / LISTING) as stream, pq.ParquetWriter(stream, LISTED) as writer:
        for start, stop in bounds:  # a row group a part
            names = [place.name for place in places[start:stop]]
            digest.update(json.dumps([names, sizes[start:stop]]).encode())
            writer.write_table(pa.table([names, sizes[start:stop]], LISTED))
    card = load_card(resolved.folder)
    plan = Plan(
        resolved.asked, resolved.exact, resolved.sha256, card.family, card.dataset, card.dataset_digest, source.shown,
        digest.hexdigest(), len(sizes), len(bounds),
    )  # fmt: skip
    write_whole(folder / PLAN, json.dumps(asdict(plan), indent=2) + "\n")
    return plan


LISTED = pa.schema([("name", pa.string()), ("size", pa.int64())])


def carry_out(
    out: Path, plan: Plan, resolved: Resolved, source: Source, call: Call,
    hear: Callable[[int, int], None], recorder: Recorder | None = None,
) -> Done:  # fmt: skip
    """Predict the parts that are not there yet, and make `out` of all of them.

    `call` runs `predict_part`, here or on a cluster; `hear` is told of files done and all files.
    """
    folder = parts_folder(out)
    waiting = [part for part in range(plan.num_parts) if not part_file(folder, part).is_file()]
    with pq.ParquetFile(folder / LISTING) as listing:
        rows = [listing.metadata.row_group(part).num_rows for part in range(plan.num_parts)]
        num_done = plan.num_files - sum(rows[part] for part in waiting)
        hear(num_done, plan.num_files)
        calls = ((*contents(source, listing, part), recorder is not None) for part in waiting)
        for number, (table, features, hashes) in call(predict_part, calls):
            part = waiting[number]
            if recorder is not None and features is not None and len(features):
                recorder.add_hashed(resolved, hashes, features)
            with whole(part_file(folder, part)) as stream:
                stream.write(table)
            num_done += rows[part]
            hear(num_done, plan.num_files)
    if recorder is not None:
        recorder.flush()
    num_errors = join_parts(out, plan)
    return Done(plan, num_errors, plan.num_parts - len(waiting))


def part_file(folder: Path, part: int) -> Path:
    return folder / f"part-{part:06d}.parquet"


def contents(
    source: Source, listing: pq.ParquetFile, part: int
) -> tuple[list[str], list[bytes], list[str | None]]:
    """Names, bytes and faults of the files of a part."""
    rows = listing.read_row_group(part).to_pylist()
    blobs, faults = read_items(source, [Place(**row) for row in rows])
    return [row["name"] for row in rows], blobs, faults


def join_parts(out: Path, plan: Plan) -> int:
    """Write the parts in their order to `out`, a part at a time, and remove them; how many files have errors."""
    folder = parts_folder(out)
    schema = result_schema(plan.family).with_metadata({"convoy.plan": json.dumps(asdict(plan))})
    num_errors = 0
    with whole(out) as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for part in range(plan.num_parts):
            rows = pq.read_table(part_file(folder, part))
            num_errors += len(rows) - rows["error"].null_count
            version = pa.array([plan.model] * len(rows), pa.string())
            writer.write_table(rows.append_column("model_version", version).cast(schema))
    shutil.rmtree(folder)
    return num_errors


def part_schema(family: str) -> pa.Schema:
    """Of a part: the family's columns between the name and the error."""
    about = [pa.field("image", pa.string()), pa.field("input_sha256", pa.string())]
    return pa.schema([*about, *SCHEMAS[family]])


def result_schema(family: str) -> pa.Schema:
    """Of the file that is made."""
    return part_schema(family).append(pa.field("model_version", pa.string()))


def predict_part(
    model: ModelFiles, sha256: str, on_gpu: bool,
    names: list[str], blobs: list[bytes], faults: list[str | None], recorded: bool,
) -> PartAnswer:  # fmt: skip
    """Predict the files of a part, in a process that may be anywhere. `faults` say why some of them are empty."""
    predictor = predictor_of(ByHash(sha256, model), on_gpu)
    rows = predictor.predict(blobs)
    errors = [fault or error for fault, error in zip(faults, rows["error"].to_pylist(), strict=True)]
    hashes = [
        None if fault else hashlib.sha256(blob).hexdigest() for fault, blob in zip(faults, blobs, strict=True)
    ]
    rows = rows.set_column(rows.schema.get_field_index("error"), "error", pa.array(errors, pa.string()))
    columns = [pa.array(names, pa.string()), pa.array(hashes, pa.string()), *rows.columns]
    table = pa.table(columns, part_schema(predictor.card.family))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    features, own = features_of(predictor, blobs, hashes) if recorded else (None, [])
    return sink.getvalue().to_pybytes(), features, own


def features_of(
    predictor: Answering, blobs: list[bytes], hashes: list[str | None]
) -> tuple[np.ndarray, list[str]]:
    """Features of the files that can be read, and their hashes."""
    features, errors = embed(predictor, blobs)
    own = [sha for sha, error in zip(hashes, errors, strict=True) if error is None and sha is not None]
    return features, own


@dataclass(frozen=True, eq=False)
class ByHash:
    """A model's files, equal to others of the same hash: what a process keeps its predictor by."""

    sha256: str
    files: ModelFiles

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByHash) and other.sha256 == self.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)


@lru_cache(1)
def predictor_of(model: ByHash, on_gpu: bool) -> Answering:
    """The model as what predicts; read once a process."""
    with scratch("predict") as folder:
        for name, data in model.files.items():
            (folder / name).write_bytes(data)
        return open_predictor(folder, None if on_gpu else torch.device("cpu"))


def files_of_model(folder: Path) -> ModelFiles:
    """The card and the weights of a model."""
    return {name: (folder / name).read_bytes() for name in model_files(load_card(folder))}


def here(model: ModelFiles, sha256: str, function: Callable[..., PartAnswer], calls: Iterable[tuple[Any, ...]]
) -> Iterator[tuple[int, PartAnswer]]:  # fmt: skip
    """Runs the calls in this process, one after the other."""
    for number, arguments in enumerate(calls):
        yield number, function(model, sha256, torch.cuda.is_available(), *arguments)


def on_ray(
    model: ModelFiles, sha256: str, config: PredictConfig,
    function: Callable[..., PartAnswer], calls: Iterable[tuple[Any, ...]],
) -> Iterator[tuple[int, PartAnswer]]:  # fmt: skip
    """Runs the calls on the cluster, as many at a time as have CPUs."""
    from tasks.calls import call_each, share

    shared = share(model)
    whole_calls = ((shared, sha256, config.gpus > 0, *arguments) for arguments in calls)
    yield from call_each(function, whole_calls, config.threads, config.gpus)


def caller(executor: str, resolved: Resolved, config: PredictConfig) -> Call:
    """What runs the calls of `carry_out`."""
    model = files_of_model(resolved.folder)
    if executor == "ray":
        return partial(on_ray, model, resolved.sha256, config)
    return partial(here, model, resolved.sha256)
