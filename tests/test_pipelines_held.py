"""A run reads the dataset that it began with, whatever becomes of its name meanwhile."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.checks import check
from data.dataset import Dataset
from data.ingest import IngestConfig
from data.storage import link_files
from pipelines.classification import train_classifier
from pipelines.reporting import Status, set_reporter
from tasks import placing, registry, versions
from tasks.modelfile import load_card
from tasks.paths import runs, store
from tasks.recordstore import connect
from tests.pictures import class_tree, write_tree
from tests.tiny import TINY

RECIPE = {name: part for name, part in TINY["classification"].items() if name != "dataset"}
CONFIG = IngestConfig(val_fraction=0.2, test_fraction=0.3, near_duplicate_distance=0, max_source_gb=1)
QUICK = {"epochs": 3.0, "validate_every_epochs": 1}
pytestmark = pytest.mark.usefixtures("prefect_api", "module_home", "recipes")


@pytest.fixture(scope="module")
def letters(module_home: Path) -> str:
    """The digest of the first of two versions of a dataset."""
    sources = [write_tree(module_home / f"source-{n}", class_tree("abc", n)) for n in (30, 36)]
    added = [
        versions.add(str(each), name="letters", family="classification", config=CONFIG) for each in sources
    ]
    placing.checkout("letters", "1")
    return added[0].digest


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("configuration", "parameters"):
        monkeypatch.setattr(f"pipelines.{place}.recipes", lambda _family: {"default": RECIPE})


class Meddler:
    """Does something to the dataset when the first step of a training is told."""

    def __init__(self, meddle: Callable[[], object] = lambda: None) -> None:
        self.meddle, self.done = meddle, False
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def show(self, status: Status) -> None:
        if status.step == "train" and not self.done:
            self.done = True
            self.meddle()


def train(mode: str, meddler: Meddler) -> dict[str, Any]:
    set_reporter(meddler)
    return train_classifier("letters", changes={"train": {**QUICK, "data_mode": mode}}, executor="in_process")


def outcome(summary: dict[str, Any]) -> tuple[Any, ...]:
    """What a training is worth: its test, its weights, and the data that it says it had."""
    folder = runs() / summary["key"]
    weights = (folder / "model" / load_card(folder / "model").members[0].weights).read_bytes()
    predictions = (folder / "evaluation" / "predictions.parquet").read_bytes()
    tags = connect().get_run(summary["mlflow_run"]).data.tags
    example = registry.resolve_model(f"models:/{summary['model']}/{summary['version']}").parents[1]
    shown = (example / "input_example.json").read_bytes()
    return summary["metrics"]["accuracy"], weights, predictions, shown, tags["dvc.digest"]


def replace_it() -> None:
    placing.checkout("letters", "2")
    assert len(versions.history("letters")) == 2


def remove_it() -> None:
    placing.remove("letters")
    assert not (store() / "letters").exists()


@pytest.mark.parametrize(
    ("meddle", "mode"),
    [
        (replace_it, "streaming"),
        pytest.param(replace_it, "resident", marks=pytest.mark.slow),
        pytest.param(remove_it, "streaming", marks=pytest.mark.slow),
        pytest.param(remove_it, "resident", marks=pytest.mark.slow),
    ],
)
def test_a_dataset_that_is_replaced_or_removed_stays_the_same_for_a_training_that_reads_it(
    letters: str, mode: str, meddle: Callable[[], None]
) -> None:
    kept = {file.name: file.read_bytes() for file in store().glob("letters.*")}
    expected = outcome(train(mode, Meddler()))
    assert expected[-1] == letters
    meddler = Meddler(meddle)
    summary = train(mode, meddler)
    try:
        assert meddler.done and versions.current("letters") != letters
        assert outcome(summary) == expected
        assert not any("note: leave" in note for note in meddler.notes)
        assert not (runs() / summary["key"] / "data").exists(), "it is let go"
    finally:
        for name, data in kept.items():
            (store() / name).write_bytes(data)
        placing.pull(["letters"], all_versions=False)
        placing.checkout("letters", "1")


def cut_off() -> None:
    raise KeyboardInterrupt


def test_a_training_that_was_cut_off_does_not_go_on_with_another_version(letters: str) -> None:
    expected = outcome(train("resident", Meddler()))
    with pytest.raises(KeyboardInterrupt):
        train("resident", Meddler(cut_off))
    key = max(runs().iterdir(), key=lambda folder: folder.stat().st_mtime).name
    set_reporter(Meddler())
    placing.checkout("letters", "2")
    try:
        with pytest.raises(
            ValueError, match=rf"{key} began with data of digest {letters}, and now it is .*checkout"
        ):
            train_classifier("letters", resume=key, executor="in_process")
    finally:
        placing.checkout("letters", "1")
    assert outcome(train_classifier("letters", resume=key, executor="in_process")) == expected


def test_where_there_are_no_links_a_person_is_told_to_leave_the_dataset_alone(
    letters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, _target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(self))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    meddler = Meddler()
    summary = train("resident", meddler)
    assert connect().get_run(summary["mlflow_run"]).data.tags["dvc.digest"] == letters
    [note] = [text for text in meddler.notes if text.startswith("note: leave")]
    assert note == (
        "note: leave dataset 'letters' as it is while this run reads it: it cannot be held (Invalid cross-device link)"
    )


def test_links_are_the_dataset_itself_and_take_no_bytes(letters: str, tmp_path: Path) -> None:
    link_files(store(), "letters", store() / ".held")
    dataset = Dataset.open(store() / "letters")
    held = Dataset(dataset.path, dataset.info, store() / ".held")
    assert check(held).problems == ()
    assert all(shard.samefile(dataset.path / shard.name) for shard in held.shards("train"))
    placing.checkout("letters", "2")
    assert check(held).problems == ()
    held.require_current()
    with pytest.raises(ValueError, match="was replaced while it was read"):
        dataset.require_current()
    placing.checkout("letters", "1")
    with pytest.raises(FileNotFoundError, match="No such file or directory"):
        link_files(store(), "nothing", tmp_path / "held")
    assert letters == versions.current("letters")
