"""A folder into one Parquet file: whatever stops it, the same command ends with the same bytes."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.dataset import Dataset
from tasks import folders
from tasks.batchpredict import (
    Done,
    PartAnswer,
    PredictConfig,
    begin,
    begun,
    caller,
    carry_out,
    count_errors,
    finished,
    parts_folder,
)
from tasks.cluster import connect, disconnect
from tasks.folders import open_source, places_of, suffixes_of
from tasks.modelfile import load_card, model_sha256
from tasks.predict import load_predictor
from tasks.predictors import PREDICTORS
from tasks.recordings import RecordConfig, Recorder, folder_of, read_recordings
from tasks.resolution import Resolved
from tests.recording import make_model, pictures
from tests.saved import save_untrained, some_items
from tests.tiny import tiny_dataset

CONFIG = PredictConfig(part_images=3, part_mb=1, threads=1, gpus=0)
ENDINGS = {"signals": ".wav", "volumes": ".npy"}


@pytest.fixture
def resolved(tmp_path: Path) -> Resolved:
    model = make_model(tmp_path / "model")
    return Resolved("models:/pets@champion", "models:/pets/3", "pets", "run", model_sha256(model), model)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eleven pictures in folders, two of them damaged, and something else."""
    folder = tmp_path / "photos"
    for i, blob in enumerate(pictures(11)):
        file = folder / f"{i % 3}" / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(blob[:50] if i == 4 else b"" if i == 7 else blob)
    (folder / "readme.txt").write_text("not a picture")
    return folder


def predict(
    out: Path,
    resolved: Resolved,
    photos: Path,
    stop_after: int | None = None,
    recorder: Recorder | None = None,
) -> Done:
    """What the flow does, cut off after so many parts."""
    source = open_source(str(photos))
    plan = begun(out) or begin(
        out, resolved, source, places_of(source, suffixes_of(load_card(resolved.folder).family)), CONFIG
    )
    inner = caller("in_process", resolved, CONFIG)

    def cut(
        function: Callable[..., PartAnswer], calls: Iterable[tuple[Any, ...]]
    ) -> Iterator[tuple[int, PartAnswer]]:
        for number, answer in inner(function, calls):
            if number == stop_after:
                raise KeyboardInterrupt
            yield number, answer

    return carry_out(out, plan, resolved, source, cut, lambda done, total: None, recorder)


def test_every_file_gets_the_row_that_predict_gives(resolved: Resolved, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"
    done = predict(out, resolved, photos)
    rows = pq.read_table(out).to_pylist()
    names = [row["image"] for row in rows]
    assert names == sorted(file.relative_to(photos).as_posix() for file in photos.rglob("*.png"))
    blobs = [(photos / name).read_bytes() for name in names]
    expected = load_predictor(resolved.folder).predict(blobs).to_pylist()
    for row, blob, want in zip(rows, blobs, expected, strict=True):
        assert row["input_sha256"] == hashlib.sha256(blob).hexdigest()
        assert (row["label"], row["error"]) == (want["label"], want["error"])
        assert row["probabilities"] == (
            None if want["error"] else pytest.approx(want["probabilities"], abs=1e-5)
        )
        assert row["model_version"] == "models:/pets/3"
    assert done.num_errors == count_errors(out) == 2
    plan = finished(out)
    assert plan is not None and plan.model_sha256 == resolved.sha256
    assert (plan.dataset, plan.num_files, plan.num_parts) == ("pets", 11, 4)
    assert plan.dataset_digest == load_card(resolved.folder).dataset_digest
    assert not parts_folder(out).exists()


def test_stopped_and_gone_on_is_uninterrupted(resolved: Resolved, photos: Path, tmp_path: Path) -> None:
    straight, cut = tmp_path / "straight.parquet", tmp_path / "cut.parquet"
    predict(straight, resolved, photos)
    with pytest.raises(KeyboardInterrupt):
        predict(cut, resolved, photos, stop_after=2)
    assert not cut.exists()
    first = {file.name: file.stat().st_mtime_ns for file in parts_folder(cut).glob("part-*.parquet")}
    assert sorted(first) == ["part-000000.parquet", "part-000001.parquet"]
    # comes too late: the list was made when the file was begun
    (photos / "new.png").write_bytes(pictures(1)[0])
    with pytest.raises(KeyboardInterrupt):
        predict(cut, resolved, photos, stop_after=1)  # the second of those that are left
    done = predict(cut, resolved, photos)
    assert done.num_before == 3
    assert cut.read_bytes() == straight.read_bytes()


def test_no_more_is_read_than_is_predicted(resolved: Resolved, photos: Path, tmp_path: Path) -> None:
    """What is in memory does not grow with the folder: a part is read when it is asked for."""
    source, out, read = open_source(str(photos)), tmp_path / "p.parquet", list[str]()
    counted = replace(source, read=lambda name: (read.append(name), source.read(name))[1])
    plan = begin(out, resolved, source, places_of(source, suffixes_of("classification")), CONFIG)
    inner = caller("in_process", resolved, CONFIG)
    ahead = []

    def call(
        function: Callable[..., PartAnswer], calls: Iterable[tuple[Any, ...]]
    ) -> Iterator[tuple[int, PartAnswer]]:
        for number, answer in inner(function, calls):
            ahead.append(len(read) - 3 * number)
            yield number, answer

    carry_out(out, plan, resolved, counted, call, lambda done, total: None)
    assert ahead == [3, 3, 3, 2]
    assert len(read) == len(set(read)) == 11


@pytest.mark.slow
def test_on_ray_it_is_the_same_file(resolved: Resolved, photos: Path, tmp_path: Path) -> None:
    predict(tmp_path / "here.parquet", resolved, photos)
    source, out = open_source(str(photos)), tmp_path / "ray.parquet"
    plan = begin(out, resolved, source, places_of(source, suffixes_of("classification")), CONFIG)
    heard: list[tuple[int, int]] = []
    connect()
    try:
        call = caller("ray", resolved, CONFIG)
        carry_out(out, plan, resolved, source, call, lambda *told: heard.append(told))
    finally:
        disconnect()
    assert out.read_bytes() == (tmp_path / "here.parquet").read_bytes()
    assert heard[0] == (0, 11) and heard[-1] == (11, 11)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)


