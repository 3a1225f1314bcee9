"""What models were asked about, as features and never as pictures: a log of bounded size, for drift (tasks.drift).

    recordings/<registered name>/<time>-<process>-<number>.parquet

A row an item: `time` (UTC, ms), `model_version` (models:/NAME/VERSION), `model_sha256`, `input_sha256` (of its bytes),
`embedding` (tasks.embedding, float16). Files appear whole; the oldest go when all of them are larger than `max_mb`. The
hash and the features say something of a picture, if little: the log is as private as the pictures are.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from queue import Empty, Full, Queue

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from data.files import whole
from data.parameters import Parameters
from tasks.embedding import embed
from tasks.paths import recordings
from tasks.predictors import Answering
from tasks.resolution import Resolved

MB = 10**6
_logger = logging.getLogger(__name__)
COLUMNS = ("time", "model_version", "model_sha256", "input_sha256", "embedding")


class RecordConfig(Parameters):
    """How much is kept of what models were asked about."""

    max_mb: float = Field(gt=0, description="of recordings of a model, in 10⁶ bytes; the oldest go first")
    rows_per_file: int = Field(ge=1, description="rows that wait in memory to be written together")
    flush_s: float = Field(gt=0, description="and how long they wait at most")
    waiting_requests: int = Field(
        ge=1,
        description="answered requests that wait to be recorded; what comes on top of them is not recorded",
    )


@dataclass(frozen=True)
class Recorded:
    """Rows of the log, in order of time."""

    times: np.ndarray  # (N,) datetime64[ms], UTC
    versions: list[str]
    inputs: list[str]  # sha256 of each
    embeddings: np.ndarray  # (N, D) float16

    def __len__(self) -> int:
        return len(self.times)


def folder_of(resolved: Resolved) -> Path:
    """Where a model's recordings lie: by its registered name, else by its files' hash."""
    return recordings() / (resolved.name.replace("/", "_") or f"sha256-{resolved.sha256[:12]}")


class Recorder:
    """Writes the log of one model. Called from one thread at a time; `flush` at the end."""

    def __init__(self, config: RecordConfig) -> None:
        self.config = config
        self.waiting: list[pa.Table] = []
        self.folder: Path | None = None
        self.first_s = 0.0  # when the first of those that wait came
        self.num_files = 0

    def add(self, resolved: Resolved, inputs: Sequence[bytes], embeddings: np.ndarray) -> None:
        """Take the features (N, D) of N encoded inputs into the log."""
        hashes = [hashlib.sha256(blob).hexdigest() for blob in inputs]
        self.add_hashed(resolved, hashes, embeddings)

    def add_hashed(self, resolved: Resolved, hashes: Sequence[str], embeddings: np.ndarray) -> None:
        """Likewise, of inputs by their SHA-256."""
        folder = folder_of(resolved)
        rows = table_of(resolved, hashes, embeddings, datetime.now(UTC))
        if self.waiting and (folder != self.folder or rows.schema != self.waiting[0].schema):
            self.flush()  # a file has features of one length
        if not self.waiting:
            self.folder, self.first_s = folder, time.monotonic()
        self.waiting.append(rows)
        if sum(map(len, self.waiting)) >= self.config.rows_per_file:
            self.flush()

    def flush_old(self) -> None:
        """Write what has waited for long enough."""
        if self.waiting and time.monotonic() - self.first_s >= self.config.flush_s:
            self.flush()

    def flush(self) -> None:
        """Write what waits, and make room for it."""
        if not self.waiting:
            return
        assert self.folder is not None
        rows, self.waiting = pa.concat_tables(self.waiting), []
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns() // 10**6:013d}-{os.getpid()}-{self.num_files:06d}.parquet"
        self.num_files += 1
        with whole(self.folder / name) as stream:
            pq.write_table(rows, stream, compression="zstd")
        make_room(self.folder, int(self.config.max_mb * MB))


def table_of(resolved: Resolved, hashes: Sequence[str], embeddings: np.ndarray, now: datetime) -> pa.Table:
    """Rows of the log: features (N, D) of inputs with these hashes."""
    N, D = embeddings.shape
    assert len(hashes) == N
    narrow = np.clip(embeddings, -65504, 65504).astype(np.float16)  # beyond them are infinities
    values = pa.array(narrow.reshape(-1))
    columns = [
        pa.array([now] * N, pa.timestamp("ms", tz="UTC")),
        pa.array([resolved.exact] * N, pa.string()),
        pa.array([resolved.sha256] * N, pa.string()),
        pa.array(hashes, pa.string()),
        pa.FixedSizeListArray.from_arrays(values, D),
    ]
    return pa.table(columns, COLUMNS)


def make_room(folder: Path, max_bytes: int) -> None:
    """Remove the oldest files until the rest is no larger than `max_bytes`; the newest stays whatever its size."""
    files = sorted(folder.glob("[!.]*.parquet"))
    sizes = [size_of(file) for file in files]
    for file, size in zip(files[:-1], sizes[:-1], strict=True):
        if sum(sizes) <= max_bytes:
            return
        file.unlink(missing_ok=True)
        sizes[sizes.index(size)] = 0


def size_of(file: Path) -> int:
    """Bytes of a file; 0 for one that another process has removed meanwhile."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def read_recordings(folder: Path, model_sha256: str, after: datetime | None = None) -> Recorded:
    """The rows of one version of a model, those later than `after` if that is given."""
    tables = []
    for file in sorted(folder.glob("[!.]*.parquet")):
        try:
            rows = pq.read_table(file)
        except FileNotFoundError:  # somebody made room
            continue
        tables.append(rows.filter(pa.compute.equal(rows["model_sha256"], model_sha256)))
    rows = pa.concat_tables([table for table in tables if len(table)]) if any(map(len, tables)) else None
    if rows is not None and after is not None:
        rows = rows.filter(pa.compute.greater(rows["time"], pa.scalar(after, rows["time"].type)))
    if rows is None or not len(rows):
        return Recorded(np.empty(0, "datetime64[ms]"), [], [], np.empty((0, 0), np.float16))
    rows = rows.sort_by("time").combine_chunks()
    flat = rows["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    times = rows["time"].to_numpy().astype("datetime64[ms]")
    return Recorded(
        times,
        rows["model_version"].to_pylist(),
        rows["input_sha256"].to_pylist(),
        flat.reshape(len(times), -1),
    )


def record(recorder: Recorder, resolved: Resolved, predictor: Answering, blobs: Sequence[bytes]) -> int:
    """Embed items and take those that can be read into the log; how many they are."""
    features, errors = embed(predictor, blobs)
    readable = [blob for blob, error in zip(blobs, errors, strict=True) if error is None]
    if readable:
        recorder.add(resolved, readable, features)
    return len(readable)


Asked = tuple[Resolved, Answering, list[bytes]]


class RecordingThread:
    """Records what a server was asked, beside its answers; no answer waits for it: what it cannot take is left out."""

    def __init__(self, config: RecordConfig) -> None:
        self.recorder, self.flush_s = Recorder(config), config.flush_s
        self.queue: Queue[Asked | None] = Queue(config.waiting_requests)
        self.num_recorded = self.num_left_out = 0
        self.thread = threading.Thread(target=self._run, name="recording", daemon=True)
        self.thread.start()

    def offer(self, resolved: Resolved, predictor: Answering, blobs: list[bytes]) -> None:
        """Record these items when there is time."""
        try:
            self.queue.put_nowait((resolved, predictor, blobs))
        except Full:
            self.num_left_out += len(blobs)

    def close(self) -> None:
        """Record what waits, and end."""
        self.queue.put(None)
        self.thread.join()

    def _run(self) -> None:
        while True:
            try:
                asked = self.queue.get(timeout=self.flush_s)
            except Empty:
                self._guarded(self.recorder.flush_old)
                continue
            if asked is None:
                self._guarded(self.recorder.flush)
                return
            self._guarded(partial(self._record, *asked))

    def _record(self, resolved: Resolved, predictor: Answering, blobs: list[bytes]) -> None:
        self.num_recorded += record(self.recorder, resolved, predictor, blobs)
        self.recorder.flush_old()

    def _guarded(self, work: Callable[[], None]) -> None:
        """A full disk costs recordings, no answers."""
        try:
            work()
        except OSError as error:
            _logger.error("recordings are not kept: %s", error)
