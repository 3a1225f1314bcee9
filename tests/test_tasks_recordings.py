"""What is kept of what models were asked about: features of bounded size, and no picture."""

import hashlib
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.modelfile import model_sha256
from tasks.predictors import open_predictor
from tasks.recordings import RecordConfig, Recorder, RecordingThread, folder_of, read_recordings, record
from tasks.resolution import Resolved
from tests.recording import make_model, pictures


@pytest.fixture
def resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Resolved:
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path / "home"))
    model = make_model(tmp_path / "model")
    return Resolved("models:/pets@champion", "models:/pets/3", "pets", "run", model_sha256(model), model)


def config(**changes: Any) -> RecordConfig:
    values = {"max_mb": 1.0, "rows_per_file": 4, "flush_s": 3600.0, "waiting_requests": 2}
    return RecordConfig.parse({**values, **changes}, "record")


def test_features_come_back_with_time_version_and_hash(resolved: Resolved) -> None:
    predictor, blobs = open_predictor(resolved.folder), pictures(6)
    recorder, before = Recorder(config()), datetime.now(UTC)
    assert record(recorder, resolved, predictor, [*blobs, b"no picture"]) == 6
    recorder.flush()
    rows = read_recordings(folder_of(resolved), resolved.sha256)
    assert rows.inputs == [hashlib.sha256(blob).hexdigest() for blob in blobs]
    assert set(rows.versions) == {"models:/pets/3"}
    assert rows.embeddings.dtype == np.float16
    assert rows.embeddings.shape == (6, 84)  # of LeNet-5's last hidden layer
    assert np.ptp(rows.embeddings, axis=0).max() > 0
    assert abs(rows.times[0].astype(datetime).replace(tzinfo=UTC) - before) < timedelta(minutes=5)
    assert len(read_recordings(folder_of(resolved), resolved.sha256, datetime.now(UTC))) == 0
    assert len(read_recordings(folder_of(resolved), "another model")) == 0


def test_no_picture_is_kept(resolved: Resolved) -> None:
    blobs = pictures(4)
    recorder = Recorder(config())
    record(recorder, resolved, open_predictor(resolved.folder), blobs)
    [file] = folder_of(resolved).glob("*.parquet")
    assert pq.read_schema(file).names == [
        "time",
        "model_version",
        "model_sha256",
        "input_sha256",
        "embedding",
    ]
    written = file.read_bytes()
    assert not any(blob[-60:-20] in written for blob in blobs)


def test_the_log_stays_within_its_bound_and_loses_the_oldest(resolved: Resolved) -> None:
    recorder = Recorder(config(max_mb=0.02, rows_per_file=10))
    generator = np.random.default_rng(0)
    for i in range(20):
        recorder.add_hashed(resolved, [f"{i:02d}-{j}" for j in range(10)], generator.normal(size=(10, 200)))
    files = sorted(folder_of(resolved).glob("*.parquet"))
    assert sum(file.stat().st_size for file in files) <= 20_000
    rows = read_recordings(folder_of(resolved), resolved.sha256)
    assert 0 < len(rows) < 200
    kept = sorted({name[:2] for name in rows.inputs})
    assert kept == [f"{i:02d}" for i in range(20 - len(kept), 20)]


def test_versions_with_features_of_other_lengths_lie_beside_each_other(resolved: Resolved) -> None:
    other = Resolved("models:/pets@champion", "models:/pets/4", "pets", "run", "other", resolved.folder)
    recorder = Recorder(config(rows_per_file=100))
    recorder.add_hashed(resolved, ["a"], np.zeros((1, 3)))
    recorder.add_hashed(other, ["b", "c"], np.full((2, 5), 1e9))
    recorder.flush()
    assert read_recordings(folder_of(resolved), resolved.sha256).embeddings.shape == (1, 3)
    largest = read_recordings(folder_of(other), "other").embeddings
    assert largest.shape == (2, 5) and np.isfinite(largest).all()


def test_what_there_is_no_time_for_is_left_out_and_counted(
    resolved: Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, seen = threading.Event(), []

    def slow(_recorder: Any, _resolved: Any, _predictor: Any, blobs: list[bytes]) -> int:
        going.wait(60)
        seen.extend(blobs)
        return len(blobs)

    monkeypatch.setattr("tasks.recordings.record", slow)
    thread = RecordingThread(config(waiting_requests=2))
    predictor = open_predictor(resolved.folder)
    for i in range(20):
        thread.offer(resolved, predictor, [b"%d" % i])  # returns at once, though nothing is recorded
    going.set()
    thread.close()
    assert thread.num_recorded == len(seen)
    assert thread.num_recorded + thread.num_left_out == 20
    assert thread.num_left_out >= 17


def test_a_thread_records_what_it_was_offered_before_it_ends(resolved: Resolved) -> None:
    thread = RecordingThread(config(waiting_requests=8))
    thread.offer(resolved, open_predictor(resolved.folder), pictures(3))
    thread.close()
    assert len(read_recordings(folder_of(resolved), resolved.sha256)) == 3