def test_a_file_that_has_gone_or_is_too_large_is_set_aside(
    resolved: Resolved, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.parquet"
    with pytest.raises(KeyboardInterrupt):
        predict(out, resolved, photos, stop_after=0)
    (photos / "2" / "02.png").unlink()
    largest = max(photos.rglob("*.png"), key=lambda file: file.stat().st_size)
    monkeypatch.setattr(folders, "MAX_BYTES", largest.stat().st_size - 1)
    predict(out, resolved, photos)
    rows = {row["image"]: row for row in pq.read_table(out).to_pylist()}
    assert rows["2/02.png"]["error"] == "cannot be read: No such file or directory"
    assert rows["2/02.png"]["input_sha256"] is None and rows["2/02.png"]["label"] is None
    assert "bytes are more than" in rows[largest.relative_to(photos).as_posix()]["error"]
    assert len(rows) == 11


@pytest.mark.parametrize("family", PREDICTORS)
def test_every_family_is_predicted_into_a_file(family: str, tmp_path: Path) -> None:
    dataset: Dataset = tiny_dataset(family, tmp_path / "store")
    model = save_untrained(family, dataset, tmp_path / "model")
    source = tmp_path / "items"
    source.mkdir()
    for i, blob in enumerate(some_items(dataset, 4)):
        (source / f"{i}{ENDINGS.get(family, '.png')}").write_bytes(blob)
    resolved = Resolved("model", "model", "", "", model_sha256(model), model)
    predict(tmp_path / "p.parquet", resolved, source)
    rows = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert [row["image"][0] for row in rows] == list("0123")
    assert all(row["error"] is None for row in rows)


def test_features_are_recorded_on_the_way(
    resolved: Resolved, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path / "home"))
    recorder = Recorder(RecordConfig(max_mb=1, rows_per_file=100, flush_s=100, waiting_requests=1))
    predict(tmp_path / "p.parquet", resolved, photos, recorder=recorder)
    recorded = read_recordings(folder_of(resolved), resolved.sha256)
    rows = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert recorded.inputs == [row["input_sha256"] for row in rows if row["error"] is None]


def test_what_is_none_of_ours_is_not_written_over(tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"
    assert finished(out) is None
    pq.write_table(pq.read_table(_some_parquet(tmp_path)), out)
    with pytest.raises(ValueError, match="holds no predictions of ours"):
        finished(out)


def _some_parquet(folder: Path) -> Path:
    pq.write_table(pa.table({"a": [1]}), folder / "some.parquet")
    return folder / "some.parquet"


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder nowhere"):
        open_source("nowhere")
    with pytest.raises(ValueError, match="only folders and s3://"):
        open_source("https://example.org/photos")
    with pytest.raises(ValueError, match=r"nothing to predict in .*looked for .*\.png"):
        places_of(open_source(str(tmp_path)), suffixes_of("classification"))


def test_the_plan_is_whole_json(resolved: Resolved, photos: Path, tmp_path: Path) -> None:
    source = open_source(str(photos))
    out = tmp_path / "p.parquet"
    plan = begin(
        out,
        replace(resolved, exact="models:/pets/9"),
        source,
        places_of(source, suffixes_of("classification")),
        CONFIG,
    )
    assert begun(out) == plan
    assert json.loads((parts_folder(out) / "plan.json").read_text())["model"] == "models:/pets/9"
